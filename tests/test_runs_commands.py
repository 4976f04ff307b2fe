"""`mini-r1 runs show`, `runs rm` and `logs`, and the names of runs that every command takes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_r1.errors import ExitCode, KitError
from mini_r1.run import log_tail
from mini_r1.run.files import write_json
from mini_r1.run.log_tail import LogTail, read_logs
from mini_r1.run.removal import check_removable, remove_run
from mini_r1.run.run_dir import RunDir

from tests.conftest import command

Kit = Callable[..., subprocess.CompletedProcess[str]]

ENDED = {"state": "finished", "step": 7, "reason": "finished", "hang_timeout_s": 600}


def make(folder: Path, **state: Any) -> RunDir:
    """A run that has ended, or with this state."""
    run = RunDir(folder)
    (run.attempts / "1").mkdir(parents=True)
    run.recipe_file.write_text("max_steps: 7\n")
    write_json(run.state_file, {**ENDED, "heartbeat": time.time(), **state})
    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ("samples", "first"),
        ("report", "first", "--samples=0"),
        ("bundle", "first"),
        ("health", "first"),
        ("logs", "first"),
        ("runs", "first"),
        ("runs", "show", "first"),
        ("runs", "rm", "first", "--yes"),
    ],
    ids=" ".join,
)
def test_every_command_takes_the_name_of_a_run(tmp_path: Path, mini_r1: Kit, arguments: tuple[str, ...]) -> None:
    run = make(tmp_path / "runs/first")
    run.recipe_file.write_text("model_name_or_path: x\n")
    done = mini_r1(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [("play",), ("publish", "--repo=x"), ("evaluate",)], ids=" ".join)
def test_commands_that_need_a_snapshot_find_the_run_by_its_name(
    tmp_path: Path, mini_r1: Kit, arguments: tuple[str, ...]
) -> None:
    run = make(tmp_path / "runs/first", state="running", phase="model", step=0)
    run.recipe_file.unlink()
    run.attempts.joinpath("1").rmdir()
    done = mini_r1(arguments[0], "first", *arguments[1:], cwd=tmp_path)
    assert done.returncode == 150, done.stderr
    assert "runs/first runs: step 0, phase model" in done.stderr


# --- show and rm ---


def test_a_run_is_shown(tmp_path: Path, mini_r1: Kit) -> None:
    make(tmp_path / "runs/first", state="failed", reason="\x1b[2Jdisk")
    done = mini_r1("runs", "show", "first", cwd=tmp_path)
    assert r"failed at step 7: \x1b[2Jdisk" in " ".join(done.stdout.split())
    found = json.loads(mini_r1("runs", "show", "first", "--json", cwd=tmp_path).stdout)
    assert (found["run"], found["state"], found["steps"]) == ("runs/first", "failed", 7)
    assert mini_r1("runs", "show", "second", cwd=tmp_path).returncode == 78


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"state": "running", "phase": "rollout"}, "runs: step 7, phase rollout"),
        ({"state": "running", "phase": "model", "step": 0}, "runs: step 0"),
        ({"state": "finished"}, None),
        ({"state": "failed"}, None),
        ({"state": "interrupted"}, None),
        ({"state": "running", "heartbeat": 5.0}, None),  # dead
        ({"state": "dancing"}, None),
    ],
    ids=str,
)
def test_a_run_in_progress_is_not_deleted(tmp_path: Path, state: dict[str, Any], said: str | None) -> None:
    run = make(tmp_path / "run", **state)
    if said is None:
        assert remove_run(check_removable(run.path, time.time())) > 0
        assert list(tmp_path.iterdir()) == []
        return
    with pytest.raises(KitError, match=said) as caught:
        check_removable(run.path, time.time())
    assert caught.value.exit_code == ExitCode.CONFIG


def test_a_run_that_a_process_holds_is_not_deleted(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    with run.claim(), pytest.raises(KitError, match="stop it before you delete it"):
        check_removable(run.path, time.time())


@pytest.mark.parametrize("name", ["nothing", "project", "link", "file", "outer", "gone"])
def test_what_is_no_run_is_not_deleted(tmp_path: Path, name: str) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "recipe.yaml").touch()
    (tmp_path / "link").symlink_to(make(tmp_path / "target").path)
    (tmp_path / "file").touch()
    make(tmp_path / "outer")
    make(tmp_path / "outer" / "inner")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KitError, match=r"holds no run|is a link|holds other runs"):
        check_removable(tmp_path / name, time.time())
    assert sorted(tmp_path.rglob("*")) == before


def test_links_in_a_run_are_deleted_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/weights").write_bytes(b"x" * 10_000)
    run = make(tmp_path / "run")
    (run.path / "checkpoints").symlink_to(tmp_path / "mine")
    (run.path / "weights").symlink_to(tmp_path / "mine/weights")
    run.lock_path.symlink_to(tmp_path / "mine/lock")
    assert remove_run(check_removable(run.path, time.time())) < 5_000
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "weights"]


def test_deleting_says_how_much_it_freed(tmp_path: Path, mini_r1: Kit) -> None:
    for name in ("first", "second"):
        (make(tmp_path / "runs" / name).path / "weights").write_bytes(b"x" * (3 << 20))
    make(tmp_path / "runs/third", state="running", phase="rollout")
    refused = mini_r1("runs", "rm", "first", "third", "--yes", cwd=tmp_path)
    assert (refused.returncode, (tmp_path / "runs/first").exists()) == (78, True)
    unasked = mini_r1("runs", "rm", "first", cwd=tmp_path)
    assert (unasked.returncode, (tmp_path / "runs/first").exists()) == (78, True)
    assert "add --yes" in unasked.stderr
    done = mini_r1("runs", "rm", "first", "second", "runs/first", "--yes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "freed 6.0 MiB" in done.stdout
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["third"]


@pytest.mark.parametrize(("answer", "left"), [("y\n", False), ("n\n", True), ("\n", True)])
def test_deleting_asks_on_a_terminal(tmp_path: Path, answer: str, left: bool) -> None:
    run = make(tmp_path / "run")
    leader, terminal = pty.openpty()
    process = subprocess.Popen(
        [*command(), "runs", "rm", str(run.path), "--json"],
        stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.write(leader, answer.encode())
    output, errors = process.communicate(timeout=60)
    os.close(leader)
    os.close(terminal)
    assert process.returncode == 0, errors
    assert "Delete and free" in errors
    assert run.path.exists() is left
    assert (output.strip() == "") is left
    if not left:
        assert json.loads(output)["deleted"] == [str(run.path)]


# --- logs ---


def test_lines_of_a_log_are_safe_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rank-0.log"
    tail = LogTail(path)
    assert list(tail.read()) == []
    path.write_bytes(b"one\ntwo \x1b[31m\xff\n 10%\r 20%\r\nhalf")
    assert list(tail.read()) == [
        "rank-0.log: one", r"rank-0.log: two \x1b[31m" + "\ufffd", "rank-0.log:  10%", "rank-0.log:  20%",
    ]  # fmt: skip
    with path.open("ab") as file:
        file.write(b" a line\nnext")
    assert list(tail.read()) == ["rank-0.log: half a line"]
    assert list(tail.read(ended=True)) == ["rank-0.log: next"]
    path.write_bytes(b"anew\n")
    assert list(tail.read()) == ["rank-0.log: anew"]
    monkeypatch.setattr(log_tail, "READ_BYTES", 4)
    path.write_bytes(b"a line without an end that is long")
    lines = LogTail(path).read(ended=True)
    assert "".join(line.removeprefix("rank-0.log: ") for line in lines) == path.read_text()


def test_a_pipe_among_the_logs_is_not_waited_for(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    os.mkfifo(run.attempts / "1/rank-0.log")
    assert list(read_logs(run, 0, follow=True)) == []


def test_the_logs_of_the_newest_attempt_are_followed_until_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path / "run", state="running", phase="rollout")
    for attempt, rank in ((1, 0), (2, 0), (2, 1)):
        (run.attempts / str(attempt)).mkdir(exist_ok=True)
        text = "".join(f"attempt {attempt} line {i}\n" for i in range(30))
        (run.attempts / str(attempt) / f"rank-{rank}.log").write_text(text)
    (run.attempts / "10").mkdir()

    def append(name: str, text: str) -> None:
        (run.attempts / "10").mkdir(exist_ok=True)
        with (run.attempts / name).open("a") as file:
            file.write(text)

    events = [
        lambda: append("10/rank-0.log", "begins\n"),
        lambda: append("10/rank-1.log", "joins\npartial"),
        lambda: append("10/rank-1.log", " line\n"),
        lambda: (append("10/rank-0.out", "last words"), write_json(run.state_file, {**ENDED, "heartbeat": 5.0})),
    ]  # fmt: skip
    monkeypatch.setattr(log_tail.time, "sleep", lambda seconds: events.pop(0)())
    assert list(read_logs(run, 2, follow=True)) == [
        "rank-0.log: begins", "rank-1.log: joins", "rank-1.log: partial line", "rank-0.out: last words",
    ]  # fmt: skip
    (run.attempts / "10" / "rank-1.log").unlink()
    assert list(read_logs(run, 1)) == ["rank-0.log: begins", "rank-0.out: last words"]


def test_ctrl_c_stops_following_and_not_the_run(tmp_path: Path) -> None:
    run = make(tmp_path / "run", state="running", phase="rollout")
    (run.attempts / "1/rank-0.log").write_text("at work\n")
    process = subprocess.Popen(
        [*command(), "logs", "-f", str(run.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "rank-0.log: at work\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "stopped following; the run continues\n")


def test_logs_end_with_the_state_of_the_run(tmp_path: Path, mini_r1: Kit) -> None:
    run = make(tmp_path / "run", state="failed", reason="a\x07hang")
    done = mini_r1("logs", run.path, "-f")
    assert done.returncode == 0
    assert "no logs yet" in done.stderr
    assert rf"{run.path} failed at step 7: a\x07hang" in done.stderr
    assert mini_r1("logs", tmp_path / "none").returncode == 78


def test_no_command_of_these_loads_torch() -> None:
    code = "import sys, mini_r1.cli.runs_app, mini_r1.run.removal; print({'torch', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
