"""Limits of a job's attempts: what is counted in jobs/JOB-NODE.jsonl, and when a launch is the last one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_r1.errors import ExitCode, KitError
from mini_r1.launch import attempt_limits
from mini_r1.launch import launcher as launching
from mini_r1.launch.attempt_limits import AttemptLimits, LimitReached
from mini_r1.launch.job import LaunchOptions
from mini_r1.launch.peers import Ending
from mini_r1.launch.stop_order import StopOrder
from mini_r1.machine.nodes import free_port
from mini_r1.run.run_dir import RunDir

JOB = {"MINI_R1_JOB_ID": "7_2"}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def lines(run: RunDir, name: str = "7_2-0") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "jobs" / f"{name}.jsonl").read_text().splitlines()]


def attempt(run: RunDir, code: int | None, **environment: str) -> Ending | None:
    """One attempt that ends with this code; None: it is killed."""
    limits = AttemptLimits({**JOB, **environment})
    limits.begin(run, 0, StopOrder())
    return None if code is None else limits.end(Ending(ExitCode(code)))


def at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    class Newest:
        pass

    newest: Any = Newest()
    newest.step = step
    monkeypatch.setattr(RunDir, "complete_checkpoints", lambda self: [newest] if step else [])


def reached(run: RunDir, **environment: str) -> str:
    with pytest.raises(LimitReached) as raised:
        attempt(run, 0, **environment)
    assert raised.value.exit_code == 78
    return raised.value.message


# ---- failures --------------------------------------------------------------------------------------------------------


def test_three_failures_without_a_checkpoint_are_enough(run: RunDir) -> None:
    for _ in range(3):
        attempt(run, 150)
    message = reached(run)
    assert message.startswith("3 attempts in a row failed without a new checkpoint (MINI_R1_MAX_FAILURES). ")
    assert "start the job again" in message


@pytest.mark.parametrize(
    "codes",
    [
        (150, 150, 143, 150, 150),  # preempted between: not in a row
        (150, 150, None, 150),  # a lost node
        (143,) * 9,
        (None,) * 9,
        (150, 150, 0, 150),  # finished; a longer recipe has the same job's name
        (150, 150, 78, 150, 150),  # a person has corrected the recipe
    ],
)
def test_other_ends_are_no_failures(run: RunDir, codes: tuple[int | None, ...]) -> None:
    for code in codes:
        attempt(run, code)
    attempt(run, 0)


def test_a_new_checkpoint_starts_the_count_again(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (0, 0, 5, 5, 9, 9):
        at_step(monkeypatch, step)
        attempt(run, 150)
    attempt(run, 150)
    assert "3 attempts in a row" in reached(run)


def test_a_defect_counts_too(run: RunDir) -> None:
    """A Job restarts after exit code 1."""
    for code in (1, 150, 1):
        attempt(run, code)
    assert "3 attempts" in reached(run)


def test_after_a_limit_a_person_starts_from_zero(run: RunDir) -> None:
    for _ in range(3):
        attempt(run, 150)
    reached(run)
    for _ in range(3):
        attempt(run, 150)
    reached(run)


@pytest.mark.parametrize("code", [143, None])
def test_ten_attempts_without_a_checkpoint_are_enough_whatever_ended_them(run: RunDir, code: int | None) -> None:
    for _ in range(10):
        attempt(run, code)
    assert "10 attempts in a row wrote no new checkpoint" in reached(run)


# ---- restarts and hours ----------------------------------------------------------------------------------------------


def test_restarts_are_limited(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(3):
        at_step(monkeypatch, step)
        attempt(run, 143, MINI_R1_MAX_RESTARTS="2")
    assert reached(run, MINI_R1_MAX_RESTARTS="2").startswith("restarted 2 times (MINI_R1_MAX_RESTARTS)")


def test_hours_are_summed_without_the_time_between_attempts(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000.5]
    monkeypatch.setattr(attempt_limits.time, "time", lambda: now[0])
    for step in range(2):
        at_step(monkeypatch, step)
        limits = AttemptLimits(JOB)
        limits.begin(run, 0, StopOrder())
        now[0] += 3600
        limits.end(Ending(ExitCode.INTERRUPTED))
        now[0] += 500_000  # in the queue
    attempt(run, 143, MINI_R1_MAX_HOURS="2.5")
    assert reached(run, MINI_R1_MAX_HOURS="2").startswith("the attempts of this job have run for 2 hours")


def test_the_time_of_a_killed_attempt_ends_with_its_heartbeat(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000.5]
    monkeypatch.setattr(attempt_limits.time, "time", lambda: now[0])
    attempt(run, None)
    run.state_file.write_text(json.dumps({"state": "running", "step": 1, "heartbeat": now[0] + 3600}))
    now[0] += 90_000
    attempt(run, 143, MINI_R1_MAX_HOURS="1.5")
    reached(run, MINI_R1_MAX_HOURS="1")


def test_hours_that_end_during_an_attempt_stop_it(run: RunDir) -> None:
    stop = StopOrder()
    limits = AttemptLimits({**JOB, "MINI_R1_MAX_HOURS": "0.00001"})
    limits.begin(run, 0, stop)
    end = time.monotonic() + 30
    while stop.name is None and time.monotonic() < end:
        time.sleep(0.01)
    assert stop.name == "MINI_R1_MAX_HOURS"
    assert not stop.at_once
    assert limits.explain(Ending(ExitCode.FINISHED)) == Ending(ExitCode.FINISHED)
    ending = limits.end(limits.explain(Ending(ExitCode.INTERRUPTED)))
    assert ending.code == 78
    assert "MINI_R1_MAX_HOURS" in ending.text
    assert lines(run)[-1]["code"] == 78


# ---- settings and the file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("MINI_R1_MAX_FAILURES", "few", "must be a number from 0"),
        ("MINI_R1_MAX_FAILURES", "2.5", "must be a whole number"),
        ("MINI_R1_MAX_RESTARTS", "-1", "must be a number from 0"),
        ("MINI_R1_MAX_HOURS", "two days", "must be a number from 0"),
        ("MINI_R1_MAX_HOURS", "nan", "must be a number from 0"),
        ("MINI_R1_MAX_HOURS", "inf", "must be a number from 0"),
    ],
)
def test_a_wrong_limit_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(KitError, match=f"{name}=.*: {message}") as raised:
        AttemptLimits({name: text})
    assert raised.value.exit_code == 78


def test_without_a_job_nothing_is_written(run: RunDir) -> None:
    limits = AttemptLimits({"MINI_R1_JOB_ID": " "})
    limits.begin(run, 0, StopOrder())
    assert limits.end(Ending(ExitCode.RETRY)) == Ending(ExitCode.RETRY)
    assert not run.path.exists()


def test_each_job_and_node_has_a_file(run: RunDir) -> None:
    for _ in range(3):
        attempt(run, 150)
    attempt(run, 150, MINI_R1_JOB_ID="../8")
    AttemptLimits(JOB).begin(run, 1, StopOrder())
    assert sorted(path.name for path in (run.path / "jobs").iterdir()) == [".._8-0.jsonl", "7_2-0.jsonl", "7_2-1.jsonl"]
    assert [(row["event"], row["attempt"], row.get("code")) for row in lines(run)[:3]] == [
        ("start", 1, None), ("end", 1, 150), ("start", 2, None),
    ]  # fmt: skip
    with run.claim():  # a directory with these files is one to start in
        assert (run.path / "jobs").is_dir()


def test_an_attempt_is_counted_while_another_process_holds_the_run(run: RunDir) -> None:
    with run.claim():
        attempt(run, 150)
    assert lines(run)[-1]["code"] == 150


def test_an_old_process_that_ends_late_changes_only_its_own_attempt(run: RunDir) -> None:
    """A node that was given up lives on; its job's next attempt writes the same file."""
    old = AttemptLimits(JOB)
    old.begin(run, 0, StopOrder())
    attempt(run, 150)
    attempt(run, 150)
    old.end(Ending(ExitCode.RETRY))
    assert "3 attempts in a row" in reached(run)


@pytest.mark.parametrize("text", ["", "not json\n", '{"event": "start"}\n', '{"attempt": "x", "time": null}\n[]\n'])
def test_a_damaged_file_is_read_as_far_as_it_goes(run: RunDir, text: str) -> None:
    (run.path / "jobs").mkdir(parents=True)
    (run.path / "jobs" / "7_2-0.jsonl").write_text(text)
    for _ in range(3):
        attempt(run, 150)
    reached(run)


def test_a_foreign_directory_gets_no_file(run: RunDir) -> None:
    run.path.mkdir()
    (run.path / "thesis.tex").write_text("")
    attempt(run, 150)
    assert [path.name for path in run.path.iterdir()] == ["thesis.tex"]


@pytest.mark.skipif(os.geteuid() != 0, reason="/proc refuses every user, and is the folder that root cannot write")
def test_an_attempt_that_cannot_be_counted_is_not_retried() -> None:
    ending = attempt(RunDir(Path("/proc/nothing")), 150)
    assert ending is not None
    assert (ending.code, "no retry, because attempts cannot be counted in /proc" in ending.text) == (78, True)
    assert attempt(RunDir(Path("/proc/nothing")), 143) == Ending(ExitCode.INTERRUPTED)


def test_a_full_disk_is_retried_once_more(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, *rows: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mini_r1.run.files.AppendFile.write_rows", full)
    assert attempt(run, 150) == Ending(ExitCode.RETRY)
    ending = attempt(run, 150)
    assert ending is not None
    assert ending.code == 78


# ---- the launcher ----------------------------------------------------------------------------------------------------


def launch_error(recipe: Path, run: RunDir, **changes: Any) -> KitError:
    environment = {**os.environ, **JOB, "MINI_R1_ACCELERATOR": "cuda", "CUDA_VISIBLE_DEVICES": "", **changes}
    options = LaunchOptions(str(recipe), run_dir=run.path)
    with pytest.raises(KitError) as raised:
        launching.launch(options, environment, lambda text: None)
    return raised.value


def test_a_node_without_its_gpu_is_tried_three_times(small_recipe: Callable[..., Path], run: RunDir) -> None:
    """The error comes before anything is started; a PyTorchJob would restart its pod without end."""
    recipe = small_recipe()
    assert [launch_error(recipe, run).exit_code for _ in range(4)] == [150, 150, 150, 78]


def test_the_run_directory_is_printed_although_the_gpu_is_missing(
    small_recipe: Callable[..., Path], run: RunDir
) -> None:
    """The batch script asks for it; the launch that follows reports the error, and counts it."""
    environment = {**os.environ, **JOB, "MINI_R1_ACCELERATOR": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    options = LaunchOptions(str(small_recipe()), run_dir=run.path)
    dry_run = {"print_run_dir": True, "as_json": False}
    assert launching.dry_run(options, environment, lambda text: None, **dry_run) == str(run.path)
    assert not run.path.exists()
    with pytest.raises(KitError, match="MINI_R1_MAX_HOURS"):
        launching.dry_run(options, {**environment, "MINI_R1_MAX_HOURS": "x"}, lambda text: None, **dry_run)


def test_a_limit_does_not_wait_for_nodes_that_never_come(
    small_recipe: Callable[..., Path], run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PyTorchJob whose worker is refused by its namespace: the Master alone must end the job."""
    monkeypatch.setattr(launching, "LIMIT_MEET_S", 1.0)
    nodes = {"PET_NNODES": "2", "RANK": "0", "PET_NODE_RANK": "0", "MASTER_ADDR": "localhost"}
    nodes["MASTER_PORT"] = str(free_port())
    for _ in range(3):
        attempt(run, 150)
    error = launch_error(small_recipe(), run, **nodes)
    assert error.exit_code == 78
    assert "3 attempts in a row failed" in error.message
