"""`runs` and `logs`: list, show and delete runs, and read what their processes log."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer import Argument, Context, Option, Typer, confirm
from typer.core import TyperGroup

from mini_r1.cli.command_tools import file_errors, progress_printer
from mini_r1.cli.options import Json, RunPath, RunPaths, RunType
from mini_r1.console import printable, shown_bytes
from mini_r1.errors import KitError
from mini_r1.run.files import folder_bytes
from mini_r1.run.health import check_health
from mini_r1.run.listing import list_run, list_runs, runs_table
from mini_r1.run.log_tail import find_logs, read_logs
from mini_r1.run.removal import check_removable, remove_run
from mini_r1.run.run_dir import RUNS, open_run


class ListByDefault(TyperGroup):
    """A group in which `runs FOLDER --json` is `runs list FOLDER --json`."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Insert `list` unless the first word is a command or asks for help."""
        known = args[:1] and args[0] in (*self.commands, *ctx.help_option_names)
        return super().parse_args(ctx, args if known else ["list", *args])


runs_app = Typer(name="runs", cls=ListByDefault)


@runs_app.callback()
def runs() -> None:
    """List, show and delete runs.

    `mini-r1 runs FOLDER` is `mini-r1 runs list FOLDER`.

    Examples:
      mini-r1 runs
      mini-r1 runs runs/sweep --json
      mini-r1 runs rm first
    """


@runs_app.command("list")
def runs_list(
    folder: Annotated[Path, Argument(click_type=RunType(), help="Folder of runs, or one run.")] = RUNS,
    as_json: Json = False,
) -> None:
    """List runs: state, step, success, time, size on disk. Needs no torch.

    Success is that of the newest held-out evaluation, else that of the last
    training step.

    Examples:
      mini-r1 runs list
      mini-r1 runs list runs/sweep --json
    """
    with file_errors():
        found = list_runs(folder, time.time())
    if as_json:
        print(json.dumps([asdict(one) for one in found]))
    else:
        Console(highlight=False).print(runs_table(found, folder))


@runs_app.command("show")
def runs_show(run: RunPath, as_json: Json = False) -> None:
    """Show one run: its state and why, step, success, model, time, size.

    Examples:
      mini-r1 runs show first
      mini-r1 runs show runs/demo-cpu --json
    """
    with file_errors():
        one = list_run(open_run(run, begun=False).path, time.time())
    if as_json:
        print(json.dumps(asdict(one)))
        return
    table = Table.grid(padding=(0, 2))
    for name, value in asdict(one).items():
        shown = shown_bytes(value) if name == "bytes" else "?" if value is None else str(value)
        table.add_row(name.replace("_", " "), Text(printable(shown)))
    Console(highlight=False).print(table)


@runs_app.command("rm")
def runs_rm(
    runs: RunPaths,
    yes: Annotated[bool, Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: Json = False,
) -> None:
    """Delete runs: checkpoints, snapshots, logs, evaluations, reports.

    Asks first. A run in progress is refused, and so are all others of the same
    command. A link in a run is deleted, not what it points to.

    Examples:
      mini-r1 runs rm first second
      mini-r1 runs rm runs/sweep/one --yes --json
    """
    with file_errors():
        found = list(dict.fromkeys(check_removable(run, time.time()) for run in runs))
        if not yes:
            if not sys.stdin.isatty():
                raise KitError("deleting needs an answer, and there is no terminal: add --yes")
            size = sum(map(folder_bytes, found))
            listed = "\n".join(f"  {printable(str(run))}" for run in found)
            if not confirm(f"{listed}\nDelete and free {shown_bytes(size)}?", err=True):
                progress_printer()("nothing was deleted")
                return
        freed = sum(map(remove_run, found))
    if as_json:
        print(json.dumps({"deleted": [str(run) for run in found], "freed_bytes": freed}))
    else:
        print(f"deleted: {', '.join(printable(str(run)) for run in found)}; freed {shown_bytes(freed)}")


def logs(
    run: RunPath,
    follow: Annotated[bool, Option("--follow", "-f", help="Print new lines until the run ends.")] = False,
    lines: Annotated[int, Option("--lines", "-n", min=0, help="Last lines of each log; 0: all.")] = 20,
) -> None:
    """Print the logs of a run's newest attempt: every rank's, and vLLM's.

    With -f, Ctrl-C stops following; the run continues.

    Examples:
      mini-r1 logs first
      mini-r1 logs runs/mini-r1-3b -f
    """
    progress, run_directory = progress_printer(), open_run(run, begun=False)
    try:
        with file_errors():
            for line in read_logs(run_directory, lines, follow=follow):
                print(line, flush=True)
    except KeyboardInterrupt:
        progress("stopped following; the run continues")
        return
    if not find_logs(run_directory):
        progress("no logs yet: they are written once an attempt begins (attempts/N/)")
    progress(check_health(run, time.time()).sentence)
