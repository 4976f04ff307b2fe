"""The command line: what there is, and nothing of how it is done. Every command imports its room when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import click
import typer

from mini_r1.errors import ExitCode, KitError

app = typer.Typer(
    name="mini-r1",
    help="Reproduce DeepSeek-R1's 'aha moment': GRPO on the Countdown game, on a laptop or a cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
data_app = typer.Typer(help="Make and inspect Countdown problems.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable, dots reach into mappings."),
]
RunDirOption = Annotated[
    Path | None,
    typer.Option("--run-dir", help="Run directory; default: the recipe's output_dir, else runs/<recipe's name>."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]


@app.command()
def demo(
    overrides: Set = None,
    run_dir: RunDirOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two steps only: shows the path, not the rise.")] = False,
    as_json: Json = False,
) -> None:
    """Train the tiny built-in model and show held-out success before and after: a few minutes on a CPU.

    Example: `mini-r1 demo`
    """
    from mini_r1.demo import demo as run_demo

    _exit(run_demo(overrides or [], run_dir, quick=quick, as_json=as_json))


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one (demo-cpu).")],
    overrides: Set = None,
    run_dir: RunDirOption = None,
) -> None:
    """Train one recipe in this process; started again, it goes on from the last complete checkpoint.

    Examples: `mini-r1 train demo-cpu` -
    `mini-r1 train my.yaml --set learning_rate=1e-6 --set seed=7 --run-dir runs/seed7`
    """
    from mini_r1.commands import train as run_train

    _exit(run_train(recipe, overrides or [], run_dir))


@app.command()
def evaluate(
    run_or_model: Annotated[str, typer.Argument(help="A run directory, a model directory or a hub id.")],
    problems: Annotated[
        Path | None,
        typer.Option(help="Problems (.jsonl, .parquet); default: the run's held-out part."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Sampled completions for each problem, besides the greedy one.")] = 4,
    limit: Annotated[int | None, typer.Option(help="Evaluate on this many problems only.")] = None,
    step: Annotated[int | None, typer.Option(help="The run's snapshot; default: the newest.")] = None,
    as_json: Json = False,
) -> None:
    """Measure success on held-out problems: greedy and sampled pass@1, pass@k, intervals, by size and operators.

    Examples: `mini-r1 evaluate runs/demo-cpu` -
    `mini-r1 evaluate path/to/model --problems held_out.jsonl --samples 8 --json`
    """
    from mini_r1.commands import evaluate as run_evaluate

    run_evaluate(run_or_model, problems, samples=samples, limit=limit, step=step, as_json=as_json)


@app.command()
def score(
    file: Annotated[str, typer.Argument(help="JSONL of completion, nums, target; - is standard input.")] = "-",
    as_json: Annotated[bool, typer.Option("--json", help="The default: one JSON line for each input line.")] = True,
) -> None:
    """Score completions: one JSON line out for each line in, with the four verdicts and the reason in words.

    Example: `echo '{"completion": "</think>\\n<answer>6 * 7</answer>", "nums": [6, 7], "target": 42}' | mini-r1 score`
    """
    from mini_r1.commands import score as run_score

    run_score(file)


@data_app.command("generate")
def data_generate(
    rows: Annotated[int, typer.Option(help="How many problems.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same rows on every machine.")] = 42,
) -> None:
    """Generate problems with the distribution of the hub's data set, offline.

    Example: `mini-r1 data generate --rows 50000 --seed 42 --out problems.jsonl`
    """
    from mini_r1.commands import data_generate as run_generate

    run_generate(rows, seed, out)


@data_app.command("inspect")
def data_inspect(
    file: Annotated[Path, typer.Argument(help="A .jsonl or .parquet file of nums and target.")],
    as_json: Json = False,
) -> None:
    """Count rows, duplicates, solvable problems and those that need × or ÷.

    Example: `mini-r1 data inspect problems.jsonl`
    """
    from mini_r1.commands import data_inspect as run_inspect

    run_inspect(file, as_json=as_json)


@app.command()
def version() -> None:
    """Print the version."""
    from mini_r1 import __version__

    typer.echo(__version__)


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 78, usage errors included."""
    try:
        result = app(prog_name="mini-r1", standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.exceptions.Abort:
        code = int(ExitCode.INTERRUPTED)
    except KeyboardInterrupt:
        code = int(ExitCode.INTERRUPTED)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"\nSee '{context.command_path} --help'." if context is not None else ""
        code = _fail(error.format_message() + hint, ExitCode.CONFIG)
    except KitError as error:
        code = _fail(error.message, error.exit_code)
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        code = int(ExitCode.FAILED)
    except Exception as error:
        _say_in_json(f"{type(error).__name__}: {error}", ExitCode.FAILED)
        raise  # a defect: the traceback is what a report of it needs
    sys.exit(code)


def _fail(message: str, code: ExitCode) -> int:
    """Say it on standard error; with --json also as an object on standard output."""
    from mini_r1.console import printable

    _say_in_json(message, code)
    print(f"error: {printable(message)}", file=sys.stderr)
    return int(code)


def _say_in_json(message: str, code: ExitCode) -> None:
    if "--json" in sys.argv:
        import json

        print(json.dumps({"error": message, "exit_code": int(code)}))


def _exit(code: ExitCode) -> None:
    raise typer.Exit(int(code))
