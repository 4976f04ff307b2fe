"""What the commands of cli.py do, one function each: read the input, call the room, turn its errors into sentences."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from rich.console import Console

from mini_r1.console import ProgressLine, printable, progress_console
from mini_r1.countdown.problem import DataError
from mini_r1.errors import ExitCode, KitError


def train(recipe_name: str, overrides: list[str], run_dir: Path | None) -> ExitCode:
    """`mini-r1 train`."""
    from mini_r1.recipe_file import effective_output_dir, find_recipe, load_recipe
    from mini_r1.rundir import RunDir
    from mini_r1.training.supervised import Supervisor

    Supervisor.from_environment().attend()  # first: the imports below take seconds
    path = find_recipe(recipe_name)
    recipe = load_recipe(path, overrides)
    console = progress_console()
    console.quiet = os.environ.get("RANK", "0") != "0"  # one of several workers: rank 0 speaks for all
    for warning in recipe.warnings():
        console.print(f"warning: {printable(warning)}", style="yellow", markup=False)
    with needs_extra("train"):
        from mini_r1.training.run import train as run_training
    run = RunDir(run_dir or effective_output_dir(recipe, path))
    outcome = run_training(recipe, run, sys.argv, console)
    if outcome.exit_code == ExitCode.FINISHED:
        console.print(f"finished at step {outcome.step}: {run.path}", markup=False)
    else:
        say_interrupted(console, outcome.step)
    return outcome.exit_code


def evaluate(
    run_or_model: str, problems: Path | None, *, samples: int, limit: int | None, step: int | None, as_json: bool
) -> None:
    """`mini-r1 evaluate`."""
    with needs_extra("train"):
        from mini_r1.evaluation.run import evaluate_run_or_model, print_table
    with data_errors():
        result = evaluate_run_or_model(run_or_model, problems, samples, limit=limit, step=step)
    if as_json:
        print(json.dumps(result))
    else:
        print_table(result)


def score(file: str) -> None:
    """`mini-r1 score`: every line that could be read before a malformed one is printed."""
    from mini_r1.countdown.lines import score_line

    name = "standard input" if file == "-" else file
    with data_errors(), _binary_lines(file) as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            where = f"{name}:{number}"
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not valid UTF-8 ({error.reason} at byte {error.start})") from error
            print(json.dumps(score_line(line, where)), flush=True)


def data_generate(rows: int, seed: int, out: Path) -> None:
    """`mini-r1 data generate`."""
    from mini_r1.countdown.data import write_jsonl
    from mini_r1.countdown.generator import generate

    if rows < 1:
        raise KitError(f"--rows must be at least 1, found {rows}")
    console = progress_console()
    with data_errors(), ProgressLine(console, "problems", rows) as line:
        problems = []
        for problem in generate(rows, seed):
            problems.append(problem)
            line.update(len(problems))
        write_jsonl(problems, out)
    console.print(f"{rows:,} problems written to {out}", markup=False)


def data_inspect(file: Path, *, as_json: bool) -> None:
    """`mini-r1 data inspect`."""
    from rich.table import Table

    from mini_r1.countdown.data import inspect, read_problems

    with data_errors():
        facts = inspect(read_problems(file))
    if as_json:
        print(json.dumps(facts))
        return
    table = Table("", str(file), title="Countdown problems", title_justify="left")
    for key, value in _flat(facts):
        table.add_row(key, value)
    Console().print(table)


# --- shared ---


def say_interrupted(console: Console, step: int) -> None:
    """What a run that was stopped in order leaves, and what to do."""
    console.print(f"interrupted after step {step}, saved: the same command goes on from there", markup=False)


@contextmanager
def data_errors() -> Iterator[None]:
    """Turn the game's errors, and files that cannot be read or written, into exit code 78."""
    try:
        yield
    except DataError as error:
        raise KitError(str(error)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise KitError(f"{error.filename or 'file'}: {error.strerror}") from error


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Say which installation is missing when a command needs more than the core."""
    try:
        # DeepSpeed logs to the standard output, which belongs to --json, and tells already when it is imported (by TRL,
        # where it is installed) which accelerator it takes it to be for.
        with redirect_stdout(sys.stderr), _only_errors_of("DeepSpeed"):
            yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("mini_r1"):
            raise
        raise KitError(
            f"this command needs {error.name}, which the core does not install: "
            f"run `make install`, or pip install 'mini-r1[{extra}]'"
        ) from error


@contextmanager
def _only_errors_of(name: str) -> Iterator[None]:
    """Drop what a logger says below an error meanwhile; it need not be there yet."""
    logger = logging.getLogger(name)

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(is_error)
    try:
        yield
    finally:
        logger.removeFilter(is_error)


@contextmanager
def _binary_lines(file: str) -> Iterator[Any]:
    if file == "-":
        yield sys.stdin.buffer
        return
    with Path(file).open("rb") as handle:
        yield handle


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(item, dict):
            yield from _flat(item, f"{name} · ")
        elif isinstance(item, float):
            yield name, f"{item:.1%}" if key.endswith("share") else f"{item:g}"
        else:
            yield name, f"{item:,}" if isinstance(item, int) else str(item)
