"""The command line: its commands, and the exit code and sentence for every error.

Each command is declared and done in its module. It imports what takes time when it runs, so that `--help` is quick.
"""

import contextlib
import io
import json
import platform
import sys
from collections.abc import Callable
from typing import Annotated, Any

import click
import typer
from typer import Option
from typer.core import TyperArgument

from mini_r1 import __version__
from mini_r1.cli.command_group import CommandGroup
from mini_r1.cli.command_tools import path_error
from mini_r1.cli.data_commands import data_app, score
from mini_r1.cli.demo import demo
from mini_r1.cli.hub_commands import prefetch, publish
from mini_r1.cli.node_commands import bundle, doctor, health
from mini_r1.cli.options import ExpandedPath, Json
from mini_r1.cli.planning_commands import plan, recipes_app
from mini_r1.cli.run_commands import evaluate, play, report, samples
from mini_r1.cli.runs_app import logs, runs_app
from mini_r1.cli.standard_streams import BestEffortStream, exit_process, flush_output
from mini_r1.cli.training_commands import launch, train
from mini_r1.console import printable
from mini_r1.disk_errors import disk_error
from mini_r1.errors import ExitCode, KitError


def version(as_json: Json = False) -> None:
    """Print the versions of the kit, of Python and of the pinned packages.

    `mini-r1 --version` prints the same. No package is imported for it.

    Examples:
      mini-r1 version
      mini-r1 version --json
    """
    from mini_r1.doctor.software import read_pins
    from mini_r1.machine.provenance import code_revision, versions

    pins = read_pins()
    kit = {"mini-r1": __version__, "revision": code_revision(), "python": platform.python_version()}
    found = {**kit, **versions(sorted(pins))}
    if as_json:
        print(json.dumps({**found, "pinned": pins}))
        return
    for name, value in found.items():
        pinned = f" (pinned: {pins[name]})" if name in pins else ""
        print(f"{name} {value or ('not installed' if pinned else 'unknown')}{pinned}")


def _print_version(context: click.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:  # that of shell completion
        version()
        raise typer.Exit


def options_of_all(
    _: Annotated[
        bool, Option("--version", is_eager=True, callback=_print_version, help="Print versions, and exit.")
    ] = False,
) -> None:
    """Reproduce DeepSeek-R1's 'aha moment': GRPO on the Countdown game, on a laptop or a cluster."""


CONTENTS: dict[str, list[Callable[..., Any] | typer.Typer]] = {
    "Train": [demo, train, launch],
    "Prepare": [recipes_app, plan, prefetch, doctor, data_app],
    "Inspect": [runs_app, health, logs, samples, report, evaluate, play, score],
    "Share": [publish, bundle, version],
}
"""Commands by the panel of `mini-r1 --help` that lists them."""

app = typer.Typer(
    name="mini-r1",
    cls=CommandGroup,
    callback=options_of_all,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for panel, commands in CONTENTS.items():
    for command in commands:
        if isinstance(command, typer.Typer):
            app.add_typer(command, rich_help_panel=panel)
        else:
            app.command(rich_help_panel=panel)(command)

CTRL_C = 130  # typer's exit code for a Ctrl-C that the command did not handle


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 78, usage errors included."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # in a locale without UTF-8
    if sys.stderr is not None:  # None if it is closed
        sys.stderr = BestEffortStream(sys.stderr)  # type: ignore[assignment]
    try:
        code = _run()
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = int(ExitCode.FAILED)
    unwritten = flush_output()
    exit_process(code if unwritten is None else _report_unwritten(unwritten))


def _run() -> int:
    """Run the command and return its exit code; a disk error is one sentence and exit code 150."""
    try:
        result = _prepare_parameters(typer.main.get_command(app))(prog_name="mini-r1", standalone_mode=False)
        if result == CTRL_C:
            return _report("interrupted", ExitCode.INTERRUPTED)
        return int(result) if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _report("interrupted", ExitCode.INTERRUPTED)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"\nSee `{context.command_path} --help`." if context is not None else ""
        return _report(error.format_message() + hint, ExitCode.CONFIG)
    except KitError as error:
        return _report(error.message, error.exit_code)
    except BrokenPipeError as error:
        return _report_unwritten(error)
    except Exception as error:
        described = path_error(error) if isinstance(error, OSError) else None
        if described is None:
            _print_json_error(f"{type(error).__name__}: {error}", ExitCode.FAILED)
            raise  # a defect: its report needs the traceback
        return _report(described.message, described.exit_code)


def _report_unwritten(error: OSError) -> int:
    """Report output that could not be written, and return the exit code."""
    described = disk_error(error)
    if isinstance(error, BrokenPipeError) or described is None:  # the reader of our output has gone
        sys.stderr.close()
        return int(ExitCode.FAILED)
    return _report(described.message, described.exit_code)


def _report(message: str, code: ExitCode) -> int:
    """Print an error on standard error, with --json also as an object on standard output; return its exit code."""
    _print_json_error(message, code)
    print(f"{'' if code == ExitCode.INTERRUPTED else 'error: '}{printable(message)}", file=sys.stderr)
    return int(code)


def _print_json_error(message: str, code: ExitCode) -> None:
    if "--json" in sys.argv:
        with contextlib.suppress(OSError):
            print(json.dumps({"error": message, "exit_code": int(code)}))


def _prepare_parameters(command: click.Command) -> click.Command:
    """Expand every path, and remove `[default: None]`, which typer shows, from the help."""
    for parameter in command.params:
        if type(parameter.type) is click.Path:
            expanded = ExpandedPath()
            vars(expanded).update(vars(parameter.type))
            parameter.type = expanded
        if parameter.default is None and isinstance(parameter, click.Option | TyperArgument):
            parameter.show_default = False
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        _prepare_parameters(below)
    return command
