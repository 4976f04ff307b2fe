"""`data generate` and `data inspect` as a user stops them: 143, a last line, and nothing half-written."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mini_r1.cli import data_commands
from mini_r1.tasks.countdown import data

from tests.training.workers import Workers, kit, run_forked

HARD = {"nums": [71, 73, 79, 83, 89, 97, 41, 43], "target": 999_999_937}
"""A row without a solution, whose whole search takes an hour."""


def generate_and_stop(moment: str, number: signal.Signals, *args: str | Path) -> None:
    """`mini-r1 ARGS`, which gets a signal at its third problem, or while it writes the file."""
    generate, replace = data_commands.generate, os.replace

    def generated(*given: Any) -> Iterator[Any]:
        for count, problem in enumerate(generate(*given), start=1):
            if moment == "generating" and count == 4:
                os.kill(os.getpid(), number)
            yield problem

    def replaced(*given: Any) -> None:
        if moment == "writing":
            os.kill(os.getpid(), number)
        replace(*given)

    data_commands.generate, os.replace = generated, replaced
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
    args = ("data", "generate", "--rows", "200", "--seed", "3", "--out", out)
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
