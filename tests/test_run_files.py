"""The files of a run directory: a start before its first attempt, the state, the lock, pipes and damaged files."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from mini_r1.errors import KitError
from mini_r1.run import run_dir
from mini_r1.run.files import AppendFile, folder_bytes, lock_file, read_jsonl, read_object, replacing, write_json
from mini_r1.run.manifest import seal
from mini_r1.run.run_dir import RunDir

from tests.power_cut import recorded_syncs


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    return run


@pytest.mark.parametrize(
    ("there", "starting"),
    [
        ([], False),
        (["state.json"], True),
        (["state.json", "attempts/0"], True),
        (["state.json", "attempts/1"], False),
        (["state.json", "attempts/0", "attempts/1"], False),
        (["state.json", "recipe.yaml"], False),
        (["attempts/0"], False),
        (["recipe.yaml"], False),
    ],
)
def test_a_run_is_starting_until_its_first_attempt(run: RunDir, there: list[str], starting: bool) -> None:
    for name in there:
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text("")
    assert run.is_starting() == starting


def test_a_run_without_run_json_has_no_id_to_save_under(run: RunDir) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        run.require_id()
    assert missing.value.filename == str(run.run_file)
    write_json(run.run_file, {"run_id": "abc"})
    assert run.require_id() == "abc"


def test_a_run_without_a_snapshot_is_an_error(run: RunDir) -> None:
    with pytest.raises(KitError, match="has no complete snapshot yet"):
        run.require_snapshots()
    (run.snapshots / "written").mkdir(parents=True)
    seal(run.snapshots / "written", run.snapshots / "step-2", run_id="")
    assert [saved.step for saved in run.require_snapshots()] == [2]


# --- state.json ---


@pytest.mark.parametrize(("state", "waits"), [("running", False), ("finished", True), ("failed", True)])
def test_only_the_last_state_waits_for_the_disk(run: RunDir, state: str, waits: bool) -> None:
    with recorded_syncs(run.path) as recording:
        run.write_state(state)
    recording.close()
    assert bool(recording.synced) == waits
    assert run.read_state()["state"] == state


def test_after_a_failure_the_state_waits_for_no_disk(run: RunDir) -> None:
    with recorded_syncs(run.path) as recording:
        assert run.write_last_state("failed", reason="full") is True
        assert run.write_last_state("interrupted", heartbeat=5.0) is True
    recording.close()
    assert recording.synced == []
    assert run.read_state() == {"state": "interrupted", "heartbeat": 5.0}


def test_the_old_state_is_overwritten_if_there_is_no_space_for_a_second_file(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_dir, "write_json", full)
    assert run.write_last_state("failed") is False
    assert not run.state_file.exists()
    run.state_file.write_text(json.dumps({"state": "running", "phase": "x" * 100}))
    assert run.write_last_state("failed", heartbeat=5.0) is True
    assert json.loads(run.state_file.read_text()) == {"state": "failed", "heartbeat": 5.0}


# --- files ---


def test_json_is_indented(tmp_path: Path) -> None:
    write_json(tmp_path / "some.json", {"a": [1], "path": Path("b")})
    assert (tmp_path / "some.json").read_text() == '{\n  "a": [\n    1\n  ],\n  "path": "b"\n}\n'


def test_lines_after_a_broken_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_bytes(b'{"a": 1}\n{"b": \n\x00\x00\n[2]\n' + b"[" * 100_000 + b'\n{"c": 3}\n')
    assert list(read_jsonl(tmp_path / "some.jsonl")) == [{"a": 1}, {"c": 3}]


@pytest.mark.parametrize(("size", "read"), [(16 * 1024 * 1024, True), (16 * 1024 * 1024 + 1, False)])
def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path, size: int, read: bool) -> None:
    (tmp_path / "some.json").write_bytes(b'{"a": 1}'.ljust(size))
    assert read_object(tmp_path / "some.json") == ({"a": 1} if read else {})


def test_pipes_and_folders_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"opened {path}, where it might wait for ever"))
    os.mkfifo(tmp_path / "pipe")
    assert read_object(tmp_path / "pipe") == {}
    assert read_object(tmp_path) == {}
    assert read_object(tmp_path / "none") == {}


def test_a_file_is_replaced_for_good_unless_it_says_otherwise(tmp_path: Path) -> None:
    with recorded_syncs(tmp_path) as recording, replacing(tmp_path / "some.txt") as scratch:
        scratch.write_text("new")
    recording.close()
    assert len(recording.synced) == 2  # the file and its folder


def test_what_was_appended_is_in_the_file_at_once(tmp_path: Path) -> None:
    file = AppendFile(tmp_path / "some.jsonl")
    file.write(b"one\n")
    assert (tmp_path / "some.jsonl").read_bytes() == b"one\n"
    file.close()


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "some" / "folder").mkdir(parents=True)
    assert folder_bytes(tmp_path / "some") == 0
    (tmp_path / "some" / "a").write_bytes(b"123")
    (tmp_path / "some" / "folder" / "b").write_bytes(b"45")
    assert folder_bytes(tmp_path / "some") == 5


def test_folders_that_were_made_are_there_after_a_power_cut(tmp_path: Path) -> None:
    with recorded_syncs(tmp_path) as recording:
        attempt = RunDir(tmp_path / "some" / "run").start_attempt()
    recording.cut(len(recording.synced), tmp_path.with_name(f"{tmp_path.name}-left"))
    recording.close()
    assert (tmp_path.with_name(f"{tmp_path.name}-left") / attempt.relative_to(tmp_path)).is_dir()


# --- the lock ---


@pytest.mark.parametrize(
    ("answer", "ours"),
    [(None, True), (BlockingIOError(errno.EWOULDBLOCK, ""), False), (OSError(errno.ENOLCK, ""), True)],
)
@pytest.mark.parametrize(("wait", "flags"), [(False, fcntl.LOCK_EX | fcntl.LOCK_NB), (True, fcntl.LOCK_EX)])
def test_a_file_is_locked_unless_another_process_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: OSError | None, ours: bool, wait: bool, flags: int
) -> None:
    asked: list[int] = []

    def flock(handle: Any, operation: int) -> None:
        asked.append(operation)
        if answer is not None:
            raise answer

    monkeypatch.setattr(fcntl, "flock", flock)
    with (tmp_path / ".lock").open("w") as handle:
        assert lock_file(handle, wait=wait) is ours
    assert asked == [flags]


def test_without_locks_a_file_counts_as_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with (tmp_path / ".lock").open("w") as handle:
        assert lock_file(handle)
