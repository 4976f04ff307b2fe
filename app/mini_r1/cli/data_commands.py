"""`score`, `data generate` and `data inspect`: the game without a model."""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from typer import Argument, Option, Typer, confirm

from mini_r1.cli.command_group import CommandGroup
from mini_r1.cli.command_tools import file_errors, progress_printer, stop_signals
from mini_r1.cli.options import PATH, ColumnNames, Json, TaskName, parse_columns
from mini_r1.console import ProgressLine, progress_console
from mini_r1.errors import KitError
from mini_r1.run.files import replacing
from mini_r1.tasks.data_errors import DataError
from mini_r1.tasks.problem_files import SUFFIXES, data_files, read_files, write_rows
from mini_r1.tasks.registry import DEFAULT_TASK, find_task, score_line

SHOWN_LINES = 20  # bad lines that `score --keep-going` lists
MOST_ROWS = 10_000_000  # an hour of generating, and 4 GB of memory
SHOWN_ROWS = 5  # row numbers that are listed of those that were not checked

data_app = Typer(name="data", cls=CommandGroup, help="Generate and inspect problems.", no_args_is_help=True)


def score(
    file: Annotated[
        str, Argument(click_type=PATH, help="JSONL of completion and a problem's columns; - is standard input.")
    ] = "-",
    task: TaskName = DEFAULT_TASK,
    keep_going: Annotated[bool, Option("--keep-going", help="Score what follows a bad line, too; exit 78.")] = False,
    as_json: Annotated[bool, Option("--json", help="The default: one JSON line for each input line.")] = True,
) -> None:
    """Score completions: one JSON line for each line, with verdicts and reason.

    A bad line ends the command. With --keep-going its JSON line is an error,
    and all bad lines are reported at the end.

    Examples:
      mini-r1 score completions.jsonl
      mini-r1 score --keep-going completions.jsonl > scores.jsonl
      mini-r1 score < completions.jsonl | head
    """
    name, bad = "standard input" if file == "-" else file, list[str]()
    with file_errors(), nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            try:
                scored = score_line(raw, f"{name}:{number}", task)
            except DataError as error:
                if not keep_going:
                    raise
                bad.append(error.message)
                scored = {"error": error.message}
            print(json.dumps(scored), flush=True)
    if bad:
        more = f"\nand {len(bad) - SHOWN_LINES:,} more" if len(bad) > SHOWN_LINES else ""
        listed = "\n".join(bad[:SHOWN_LINES])
        raise DataError(f"{len(bad):,} bad line{'s' * (len(bad) > 1)}, left out of the scores:\n{listed}{more}")


@data_app.command("generate")
def data_generate(
    rows: Annotated[int, Option(min=1, max=MOST_ROWS, help="Number of problems.")],
    out: Annotated[Path, Option(dir_okay=False, help="File to write: .parquet, .jsonl, .json or .csv.")],
    seed: Annotated[int, Option(help="Random seed; the same seed gives the same rows on every machine.")] = 42,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the file if it exists.")] = False,
    task: TaskName = DEFAULT_TASK,
) -> None:
    """Generate problems, offline; of Countdown with the hub's distribution.

    If the file exists, the command asks before it replaces it; without a
    terminal it refuses.

    Examples:
      mini-r1 data generate --rows 50000 --seed 42 --out problems.jsonl
      mini-r1 data generate --rows 1000 --out problems.parquet --overwrite
    """
    _refuse_output(out, overwrite)
    progress = progress_printer()
    progress(f"generating {rows:,} problems")
    game, problems = find_task(task), list[Any]()

    def describe() -> str:
        done = f"{len(problems):,} of {rows:,} problems"
        return f"stopped after {done}, and {out} was not written: the same command starts from the beginning"

    with file_errors(), stop_signals(describe), ProgressLine(progress_console(), "problems", rows) as line:
        for problem in game.generate(rows, seed, None):
            problems.append(problem)
            line.update(len(problems))
        with replacing(out) as scratch:
            write_rows(scratch, out.suffix.lower(), list(map(game.file_row, problems)))
    progress(f"{rows:,} problems written to {out}")


def _refuse_output(out: Path, overwrite: bool) -> None:
    """Raise a KitError, before any work, for a file that can't be written or should not be replaced."""
    if out.suffix.lower() not in SUFFIXES:
        raise KitError(f"{out}: unknown kind of file; {', '.join(SUFFIXES)} can be written")
    if not out.parent.is_dir():
        raise KitError(f"{out.parent}: no such folder: make it with `mkdir -p {shlex.quote(str(out.parent))}`")
    if not os.access(out.parent, os.W_OK):
        raise KitError(f"{out.parent}: this user can't write there: name a file in another folder")
    if not out.exists() or overwrite:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise KitError(f"{out} exists: name another file, or replace it with --overwrite")
    if not confirm(f"{out} exists. Replace it?", err=True):
        raise KitError(f"{out} was not replaced")


@data_app.command("inspect")
def data_inspect(
    file: Annotated[
        Path, Argument(help="File (.parquet, .jsonl, .json, .csv), or folder such as a clone of a hub set.")
    ],
    config: Annotated[
        str | None, Option(help="Configuration of a folder; default: its only one, or 'default'.")
    ] = None,
    split: Annotated[str | None, Option(help="Split of a folder; default: train.")] = None,
    task: TaskName = DEFAULT_TASK,
    column: ColumnNames = None,
    as_json: Json = False,
) -> None:
    """Count rows, duplicates, solvable problems and those that need × or ÷.

    Of a folder, the files that training would read: those in it, in data/ in
    it, and those that its README.md names.

    Examples:
      mini-r1 data inspect problems.jsonl
      mini-r1 data inspect Countdown-Tasks-3to4 --split train
      mini-r1 data inspect rows.parquet --column nums=metadata.numbers
    """
    with file_errors(), stop_signals(lambda: f"stopped: {file} was not inspected to its end"):
        files = data_files(file, config, [split])[0]
        game = find_task(task)
        problems = read_files(files, game.fields.mapped(parse_columns(column)), game.parser())
        with ProgressLine(progress_console(), "rows", len(problems)) as line:
            facts: dict[str, Any] = game.inspect(problems, line.update)
    unchecked: list[int] = facts.get("unchecked_rows", [])
    if unchecked:
        more = f" and {len(unchecked) - SHOWN_ROWS:,} more" if len(unchecked) > SHOWN_ROWS else ""
        progress_printer("yellow")(
            f"{file}: row{'s' * (len(unchecked) > 1)} {', '.join(map(str, unchecked[:SHOWN_ROWS]))}{more}: whether "
            "there is a solution was not checked to the end, because the search takes too long; such rows are left "
            "out of the solvable share"
        )
    if as_json:
        print(json.dumps(facts))
        return
    if file.is_dir():
        progress_printer()(f"read: {', '.join(path.relative_to(file).as_posix() for path in files)}")
    table = Table("", str(file), title=f"{game.title} problems", title_justify="left")
    for key, value in _flatten(facts | ({"unchecked_rows": len(unchecked)} if "unchecked_rows" in facts else {})):
        table.add_row(key, value)
    Console().print(table)


def _flatten(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(item, dict):
            yield from _flatten(item, f"{name} · ")
        elif isinstance(item, float):
            yield name, f"{item:.1%}" if key.endswith("share") else f"{item:g}"
        else:
            yield name, f"{item:,}" if isinstance(item, int) else "not known" if item is None else str(item)
