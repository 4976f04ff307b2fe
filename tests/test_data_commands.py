"""`data generate` and `data inspect` as a user stops them: 143, a last line, and nothing half-written."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mini_r1.cli import data_commands
from mini_r1.errors import KitError
from mini_r1.tasks.countdown import data
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.tasks.countdown.data import read_problems
from mini_r1.tasks.countdown.generator import generate

from tests.conftest import command
from tests.training.workers import Workers, kit, run_forked

HARD = {"nums": [71, 73, 79, 83, 89, 97, 41, 43], "target": 999_999_937}
"""A row without a solution, whose whole search takes an hour."""


def generate_and_stop(moment: str, number: signal.Signals, *args: str | Path) -> None:
    """`mini-r1 ARGS`, which gets a signal at its third problem, or while it writes the file."""
    generate, replace = CountdownTask.generate, os.replace

    def generated(*given: Any) -> Iterator[Any]:
        for count, problem in enumerate(generate(*given), start=1):
            if moment == "generating" and count == 4:
                os.kill(os.getpid(), number)
            yield problem

    def replaced(*given: Any) -> None:
        if moment == "writing":
            os.kill(os.getpid(), number)
        replace(*given)

    CountdownTask.generate, os.replace = generated, replaced  # type: ignore[method-assign]
    kit(*args)


@pytest.mark.parametrize(
    ("moment", "number", "done"),
    [("generating", signal.SIGTERM, "3 of 200"), ("generating", signal.SIGINT, "3 of 200"),
     ("writing", signal.SIGTERM, "200 of 200")],
)  # fmt: skip
def test_a_stopped_generate_leaves_the_file_as_it_was(
    tmp_path: Path, moment: str, number: signal.Signals, done: str
) -> None:
    out = tmp_path / "data" / "problems.jsonl"
    out.parent.mkdir()
    out.write_text("what was there\n")
    args = ("data", "generate", "--rows", "200", "--seed", "3", "--out", out, "--overwrite")
    with Workers(None, generate_and_stop, moment, number, *args, folder=tmp_path / "logs") as workers:
        (ended,) = workers.wait()
    assert ended.code == 143, ended.errors
    last = ended.errors.splitlines()[-1]
    said = f"stopped after {done} problems, and {out} was not written: the same command starts from the beginning"
    assert last == said
    assert [path.name for path in out.parent.iterdir()] == ["problems.jsonl"]
    assert out.read_text() == "what was there\n"


def inspect_and_stop(number: signal.Signals, *args: str | Path) -> None:
    """`mini-r1 ARGS`, which gets a signal in its first search."""
    solvable = data.solvable

    def stopped(*given: Any) -> Any:
        os.kill(os.getpid(), number)
        return solvable(*given)

    data.solvable = stopped
    kit(*args)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_inspect_exits_143(tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(HARD) + "\n")
    with Workers(None, inspect_and_stop, number, "data", "inspect", file, folder=tmp_path / "logs") as workers:
        (ended,) = workers.wait()
    assert ended.code == 143, ended.errors
    assert ended.errors.splitlines()[-1] == f"stopped: {file} was not inspected to its end"
    assert ended.output == ""


def test_inspect_names_the_rows_that_it_did_not_check_to_the_end(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"nums": [1, 2], "target": 3}, *[HARD] * 7]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = run_forked("data", "inspect", file, "--json", folder=tmp_path / "logs")
    assert ended.code == 0, ended.errors
    facts = json.loads(ended.output)
    assert facts["unchecked_rows"] == [2, 3, 4, 5, 6, 7, 8]
    assert facts["solvable_share"] == 1.0
    assert f"{file}: rows 2, 3, 4, 5, 6 and 2 more: whether there is a solution was not checked" in ended.errors
    assert "rows 8/8" in ended.errors


# --- what generate writes, and what it refuses before it works ---


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.json", "a.csv", "A.CSV", "a b.Parquet"])
def test_generate_writes_the_form_of_the_suffix(tmp_path: Path, name: str) -> None:
    ended = run_forked("data", "generate", "--rows", "30", "--out", tmp_path / name, folder=tmp_path / "logs")
    assert ended.code == 0, ended.errors
    assert read_problems(tmp_path / name) == list(generate(30, 42))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "logs"])


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("a.xlsx", "a.xlsx: unknown kind of file; .parquet, .jsonl, .json, .csv can be written"),
        ("a", "a: unknown kind of file"),
        ("a.jsonl.gz", "a.jsonl.gz: unknown kind of file"),
        ("no/such/a.csv", "no/such: no such folder: make it with `mkdir -p no/such`"),
        ("my data/a.csv", "my data: no such folder: make it with `mkdir -p 'my data'`"),
        ("there.csv/a.csv", "there.csv: no such folder"),
        ("there.csv", "there.csv exists: name another file, or replace it with --overwrite"),
        ("link.csv", "link.csv exists: name another file"),
        ("/sys/kernel/a.csv", "/sys/kernel"),
    ],
)
def test_generate_refuses_an_output_before_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CountdownTask, "generate", lambda *_: pytest.fail("it worked"))
    Path("there.csv").write_text("mine")
    Path("link.csv").symlink_to("there.csv")
    if out.startswith("/sys"):
        monkeypatch.setattr(data_commands.os, "access", lambda *_: False)  # stand-in: root may write anywhere
    with pytest.raises(KitError, match=re.escape(message)) as caught:
        data_commands.data_generate(3, Path(out))
    assert caught.value.exit_code == 78
    assert Path("there.csv").read_text() == "mine"


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 78), ("", 78)])
def test_generate_asks_at_a_terminal_before_it_replaces_a_file(tmp_path: Path, answer: str, code: int) -> None:
    out = tmp_path / "a.csv"
    out.write_text("mine")
    ours, theirs = pty.openpty()
    arguments = [*command(), "data", "generate", "--rows", "3", "--out", str(out)]
    with subprocess.Popen(arguments, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        os.write(ours, f"{answer}\n".encode())
        process.wait(120)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "Replace it?" in shown
    assert process.returncode == code, shown
    assert (out.read_text() == "mine") == (code != 0)


# --- what inspect reads of a folder ---


def test_inspect_reads_that_folder_only_and_the_split_that_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for name, target in (("train.csv", 1), ("test.csv", 2), ("other/x.csv", 3), ("data/dev.csv", 4)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"nums,target\n{target},{target}\n")
    for options, target in (((), 1), (("--split", "test"), 2), (("--split", "validation", "--config", "default"), 4)):
        ended = run_forked("data", "inspect", folder, *options, "--json", folder=tmp_path / "logs")
        assert ended.code == 0, ended.errors
        assert json.loads(ended.output)["target"] == {"min": target, "max": target}
    for options, message in (
        (("--split", "dev"), f"{folder} has no split 'dev'; there are: validation, test, train"),
        (("--config", "x"), f"{folder} has no configuration 'x'; there are: default"),
    ):
        ended = run_forked("data", "inspect", folder, *options, folder=tmp_path / "logs")
        assert (ended.code, message in ended.errors) == (78, True), ended.errors
