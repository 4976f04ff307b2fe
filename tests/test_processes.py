"""Whether a process has ended: known on the kernel that ran it, and never reported of one that may run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mini_r1.machine import processes
from mini_r1.machine.processes import is_gone, this_process

PRINT = (
    "import json; from mini_r1.machine.processes import this_process as t; print(json.dumps(t()), flush=True); input()"
)


@contextmanager
def another() -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Start a process that waits for a line; yield it and its own description."""
    import json

    with subprocess.Popen(
        [sys.executable, "-c", PRINT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())


def test_a_process_that_runs_is_there_and_one_that_was_killed_is_gone() -> None:
    assert is_gone(this_process()) is False
    with another() as (process, described):
        assert described["pid"] == process.pid
        assert is_gone(described) is False
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(described) is True  # a zombie
        process.wait()
        assert is_gone(described) is True


def test_another_process_with_the_same_id_is_another_one() -> None:
    described = this_process()
    assert described is not None
    assert is_gone({**described, "started": described["started"] - 1}) is True


@pytest.mark.parametrize("changes", [{"boot": "another"}, {"namespace": "pid:[1]"}, {"boot": None}])
def test_a_process_of_another_kernel_or_container_is_not_known(changes: dict[str, Any]) -> None:
    described = this_process()
    assert described is not None
    assert is_gone({**described, "started": 0}) is True
    assert is_gone({**described, "started": 0, **changes}) is False


@pytest.mark.parametrize("pid", [None, 0, -1, True, "1", 1.5, 10**30, [1]])
def test_what_is_no_process_is_not_gone(pid: object) -> None:
    assert is_gone({**(this_process() or {}), "pid": pid}) is False
    assert is_gone(pid) is False


def test_a_process_that_proc_hides_is_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with another() as (process, described):
        (tmp_path / "sys/kernel/random").mkdir(parents=True)
        (tmp_path / "sys/kernel/random/boot_id").write_text(described["boot"])
        (tmp_path / "self/ns").mkdir(parents=True)
        (tmp_path / "self/ns/pid").symlink_to(described["namespace"])
        monkeypatch.setattr(processes, "PROC", tmp_path)
        assert is_gone(described) is False
        process.kill()
        process.wait()
        assert is_gone(described) is True


def test_without_proc_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = this_process()
    monkeypatch.setattr(processes, "PROC", tmp_path)
    assert this_process() is None
    assert is_gone({**(described or {}), "started": 0}) is False
