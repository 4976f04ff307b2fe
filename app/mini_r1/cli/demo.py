"""`demo`: held-out success before, GRPO on the kit's own path, held-out success after."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from typer import Option

from mini_r1.cli.command_tools import stop_signals
from mini_r1.cli.options import Json, RunDirOption, Set
from mini_r1.console import printable, progress_console
from mini_r1.errors import ExitCode, KitError
from mini_r1.machine.heavy_imports import needs_extra
from mini_r1.machine.trackers import refuse_trackers
from mini_r1.run.files import read_jsonl
from mini_r1.run.reader import completions_file, list_held_out_results, read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.registry import is_right, task_of_row

RECIPE = "demo-cpu"
SAMPLES = 1  # sampled completions for each held-out row: most problems are there in several orders of their numbers
SHOWN = 3  # problems whose completions are printed
QUICK = (
    "max_steps=2", "warmup_steps=0", "gradient_accumulation_steps=1", "warm_start.steps=60",
    "warm_start.min_accuracy=0", "dataset_rows=600",
)  # fmt: skip
FIGURES = (
    "sampled", "ci95", "greedy", "greedy_ci95", "tries", "format", "truncated", "completion_tokens", "baselines",
)  # fmt: skip
ROWS = {
    "success, sampled": "{sampled:.1%}",
    "  95 % interval": "{ci95[0]:.1%} - {ci95[1]:.1%}",
    "success, greedy": "{greedy:.1%}",
    "tries per answer": "{tries:.2f}",
    "O/E against a random solver": "{oe}",
    "format right": "{format:.1%}",
    "tokens per completion": "{completion_tokens:.1f}",
}

PATH = """\
What this shows: the training path of the big run - prompt, rewards, rollout,
GRPO, checkpoints - on a model with 120 thousand parameters."""
NO_RISE = "Success on problems the model never saw did not rise in this run: the interval of the rise includes 0."
RISE = "Success on problems the model never saw rose by {points:.1f} points."
MORE_TRIES = """\
The model was taught to try things and to give up early, and learned by itself
to keep searching: {before:.1f} tries per answer became {after:.1f}. That is the 'aha
moment' in miniature."""
SEARCH = """\
What it does not show: reasoning. Its arithmetic is memorised. Try by try it
hits {how} a solver that tries at random and never
gets a result twice. A false '(yes)' costs nothing, and may become more
frequent."""


def demo(
    overrides: Set = None,
    run_dir: RunDirOption = None,
    quick: Annotated[bool, Option("--quick", help="Run two small steps only; success won't rise.")] = False,
    as_json: Json = False,
) -> ExitCode:
    """Train a tiny model on the CPU; show held-out success before and after.

    Takes a few minutes, and needs no GPU, no hub and no download.

    Examples:
      mini-r1 demo
      mini-r1 demo --quick --run-dir runs/quick
    """
    from mini_r1.recipe.fields import DEMO_MODEL
    from mini_r1.recipe.recipe_file import effective_output_dir, find_recipe, load_recipe
    from mini_r1.run.finished import describe_interrupted, finished_step_before_loading
    from mini_r1.training.supervised import Supervisor, starting

    path = find_recipe(RECIPE)
    recipe = load_recipe(path, [*(QUICK if quick else ()), *(overrides or [])])
    if recipe.model_name_or_path != DEMO_MODEL:
        raise KitError(f"the demo trains its own model, {DEMO_MODEL}: for another one use `mini-r1 train`")
    stem = path.with_stem(f"{RECIPE}-quick") if quick else path
    run = RunDir(run_dir or effective_output_dir(recipe, stem))
    refuse_trackers(recipe.report_to, os.environ)
    finished_step_before_loading(run, recipe)  # refuses a directory that can't be used
    console = progress_console()
    with starting(recipe, run, Supervisor.from_environment()) as started:
        with needs_extra("train", console=console):
            from mini_r1.evaluation.evaluate_run import evaluate_run_or_model
            from mini_r1.training.prepare import starting_point
            from mini_r1.training.tracking import report_held_out
            from mini_r1.training.train import train as run_training
            from mini_r1.training.warm_start import making
        outcome = run_training(recipe, run, sys.argv, console, started=started)
    if outcome.exit_code != ExitCode.FINISHED:
        console.print(describe_interrupted(outcome.step), markup=False)
        return outcome.exit_code

    start = starting_point(run)
    # None: as many samples as before, which may be more.
    samples = None if any(list_held_out_results(run)) else SAMPLES
    with stop_signals(lambda: f"stopped: {run.path} is trained, and the same command measures it"):
        found = [
            evaluate_run_or_model(
                str(run.path), samples=samples, step=step, engine="transformers", start=start, console=console
            )
            for step in (0, None)
        ]
        before, after = (series.evaluations[-1] for series in found)
        if any(series.measured for series in found):
            report_held_out(run, [before, after], console)
    result = {
        "before": {key: before[key] for key in FIGURES},
        "after": {key: after[key] for key in FIGURES},
        "rise": _rise(before, after),
        "problems": after["problems"],
        "seconds_warm_start": making(Path(str(start.source))).get("seconds"),
        "seconds_grpo": round(seconds_of_steps(run), 1),
        "run_dir": str(run.path),
    }
    if as_json:
        print(json.dumps(result))
    else:
        _print_result(result, before, after)
    return ExitCode.FINISHED


def seconds_of_steps(run: RunDir) -> float:
    """Return the seconds of optimizer steps in all attempts: rollout, score, update and save."""
    phases = ("time/rollout", "time/score", "time/update", "time/save")
    seconds, before = 0.0, 0
    for row in read_metrics(run):  # a row is the mean over the steps since the one before it
        seconds += (row["step"] - before) * sum(row.get(phase, 0.0) for phase in phases)
        before = row["step"]
    return seconds


def _rise(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return how much sampled success rose, with its 95 % interval over the problems, each compared with itself."""
    from mini_r1.evaluation.measures import limits, mean
    from mini_r1.evaluation.statistics import mean_interval

    shares = [
        [sum(is_right(row) is True for row in sampled) / len(sampled) for _, *sampled in _answers(evaluation)]
        for evaluation in (before, after)
    ]
    differences = [then - first for first, then in zip(*shares, strict=True)]
    clusters = [task_of_row(rows[0]).parse(rows[0], "answer").cluster for rows in _answers(after)]
    return {"sampled": mean(differences), "ci95": limits(mean_interval(differences, clusters))}


def _answers(evaluation: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return the greedy answer of each problem, followed by the sampled ones that are kept."""
    answers: list[list[dict[str, Any]]] = []
    for row in read_jsonl(completions_file(Path(evaluation["provenance"]["written_to"]))):
        if row["kind"] == "greedy":
            answers.append([])
        answers[-1].append(row)
    return answers


def _print_result(result: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> None:
    from mini_r1.evaluation.results_table import over

    console = Console(highlight=False)
    table = Table("", "before", "after", title=f"{result['problems']} held-out problems", title_justify="left")
    columns = [{**figures, "oe": over(figures["baselines"]["random_solver"])} for figures in (before, after)]
    for label, text in ROWS.items():
        table.add_row(label, *(text.format(**figures) for figures in columns))
    console.print(table)
    at_tries = after["baselines"]["random_solver"]["success_at_tries"]
    shares = ", ".join(f"{tries}: {share:.1%}" for tries, share in at_tries.items())
    console.print(f"random solver, success by number of tries: {shares}")
    rise, limits = result["rise"]["sampled"], result["rise"]["ci95"]
    interval = f" (95 %: {100 * limits[0]:+.1f} to {100 * limits[1]:+.1f})" if limits else ""
    console.print(f"rise: {100 * rise:+.1f} points{interval}")
    for pair in list(zip(_answers(before), _answers(after), strict=True))[:SHOWN]:
        problem = pair[0][0]
        console.print(f"\n{task_of_row(problem).describe(problem)}", style="bold", markup=False)
        for when, answers in zip(("before", "after"), pair, strict=True):
            console.print(f"[dim]{when}:[/dim]", markup=True)
            console.print("<think>" + printable(answers[1]["completion"]), markup=False)
            console.print(f"-> {printable(answers[1]['reason'])}", style="dim", markup=False)
    console.print(
        f"\nwarm start {result['seconds_warm_start']:.0f} s (cached from now on), GRPO {result['seconds_grpo']:.0f} s\n"
        f"run directory: {result['run_dir']}\n",
        markup=False,
        soft_wrap=True,  # a path or a command is copied whole
    )
    console.print(describe_result(result), style="dim", markup=False)
    console.print(f"\nNext steps:\n{describe_next_steps(result['run_dir'])}", markup=False, soft_wrap=True)


def describe_next_steps(run: str) -> str:
    """Return commands that inspect a run, as they can be copied."""
    program = "mini-r1" if shutil.which("mini-r1") else sys.argv[0]  # make demo calls the one in .venv
    run = shlex.quote(run)
    steps = {
        f"{program} report {run}": "curves and answers on one HTML page",
        f"{program} samples {run} --ok": "right answers of the training",
        f"{program} play {run}": "your own numbers, before and after training",
        f"{program.removesuffix('mini-r1')}tensorboard --logdir {run}/tensorboard": "all metrics",
    }
    width = max(map(len, steps))
    return "\n".join(f"  {command:{width}}  # {what}" for command, what in steps.items())


def describe_result(result: dict[str, Any]) -> str:
    """Return what a demo's figures show, and what they don't."""
    before, after, rise = result["before"], result["after"], result["rise"]
    rose = rise["ci95"] is not None and rise["ci95"][0] > 0
    lines = [PATH, RISE.format(points=100 * rise["sampled"]) if rose else NO_RISE]
    if rose and after["tries"] > before["tries"]:
        lines.append(MORE_TRIES.format(before=before["tries"], after=after["tries"]))
    limits = after["baselines"]["random_solver"]["observed_over_expected_ci95"]
    if rose and limits is not None:
        low, high = limits
        how = "less often than" if high < 1 else "more often than" if low > 1 else "about as often as"
        lines.append(SEARCH.format(how=how))
    return "\n".join(lines)
