"""The commands that show a run, as the command line declares them; seeing.py does them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mini_r1.cli.options import Json


def evaluate(
    run_or_model: Annotated[str, typer.Argument(help="A run directory, a model directory or a hub id.")],
    problems: Annotated[
        Path | None,
        typer.Option(help="Problems (.jsonl, .parquet); default: the run's held-out part."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Sampled completions for each problem, besides the greedy one; pass@k goes to this k. Default: as "
            "many as the run was measured with before, else 4."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Evaluate on this many problems only.")] = None,
    step: Annotated[int | None, typer.Option(help="One snapshot of the run; 0 is the untrained model.")] = None,
    newest: Annotated[bool, typer.Option("--newest", help="The run's newest snapshot alone.")] = False,
    engine: Annotated[
        str, typer.Option(help="auto (vLLM where there is a GPU and it is installed), vllm or transformers.")
    ] = "auto",
    again: Annotated[bool, typer.Option("--again", help="Also what was measured before with these settings.")] = False,
    as_json: Json = False,
) -> None:
    """Measure success on held-out problems: greedy and sampled pass@1, pass@k, intervals, by size and operators.

    Of a run: the untrained model and every snapshot, each written to RUN/evaluation as soon as it is measured. Stopped
    or called again it measures what is missing. Beside the model stand the untrained one, and two solvers that
    search without a thought: their success after 1, 2, 4, ... tries, and how the model's tries compare with theirs.

    Examples: `mini-r1 evaluate runs/demo-cpu` - `mini-r1 evaluate runs/demo-cpu --newest --samples 64 --limit 200` -
    `mini-r1 evaluate path/to/model --problems held_out.jsonl --samples 8 --json`
    """
    from mini_r1.cli.run_actions import evaluate as run_evaluate

    if newest and step is not None:
        raise typer.BadParameter("--newest and --step are two ways to choose one snapshot: leave one out")
    code = run_evaluate(
        run_or_model, problems, samples=samples, limit=limit, step=step, newest=newest, engine=engine, again=again,
        as_json=as_json,
    )  # fmt: skip
    raise typer.Exit(int(code))


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories; several are laid over each other, at most 6.")],
    out: Annotated[
        Path | None, typer.Option(help="The page; default: RUN/report.html, of several runs report.html here.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write report.md and its plots (SVG) there too.")
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price-per-gpu-hour", min=0, help="Tell the cost at this price, any currency.")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Completions on the page at most.")] = 20_000,
    as_json: Json = False,
) -> None:
    """Make one page of a run to look at: curves with intervals, the original's beside them, and its answers to read.

    The page is one file of at most 15 MB that loads nothing. Works while a run goes on and on what is left of a broken
    one: what is missing is said. Needs no torch and no network.

    Examples: `mini-r1 report runs/demo-cpu` - `mini-r1 report runs/a runs/b --out compare.html` -
    `mini-r1 report runs/first --markdown docs/first --price-per-gpu-hour 2.5`
    """
    from mini_r1.cli.run_actions import report as run_report

    run_report(runs, out, markdown=markdown, price=price, samples=samples, as_json=as_json)


def samples(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Answers to held-out problems, which evaluate kept, not training's.")
    ] = False,
    step: Annotated[str | None, typer.Option(help="Of this step, or of a range such as 50-100.")] = None,
    right: Annotated[
        bool | None, typer.Option("--ok/--wrong", show_default=False, help="By the equation; default: both.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Part of the verdict's reason, such as 'used twice'.")] = None,
    grep: Annotated[
        str | None, typer.Option(help="A regular expression found in the completion; case does not count.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Show so many; 0: all.")] = 10,
    last: Annotated[bool, typer.Option("--last", help="The last ones and not the first.")] = False,
    full: Annotated[bool, typer.Option("--full", help="All of each completion, however long.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each, and nothing else.")] = False,
) -> None:
    """Show a run's completions in the order of steps, filtered. Works while it trains; needs no torch.

    Examples: `mini-r1 samples runs/demo-cpu --step 50 --wrong` -
    `mini-r1 samples runs/mini-r1-3b --ok --grep wait --limit 1` - `mini-r1 samples runs/first --last --json` -
    `mini-r1 samples runs/first --held-out --step 0 --ok`
    """
    from mini_r1.cli.run_actions import samples as run_samples

    run_samples(
        run, step, held_out=held_out, right=right, reason=reason, grep=grep, limit=limit, last=last, full=full,
        as_json=as_json,
    )  # fmt: skip


def play(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    numbers: Annotated[str | None, typer.Option(help="Such as 3,5,9; with --target: answer this and end.")] = None,
    target: Annotated[str | None, typer.Option(help="What they are to make.")] = None,
    step: Annotated[int | None, typer.Option(help="The trained model's snapshot; default: the newest.")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes each time the most likely token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws, with a temperature above 0.")] = 0,
    as_json: Json = False,
) -> None:
    """Type numbers and a target: the untrained and the trained model answer side by side, then the exact solver.

    Examples: `mini-r1 play runs/demo-cpu` - `mini-r1 play runs/demo-cpu --numbers 3,5,9 --target 1 --json`
    """
    from mini_r1.cli.run_actions import play as run_play

    run_play(run, numbers, target, step=step, temperature=temperature, seed=seed, as_json=as_json)


def runs(
    folder: Annotated[Path, typer.Argument(help="A folder of runs, or a run.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List runs: running, saved, finished, failed or dead and why; step, success, time, size on disk. Needs no torch.

    Success is that of the newest held-out evaluation, else the last step's of training.

    Examples: `mini-r1 runs` - `mini-r1 runs runs/sweep --json`
    """
    from mini_r1.cli.run_actions import runs as run_runs

    run_runs(folder, as_json=as_json)


def publish(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    repo: Annotated[str, typer.Option(help="On the hub: owner/name, or a name in your own space.")],
    snapshot: Annotated[
        str | None,
        typer.Option(metavar="BEST|N", help="This one alone; default: all, each as a branch, and the best on main."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Send nothing: show what would be sent, and the card.")] = (
        False
    ),
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; default: private.")] = False,
    as_json: Json = False,
) -> None:
    """Put a run on the Hugging Face hub: model, tokenizer and a model card; each snapshot is a branch, step-N.

    The token is HF_TOKEN's, HF_TOKEN_PATH's or `huggingface-cli login`'s. What is there is not sent again: after a
    failure the same command goes on. BEST is the highest held-out success that was measured. Needs no torch.

    Examples: `mini-r1 publish runs/first --repo first --dry-run` -
    `mini-r1 publish runs/first --repo me/first --snapshot BEST`
    """
    from mini_r1.cli.run_actions import publish as run_publish

    run_publish(run, repo, snapshot, dry_run=dry_run, public=public, as_json=as_json)
