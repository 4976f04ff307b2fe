"""`samples`, `report`, `evaluate` and `play`: inspect a run and measure it."""

import json
import time
from pathlib import Path
from typing import Annotated

import click
from rich.console import Console
from typer import Argument, BadParameter, Option

from mini_r1.cli.command_tools import file_errors, progress_printer, refuse_starting, stop_signals
from mini_r1.cli.options import MOST, PATH, ColumnNames, FiniteRange, Json, RunPath, RunPaths, parse_columns
from mini_r1.console import printable, progress_console
from mini_r1.errors import ExitCode, KitError
from mini_r1.hub.hub_access import refuse_no_model
from mini_r1.machine.heavy_imports import needs_extra
from mini_r1.run.completions import parse_filter, print_completions
from mini_r1.run.health import check_health
from mini_r1.run.run_dir import RunDir, find_run, open_run
from mini_r1.tasks.problem_files import data_files, read_files
from mini_r1.tasks.registry import DEFAULT_TASK, TASKS, find_task

ENGINES = click.Choice(["auto", "vllm", "transformers"])


def samples(
    run: RunPath,
    held_out: Annotated[bool, Option("--held-out", help="Answers to held-out problems (`mini-r1 evaluate`).")] = False,
    step: Annotated[str | None, Option(help="One step, or a range such as 50-100.")] = None,
    right: Annotated[bool | None, Option("--ok/--wrong", help="By the equation; default: both.")] = None,
    reason: Annotated[str | None, Option(help="Part of the verdict's reason, such as 'used twice'.")] = None,
    grep: Annotated[str | None, Option(help="Regular expression to find in the completion; ignores case.")] = None,
    limit: Annotated[int, Option(min=0, max=MOST, help="Largest number of completions; 0: all.")] = 10,
    last: Annotated[bool, Option("--last", help="Show the last ones instead of the first.")] = False,
    full: Annotated[bool, Option("--full", help="Don't shorten long completions.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print one line of JSON for each, and nothing else.")] = False,
) -> None:
    """Show a run's completions in the order of steps, filtered.

    Works while the run trains. Needs no torch.

    Examples:
      mini-r1 samples runs/demo-cpu --step 50 --wrong
      mini-r1 samples runs/mini-r1-3b --ok --grep wait --limit 1
      mini-r1 samples runs/first --last --json
      mini-r1 samples runs/first --held-out --step 0 --ok
    """
    wanted = parse_filter(step, right, reason, grep)
    run_directory = RunDir(run)
    if run_directory.is_starting():
        progress_printer()(check_health(run_directory.path, time.time()).sentence)
    else:
        open_run(run_directory.path)
    with file_errors():
        print_completions(
            run_directory, wanted, held_out=held_out, limit=limit, last=last, full=full, as_json=as_json,
            out=Console(highlight=False), progress=progress_console(),
        )  # fmt: skip


def report(
    runs: RunPaths,
    out: Annotated[Path | None, Option(help="Page; default: RUN/report.html, for several runs ./report.html.")] = None,
    markdown: Annotated[Path | None, Option(metavar="FOLDER", help="Also write report.md and SVG plots there.")] = None,
    csv: Annotated[Path | None, Option(metavar="FILE", help="Also write what is plotted, as CSV.")] = None,
    price_per_gpu_hour: Annotated[float | None, Option(click_type=FiniteRange(0), help="Show costs.")] = None,
    samples: Annotated[int, Option(min=0, max=MOST, help="Largest number of completions on the page.")] = 20_000,
    as_json: Json = False,
) -> None:
    """Write the report of a run, or of up to 6 runs drawn over each other.

    The report has curves with intervals, the original's, and answers. It is
    one HTML file of at most 15 MB that loads nothing. It works while a run
    trains, and on an incomplete run: what is missing is listed. Needs no torch
    and no network.

    Examples:
      mini-r1 report runs/demo-cpu
      mini-r1 report runs/a runs/b --out compare.html
      mini-r1 report runs/first --markdown docs/first --price-per-gpu-hour 2.5
    """
    with needs_extra("report"), file_errors():
        from mini_r1.report.build import build_report

        made = build_report(
            runs, out, markdown=markdown, csv=csv, price=price_per_gpu_hour, limit=samples,
            progress=progress_printer("dim"),
        )  # fmt: skip
    if as_json:
        print(json.dumps(made.to_json()))
        return
    for summary in made.summaries:
        print(printable(f"{summary.run.name}: {summary.run.state_sentence()}. {summary.sentence}"))
        for comparison in summary.comparisons:
            print(printable(f"  {comparison.sentence}"))
        for sentence in summary.run.missing:
            print(printable(f"  missing: {sentence}"))
    for path in [made.path, *made.markdown[:1], *filter(None, [made.csv])]:
        print(printable(f"written: {path}"))


def evaluate(
    run_or_model: Annotated[
        str, Argument(click_type=PATH, help="Run, as a directory or its name in runs/; model directory or hub id.")
    ],
    problems: Annotated[
        Path | None, Option(help="File or folder of problems; default: those that the run held out.")
    ] = None,
    samples: Annotated[
        int | None, Option(min=1, max=10_000, help="Sampled completions per problem; default: as before, else 4.")
    ] = None,
    limit: Annotated[int | None, Option(min=1, max=MOST, help="Evaluate on the first N problems.")] = None,
    step: Annotated[int | None, Option(min=0, max=MOST, help="One snapshot; 0 is the untrained model.")] = None,
    newest: Annotated[bool, Option("--newest", help="The run's newest snapshot alone.")] = False,
    engine: Annotated[str, Option(click_type=ENGINES, help="auto: vLLM if there is one, and a GPU.")] = "auto",
    again: Annotated[bool, Option("--again", help="Repeat what was measured with these settings.")] = False,
    task: Annotated[
        str | None, Option(click_type=click.Choice(list(TASKS)), help="Task of a model's --problems.")
    ] = None,
    column: ColumnNames = None,
    as_json: Json = False,
) -> ExitCode:
    """Measure success on held-out problems: greedy, sampled, pass@k, intervals.

    For a run, measures the untrained model and every snapshot, and writes each
    result to RUN/evaluation. After a stop, the same command measures what is
    missing. The results also compare the model with the untrained one and with
    two search baselines at 1, 2, 4, ... tries.

    Examples:
      mini-r1 evaluate runs/demo-cpu
      mini-r1 evaluate runs/demo-cpu --newest --samples 64 --limit 200
      mini-r1 evaluate path/to/model --problems held_out.jsonl --json
      mini-r1 evaluate runs/first --problems rows.csv --column nums=numbers
    """
    from mini_r1 import api

    if newest and step is not None:
        raise BadParameter("--newest and --step are two ways to choose one snapshot: leave one out")
    run = RunDir(find_run(run_or_model))
    refuse_starting(run, "it has no snapshot to evaluate yet")
    if run.is_run():
        run.require_snapshots()
    else:
        refuse_no_model(run_or_model, has_problems=problems is not None)
    if problems is not None and not problems.exists():
        raise KitError(f"{problems}: no such file")
    from mini_r1.recipe.recipe_file import load_recipe  # late: pydantic

    run_recipe = load_recipe(run.recipe_file) if run.is_run() else None
    run_task = run_recipe.task if run_recipe else DEFAULT_TASK
    if run_recipe and task not in (None, run_task):
        raise KitError(f"{run.path} trains the task {run_task}: leave --task out")
    columns = parse_columns(column) or (run_recipe.dataset_columns if run_recipe else {})
    kept = (
        f"what was measured is in {run.evaluation}, and the same command resumes"
        if run.is_run()
        else "nothing is kept of a model's figures"
    )
    with stop_signals(lambda: f"stopped: {kept}"), file_errors():
        if problems is not None:
            # What is wrong with them is known before torch is loaded.
            known, files = find_task(task or run_task), data_files(problems, prefer="test")[0]
            known.fields.mapped(columns).own_names_first(lambda columns: read_files(files, columns, known.parser()))
        every = run.is_run() and not newest and step is None
        series = api.evaluate(
            run.path if run.is_run() else run_or_model,
            problems,
            samples=samples,
            limit=limit,
            step=step,
            every=every,
            columns=columns,
            engine=engine,
            again=again,
            task=task or run_task,
        )
        from mini_r1.evaluation.results_table import print_series, print_table  # loaded by now

        if as_json:
            print(json.dumps(series.to_json() if every else series.evaluations[-1]))
        elif every:
            print_series(series, Console())
        else:
            print_table(series.evaluations[-1], Console())
        return ExitCode.CONFIG if series.errors else ExitCode.FINISHED


def play(
    run: RunPath,
    given: Annotated[
        str | None, Option("--numbers", "--question", help="Numbers such as 3,5,9, or a question: answer once.")
    ] = None,
    wanted: Annotated[str | None, Option("--target", "--answer", help="Target, or the question's answer.")] = None,
    step: Annotated[int | None, Option(min=0, max=MOST, help="Snapshot that answers; default: the newest.")] = None,
    temperature: Annotated[float, Option(click_type=FiniteRange(0, 100), help="Of sampling; 0 is greedy.")] = 0.0,
    seed: Annotated[int, Option(min=0, max=2**63 - 1, help="Random seed of sampling, with a temperature above 0.")] = 0,
    as_json: Json = False,
) -> None:
    """Type numbers and a target; the untrained and the trained model answer.

    Both answers are shown side by side, then the right one.

    Examples:
      mini-r1 play runs/demo-cpu
      mini-r1 play runs/demo-cpu --numbers 3,5,9 --target 1 --json
    """

    if (given is None) != (wanted is None):
        raise KitError("--numbers and --target need each other, such as --numbers 3,5,9 --target 1")
    if as_json and given is None:
        raise KitError("--json answers one problem: name it, such as --numbers 3,5,9 --target 1")
    refuse_starting(RunDir(run), "it has no snapshot to play with yet")
    run_directory = open_run(run)
    problem = None
    if given is not None and wanted is not None:
        from mini_r1.recipe.recipe_file import load_recipe

        problem = find_task(load_recipe(run_directory.recipe_file).task).read_typed(given, wanted)
    console = Console(highlight=False)
    with needs_extra("train", console=progress_console()):
        from mini_r1.play import session
        from mini_r1.play.players import load_players
        from mini_r1.training.prepare import starting_point
    sampling = session.Sampling(temperature, seed)
    with file_errors():
        playing = load_players(run_directory, step, starting_point(run_directory), progress_printer())
    if problem is None:
        session.play(playing, sampling, console, session.ask_at_terminal)
    elif as_json:
        print(json.dumps(session.play_one_as_json(playing, problem, sampling)))
    else:
        session.play_one(playing, problem, sampling, console)
