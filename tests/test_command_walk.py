"""A walk through all commands: help, versions, completion, mistyped names, and bad values for every parameter.

The commands and their parameters are read from the command line itself, so a new one is walked through, too.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import typer
from mini_r1 import __version__
from mini_r1.cli import app as command_line
from mini_r1.doctor.software import read_pins
from mini_r1.machine import heavy_imports
from mini_r1.recipe import recipe_file
from mini_r1.recipe.recipe_file import dump_recipe, find_recipe, load_recipe
from mini_r1.run.files import write_json
from mini_r1.run.run_dir import RunDir

from tests.conftest import command as installed

Kit = Callable[..., subprocess.CompletedProcess[str]]

# What makes a command complete; every test replaces or adds one parameter.
ARGUMENTS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("train",): ("demo-cpu",),
    ("launch",): ("demo-cpu", "--dry-run"),
    ("recipes", "show"): ("demo-cpu",),
    ("plan",): ("demo-cpu",),
    ("prefetch",): ("demo-cpu",),
    ("data", "generate"): ("--rows=2", "--out=made.jsonl"),
    ("data", "inspect"): ("rows.jsonl",),
    ("score",): ("rows.jsonl",),
    ("samples",): ("run",),
    ("report",): ("run",),
    ("evaluate",): ("run",),
    ("play",): ("run",),
    ("publish",): ("run", "--repo=a/b", "--dry-run"),
    ("bundle",): ("run", "--out=made.tar.gz"),
    ("logs",): ("run",),
    ("runs", "show"): ("run",),
    ("runs", "rm"): ("run",),
}
NO_NUMBERS = ("-1", str(10**30), "x", "", "1.5", "nan", "inf", "1e400")
NO_OVERRIDES = (
    "", "x", "=", "=1", "beta=[", "beta={}}", "beta=x", "watch=1", "a.b.c=1", "seed=" + "9" * 5000, "beta=\udcff",
)  # fmt: skip
PATHS = (
    "missing", "", "a-folder", "empty", "text", "binary", "latin-1", "deep.json", "bad.yaml", "empty.jsonl",
    "binary.jsonl", "binary.parquet", "loop", "text/below", "~no-such-user/x", "$NOT_SET/x", "/proc/self/mem",
    "n" * 300, "a\udcffb", "\x1b[31mred",
)  # fmt: skip
REPORTS = ("doctor", "plan", "health")
"""Commands whose result, also a bad one, is a table or an object that differs from an error."""


class Done(NamedTuple):
    """How a command ended; `code` is None where it would have loaded torch."""

    code: int | None
    output: str
    errors: str


class LoadsTorch(BaseException):
    """Raised in place of the imports that take seconds."""


def run_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Done:
    """Run `mini-r1 ARGUMENTS` in this process, up to where it loads torch."""

    def refuse() -> None:
        raise LoadsTorch

    output, errors = io.StringIO(), io.StringIO()
    monkeypatch.setattr(heavy_imports, "no_garbage_collection", refuse)
    monkeypatch.setattr(sys, "argv", ["mini-r1", *arguments])
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            code: int | None = command_line._run()
        except LoadsTorch:
            code = None
    return Done(code, output.getvalue(), errors.getvalue())


def commands_below(group: click.Group, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield the names and commands, groups that do something themselves included."""
    for word, found in group.commands.items():
        if not isinstance(found, click.Group) or found.invoke_without_command:
            yield (*name, word), found
        if isinstance(found, click.Group):
            yield from commands_below(found, (*name, word))


COMMANDS = dict(commands_below(typer.main.get_command(command_line.app)))  # type: ignore[arg-type]


def bad_values(parameter: click.Parameter) -> tuple[str, ...]:
    if isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType):
        return NO_NUMBERS
    return NO_OVERRIDES if parameter.name == "overrides" else PATHS


def lines_of(name: tuple[str, ...], parameter: click.Parameter) -> Iterator[tuple[str, list[str]]]:
    """Yield each bad value of a parameter, and the command line that has it."""
    given = list(ARGUMENTS.get(name, ()))
    for value in bad_values(parameter):
        if isinstance(parameter, click.Argument):
            yield value, [*name, value, *(given[1:] if parameter.required or given[:1] != ["--rows=2"] else given)]
        else:
            option = max(parameter.opts, key=len)
            yield value, [*name, *(one for one in given if not one.startswith(f"{option}=")), f"{option}={value}"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folder of every command: files of PATHS, a run and rows that are right."""
    texts = {
        "empty": b"", "text": b"hello\n", "binary": bytes(range(256)) * 8, "latin-1": "é: ü\n".encode("latin-1"),
        "deep.json": b"[" * 100_000, "bad.yaml": b"a: [1\nb: {", "empty.jsonl": b"", "binary.jsonl": bytes(range(256)),
        "binary.parquet": bytes(range(256)),
        "rows.jsonl": b'{"nums": [1, 2], "target": 3, "completion": "</think>\\n<answer>1 + 2</answer>"}\n',
    }  # fmt: skip
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "a-folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    run = RunDir(tmp_path / "run")
    (run.attempts / "1").mkdir(parents=True)
    run.recipe_file.write_text(dump_recipe(load_recipe(find_recipe("demo-cpu"))))
    write_json(run.run_file, {})
    write_json(run.state_file, {"state": "finished", "step": 5, "heartbeat": time.time()})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("MINI_R1_CACHE", str(tmp_path / "cache"))
    return tmp_path


# --- bad values ---


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_a_bad_value_is_a_sentence_and_an_exit_code(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: tuple[str, ...]
) -> None:
    found = COMMANDS[name]
    has_json = any("--json" in parameter.opts for parameter in found.params)
    for parameter in found.params:
        if getattr(parameter, "is_flag", False):
            continue
        for value, line in lines_of(name, parameter):
            done = run_here(monkeypatch, *line, *(["--json"] if has_json else []))
            said = f"{line}: {done}"
            assert "Traceback" not in done.errors, said
            if bad_values(parameter) is not PATHS and value not in ("-1", "1.5", str(10**30)):
                assert done.code == 78, said
            assert done.code in (None, 0, 78, 150) or name == ("health",), said
            if done.code in (78, 150):
                assert (done.errors + done.output).strip(), said
                assert (done.errors + done.output).replace("\n", "").isprintable(), said
                if has_json:
                    result = json.loads(done.output)
                    assert name[0] in REPORTS or result["exit_code"] == done.code, said


@pytest.mark.parametrize(
    "line",
    [
        ("train", "{}"), ("plan", "{}"), ("prefetch", "{}"), ("recipes", "show", "{}"), ("doctor", "{}"),
        ("launch", "{}", "--dry-run"), ("demo", "--run-dir={}"), ("train", "demo-cpu", "--run-dir={}"),
        ("train", "demo-cpu", "--deepspeed={}"), ("data", "inspect", "{}"), ("samples", "{}"), ("play", "{}"),
        ("evaluate", "{}"), ("publish", "{}", "--repo=a/b"), ("bundle", "{}"), ("runs", "{}"),
        ("data", "generate", "--rows=2", "--out={}"),
    ],
    ids=lambda line: " ".join(line),
)  # fmt: skip
@pytest.mark.parametrize(
    "path",
    ["text/below", "loop/below", "n" * 300, "", "~no-such-user/x"],
    ids=["file", "loop", "long", "empty", "user"],
)
def test_a_path_that_cannot_exist_is_refused_before_torch(
    place: Path, monkeypatch: pytest.MonkeyPatch, line: tuple[str, ...], path: str
) -> None:
    done = run_here(monkeypatch, *(word.format(path) for word in line))
    assert done.code == 78, done
    assert done.errors.startswith("error: "), done
    assert done.output == ""


# --- names, versions, completion ---


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("trian", "x"), "Did you mean `mini-r1 train`?"),
        (("eval",), "Did you mean `mini-r1 evaluate`?"),
        (("recipe",), "Did you mean `mini-r1 recipes`?"),
        (("inspect", "x"), "Did you mean `mini-r1 data inspect`?"),
        (("data", "inspct"), "Did you mean `mini-r1 data inspect`?"),
        (("recipes", "shw"), "Did you mean `mini-r1 recipes show`?"),
        (("runs", "--jsn"), "Did you mean --json?"),
        (("plan", "demo-cpu", "--gpu", "3"), "Did you mean --gpus?"),
        (("demo", "--run_dir", "x"), "Did you mean --run-dir?"),
        (("--versio",), "Did you mean --version?"),
    ],
)
def test_a_mistyped_name_gets_a_suggestion(monkeypatch: pytest.MonkeyPatch, line: tuple[str, ...], said: str) -> None:
    done = run_here(monkeypatch, *line)
    assert done.code == 78
    assert said in done.errors


def test_a_name_like_no_other_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_here(monkeypatch, "fly").errors == "error: No such command 'fly'.\nSee `mini-r1 --help`.\n"


@pytest.mark.parametrize("name", [(), *COMMANDS], ids=" ".join)
def test_h_is_help_in_a_narrow_terminal_too(monkeypatch: pytest.MonkeyPatch, name: tuple[str, ...]) -> None:
    for columns, terminal in (("80", "xterm"), ("40", "dumb"), ("1", "dumb")):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("TERM", terminal)
        assert run_here(monkeypatch, *name, "-h") == run_here(monkeypatch, *name, "--help")
        done = run_here(monkeypatch, *name, "-h")
        assert (done.code, done.errors) == (0, "")


def test_versions_are_printed_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = run_here(monkeypatch, "--version")
    assert asked == run_here(monkeypatch, "version")
    assert asked.output.startswith(f"mini-r1 {__version__}\nrevision ")
    found = json.loads(run_here(monkeypatch, "version", "--json").output)
    assert found["pinned"] == read_pins()
    for package, pinned in read_pins().items():
        assert f"{package} {found[package] or 'not installed'} (pinned: {pinned})\n" in asked.output
    code = "import sys; from mini_r1.cli.app import version; version(); print({*sys.modules} & {'torch', 'trl'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("mini-r1 tra", ["train"]),
        ("mini-r1 recipes sh", ["show"]),
        ("mini-r1 plan --gp", ["--gpus", "--gpu-memory"]),
        ("mini-r1 zzz", []),
    ],
)
def test_the_shell_completes_commands_and_options(typed: str, offered: list[str]) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    environment = {**os.environ, "_MINI_R1_COMPLETE": "complete_bash", **words}
    done = subprocess.run(installed(), env=environment, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (offered, "")


def test_completion_is_installed_for_the_user_s_shell(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", '"$@"; exit $?', "bash", *installed(), "--install-completion"],
        env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "_MINI_R1_COMPLETE=complete_bash" in (tmp_path / ".bash_completions" / "mini-r1.sh").read_text()
    (tmp_path / "file").write_text("")
    refused = subprocess.run(
        ["bash", "-c", '"$@"; exit $?', "bash", *installed(), "--install-completion"],
        env={**os.environ, "HOME": str(tmp_path / "file")}, capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode == 78
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_examples_are_command_lines_that_the_command_takes(name: tuple[str, ...]) -> None:
    _, _, examples = (COMMANDS[name].help or "").partition("Examples:\n")
    for line in examples.strip().splitlines():
        words = shlex.split(re.split(r"[|<>]", line)[0])
        program = next(index for index, word in enumerate(words) if word in ("mini-r1", "mini_r1"))
        arguments = words[program + 1 :]
        below = next(length for length in (2, 1) if tuple(arguments[:length]) in COMMANDS)
        COMMANDS[tuple(arguments[:below])].make_context("mini-r1", arguments[below:])


# --- surroundings ---


@pytest.mark.parametrize("error", [KeyboardInterrupt, click.exceptions.Abort])
def test_ctrl_c_is_a_sentence_and_143(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    def stop(name: str) -> Path:
        raise error

    monkeypatch.setattr(recipe_file, "find_recipe", stop)
    done = run_here(monkeypatch, "plan", "demo-cpu", "--json")
    assert (done.code, json.loads(done.output)) == (143, {"error": "interrupted", "exit_code": 143})
    assert done.errors == "interrupted\n"


@pytest.mark.parametrize(
    ("shell", "codes"),
    [
        ('"$@" | head -1', {0}),
        ('"$@" >&-', {0}),
        ('"$@" 2>&-', {0}),
        ('"$@" <&-', {0}),
        ('unset HOME; "$@"', {0}),
        ('HOME=/proc "$@"', {0}),
        ('TERM=dumb COLUMNS=1 "$@"', {0}),
        ('LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 "$@"', {0}),
    ],
)
def test_no_surroundings_make_a_traceback(place: Path, shell: str, codes: set[int]) -> None:
    lines = (["recipes", "reference"], ["data", "inspect", "rows.jsonl"], ["plan", "demo-cpu"], ["--help"])
    for line in lines:
        done = subprocess.run(["bash", "-c", shell, "bash", *installed(), *line], capture_output=True, text=True)
        assert done.returncode in codes, done
        assert "Traceback" not in done.stderr, done
