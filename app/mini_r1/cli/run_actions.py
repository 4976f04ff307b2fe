"""What the commands of cli_seeing.py do, one function each, as commands.py does for the others."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console

from mini_r1.cli.train_commands import data_errors
from mini_r1.console import printable, progress_console
from mini_r1.errors import ExitCode, KitError
from mini_r1.machine.heavy_imports import needs_extra
from mini_r1.run.health import check_health
from mini_r1.run.run_dir import RunDir, open_run


def evaluate(
    run_or_model: str,
    problems: Path | None,
    *,
    samples: int | None,
    limit: int | None,
    step: int | None,
    newest: bool,
    engine: str,
    again: bool,
    as_json: bool,
) -> ExitCode:
    """`mini-r1 evaluate`: all snapshots of a run, one of them, or a model."""
    from mini_r1.cli.stop_signals import stopped_in_order

    run = RunDir(Path(run_or_model).expanduser())
    _refuse_starting(run, "it has no snapshot to evaluate yet")
    kept = (
        f"what was measured is in {run.evaluation}, and the same command goes on"
        if run.is_run()
        else "nothing is kept of a model's figures"
    )
    with stopped_in_order(lambda: f"stopped: {kept}"), data_errors():
        with needs_extra("train", console=progress_console()):
            from mini_r1.evaluation.evaluate_run import evaluate_run, evaluate_run_or_model
            from mini_r1.evaluation.results_table import print_series, print_table
            from mini_r1.evaluation.source import Wish
            from mini_r1.training.prepare import starting_point
        start = starting_point(run) if run.is_run() else None
        if start is not None and not newest and step is None:
            series = evaluate_run(run, problems, Wish(samples, limit), start, engine=engine, again=again)
            if as_json:
                print(json.dumps(series.to_json()))
            else:
                print_series(series)
            return ExitCode.CONFIG if series.faults else ExitCode.FINISHED
        result = evaluate_run_or_model(
            run_or_model, problems, samples, limit=limit, step=step, engine=engine, again=again, start=start
        )
        if as_json:
            print(json.dumps(result))
        else:
            print_table(result)
        return ExitCode.FINISHED


def report(
    runs: list[Path], out: Path | None, *, markdown: Path | None, price: float | None, samples: int, as_json: bool
) -> None:
    """`mini-r1 report`."""
    console = progress_console()

    def say(line: str) -> None:
        console.print(printable(line), style="dim", markup=False)

    with needs_extra("report"):
        from mini_r1.report.build import build_report

        made = build_report(runs, out, markdown=markdown, price=price, limit=samples, progress=say)
    if as_json:
        print(json.dumps(made.to_json()))
        return
    for summary in made.summaries:
        print(printable(f"{summary.run.name}: {summary.run.state_sentence()}. {summary.sentence}"))
        for standing in summary.standings:
            print(printable(f"  {standing.sentence}"))
        for sentence in summary.run.missing:
            print(printable(f"  missing: {sentence}"))
    for path in [made.path, *made.markdown[:1]]:
        print(printable(f"written: {path}"))


def samples(
    run_path: Path,
    step: str | None,
    *,
    held_out: bool,
    right: bool | None,
    reason: str | None,
    grep: str | None,
    limit: int,
    last: bool,
    full: bool,
    as_json: bool,
) -> None:
    """`mini-r1 samples`."""
    from mini_r1.run.completions import parse_filter, print_completions

    which = parse_filter(step, right, reason, grep)
    run = RunDir(run_path.expanduser())
    out, remarks = Console(highlight=False), progress_console()
    if run.is_starting():
        remarks.print(check_health(run.path, time.time()).sentence, markup=False)
    else:
        open_run(run.path)
    with data_errors():
        print_completions(
            run, which, held_out=held_out, limit=limit, last=last, full=full, as_json=as_json, out=out, progress=remarks
        )  # fmt: skip


def play(
    run_path: Path,
    numbers: str | None,
    target: str | None,
    *,
    step: int | None,
    temperature: float,
    seed: int,
    as_json: bool,
) -> None:
    """`mini-r1 play`."""
    from mini_r1.play.asking import problem_of

    if (numbers is None) != (target is None):
        raise KitError("--numbers and --target go together, such as --numbers 3,5,9 --target 1")
    if as_json and numbers is None:
        raise KitError("--json answers one problem: name it, such as --numbers 3,5,9 --target 1")
    _refuse_starting(RunDir(run_path.expanduser()), "it has no snapshot to play with yet")
    run = open_run(run_path.expanduser())
    problem = None if numbers is None or target is None else problem_of(numbers, target)
    console, said = Console(highlight=False), progress_console()
    with needs_extra("train", console=said):
        from mini_r1.play import session
        from mini_r1.play.models import players
        from mini_r1.training.prepare import starting_point
    sampling = session.Sampling(temperature, seed)
    with data_errors():
        playing = players(run, step, starting_point(run), lambda line: said.print(printable(line), markup=False))
    if problem is None:
        session.ask_and_answer(playing, sampling, console, session.ask_at_terminal)
    elif as_json:
        print(json.dumps(session.one_as_json(playing, problem, sampling)))
    else:
        session.one(playing, problem, sampling, console)


def runs(folder: Path, *, as_json: bool) -> None:
    """`mini-r1 runs`."""
    from mini_r1.run.listing import format_runs, list_runs, runs_table

    with data_errors():
        found = list_runs(folder.expanduser(), time.time())
    if as_json:
        print(format_runs(found))
    else:
        Console(highlight=False).print(runs_table(found, folder))


def publish(run_path: Path, repo: str, snapshot: str | None, *, dry_run: bool, public: bool, as_json: bool) -> None:
    """`mini-r1 publish`."""
    from mini_r1.hub import publish as room

    console = progress_console()
    _refuse_starting(RunDir(run_path), "it has no snapshot to publish yet")

    def say(line: str) -> None:
        console.print(printable(line), markup=False)

    if dry_run:
        made = room.dry_run(run_path, repo, snapshot, say)
        print(json.dumps(made.to_dict()) if as_json else printable("\n".join([*made.lines(), "", made.card])))
        return
    done = room.publish(run_path, repo, snapshot, public=public, say=say, bars=console.is_terminal and not as_json)
    print(json.dumps(done.to_dict()) if as_json else done.line())


def _refuse_starting(run: RunDir, why: str) -> None:
    """Say what a run does that has not come to its first attempt.

    Raises:
        KitError: there is such a run; retryable while it makes progress.
    """
    if run.is_starting():
        found = check_health(run.path, time.time())
        raise KitError(f"{found.sentence}: {why}", ExitCode.RETRY if found.healthy else ExitCode.CONFIG)
