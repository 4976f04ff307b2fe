"""`mini-r1 health`: 0 while a run makes progress or has made all of it, else 1 and a sentence; any file is survived."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mini_r1.cli.demo import QUICK
from mini_r1.console import printable
from mini_r1.run.files import write_json
from mini_r1.run.health import Health, check_health
from mini_r1.run.run_dir import RunDir

from tests.training.workers import Workers, train

Kit = Callable[..., subprocess.CompletedProcess[str]]

NOW = 2_000_000_000.0
RUNNING = {
    "state": "running", "step": 7, "phase": "rollout", "attempt": 1, "pid": 4711, "hang_timeout_s": 600,
    "heartbeat": NOW - 20,
}  # fmt: skip


def write(run: Path, **changes: Any) -> Path:
    """A run whose state.json is RUNNING with other values; None leaves one out."""
    run.mkdir(parents=True, exist_ok=True)
    state = {key: value for key, value in {**RUNNING, **changes}.items() if value is not None}
    write_json(RunDir(run).state_file, state)
    return run


def unhealthy(path: Path, said: str) -> Health:
    found = check_health(path, NOW)
    assert not found.healthy
    assert said in found.sentence
    return found


# --- what is healthy ---


@pytest.mark.parametrize(
    ("changes", "healthy", "said"),
    [
        ({}, True, "runs: step 7, phase rollout for 20 s (at most 600)"),
        ({"heartbeat": NOW - 599}, True, "for 599 s"),
        (
            {"phase": "update", "in_flight": 9},
            True,
            "phase update for 20 s (at most 600), vLLM samples for step 9 mean",
        ),
        ({"in_flight": "9"}, True, "phase rollout for 20 s (at most 600)"),
        ({"heartbeat": NOW - 601}, False, "is stuck or dead: step 7, phase rollout began 601 s ago"),
        ({"heartbeat": NOW - 601, "hang_timeout_s": 3600}, True, "at most 3600"),
        ({"heartbeat": NOW + 5}, True, "for 0 s"),  # another host's clock
        ({"state": "finished", "heartbeat": NOW - 1e6}, True, "is finished at step 7"),
        ({"state": "failed", "reason": "disk full"}, False, "failed at step 7: disk full"),
        ({"state": "failed"}, False, "failed at step 7: no reason given"),
        ({"state": "interrupted", "reason": "SIGTERM"}, False, "was interrupted at step 7: SIGTERM"),
    ],
)
def test_a_run_is_healthy_while_it_runs_and_once_it_is_finished(
    tmp_path: Path, changes: dict[str, Any], healthy: bool, said: str
) -> None:
    found = check_health(write(tmp_path / "run", **changes), NOW)
    assert found.healthy is healthy
    assert found.sentence.startswith(f"{tmp_path / 'run'} ")
    assert said in found.sentence


def test_the_run_with_the_newest_heartbeat_is_judged_and_named(tmp_path: Path) -> None:
    write(tmp_path / "a", state="failed", reason="out of memory", heartbeat=NOW - 900)
    write(tmp_path / "b")
    write(tmp_path / "c", state="finished", heartbeat=NOW - 300)
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("")
    found = check_health(tmp_path, NOW)
    assert found.healthy
    assert found.run == tmp_path / "b"
    assert f"{tmp_path / 'b'} (the newest of 3 runs) runs: step 7" in found.sentence
    write(tmp_path / "c", state="failed", reason="a hang", heartbeat=NOW - 1)
    assert unhealthy(tmp_path, "c (the newest of 3 runs) failed at step 7: a hang").run == tmp_path / "c"


def test_a_damaged_file_counts_by_its_modification_time(tmp_path: Path) -> None:
    """It hides no run that came after it, and none that came before it hides it."""
    write(tmp_path / "whole")
    broken = RunDir(write(tmp_path / "broken")).state_file
    broken.write_text('{"state": "runn')
    os.utime(broken, (NOW - 30, NOW - 30))
    assert check_health(tmp_path, NOW).healthy
    os.utime(broken, (NOW - 10, NOW - 10))
    unhealthy(tmp_path, "broken (the newest of 2 runs) cannot be judged: its state.json is not JSON")


def test_a_folder_without_permission_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume's own lost+found, for everybody but root."""
    write(tmp_path / "run")
    (tmp_path / "lost+found").mkdir()
    exists = Path.exists

    def refused(path: Path, **options: bool) -> bool:
        if path.parent.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path, **options)

    monkeypatch.setattr(Path, "exists", refused)
    assert check_health(tmp_path, NOW).healthy


# --- no run, and files that no run wrote ---


@pytest.mark.parametrize("name", ["missing", "empty", "file", "starting"])
def test_no_run_yet(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "starting").mkdir()
    (tmp_path / "starting" / ".lock").touch()
    found = unhealthy(tmp_path / name, f"no run yet in {tmp_path / name}")
    assert (found.run, found.facts) == (None, {})


def test_a_path_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    unhealthy(tmp_path / ("x" * 300), "cannot be read: File name too long")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heartbeat": "yesterday"}, "has no heartbeat that is a time"),
        ({"heartbeat": None}, "has no heartbeat that is a time"),
        ({"heartbeat": True}, "has no heartbeat that is a time"),
        ({"heartbeat": [NOW]}, "has no heartbeat that is a time"),
        ({"heartbeat": float("nan")}, "has no heartbeat that is a time"),
        ({"heartbeat": -NOW}, "has no heartbeat that is a time"),
        ({"heartbeat": NOW + 3600}, "has a heartbeat in the future"),
        ({"heartbeat": float("inf")}, "has no heartbeat that is a time"),
        ({"heartbeat": 10**400}, "has no heartbeat that is a time"),
        ({"heartbeat": NOW + 3600, "state": "finished"}, "has a heartbeat in the future"),
        ({"step": None}, "has no step"),
        ({"step": "7"}, "has no step"),
        ({"step": 10**4000}, "has no step"),
        ({"state": "flying"}, "has a state that no run has"),
        ({"state": ["running"]}, "has a state that no run has"),
        ({"hang_timeout_s": None}, "has no valid hang_timeout_s"),
        ({"hang_timeout_s": float("inf")}, "has no valid hang_timeout_s"),
        ({"hang_timeout_s": 10**400}, "has no valid hang_timeout_s"),
    ],
)
def test_values_that_no_run_writes(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    unhealthy(write(tmp_path / "run", **changes), f"cannot be judged: its state.json {said}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b'{"state": "running", "step": 7, "hea', "is not JSON"),
        (b"\xff\xfe\x00\xd8", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b"null", "is not a JSON object"),
        (b" " * (1 << 20) + b"{}", "is larger than 1 MiB"),
    ],
    ids=lambda value: str(value[:12]) if isinstance(value, bytes) else None,
)
def test_files_that_no_run_writes(tmp_path: Path, content: bytes, said: str) -> None:
    run = RunDir(write(tmp_path / "run"))
    run.state_file.write_bytes(content)
    unhealthy(run.path, f"cannot be judged: its state.json {said}")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    os.mkfifo(run.state_file)
    unhealthy(run.path, "is not a file")


def test_text_from_a_file_is_printable_and_short(tmp_path: Path) -> None:
    reason = "\x1b[2J\u202e" + "a" * 5_000 + "\nhealthy"
    sentence = unhealthy(write(tmp_path / "run", state="failed", reason=reason), r"failed at step 7: \x1b[2J\u202eaaa")
    assert sentence.sentence.endswith("aaa…")
    assert len(sentence.sentence) < 500
    found = check_health(write(tmp_path / "\x1b[31mred\nrun", phase="\x07"), NOW)
    assert found.healthy
    assert rf"{tmp_path}/\x1b[31mred\nrun runs: step 7, phase \x07 for" in found.sentence


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
states = st.fixed_dictionaries(
    {},
    optional={
        "state": st.sampled_from(["running", "finished", "failed", "interrupted"]) | values,
        "heartbeat": st.floats(NOW - 1e6, NOW + 1e6) | values,
        **dict.fromkeys(["step", "phase", "hang_timeout_s", "reason"], values),
    },
)


@given(content=st.binary(max_size=200) | states.map(lambda state: json.dumps(state).encode()))
def test_any_file_gives_one_safe_line(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = RunDir(tmp_path_factory.getbasetemp() / "any-run")
    run.path.mkdir(exist_ok=True)
    run.state_file.write_bytes(content)
    found = check_health(run.path, NOW)
    assert found.sentence == printable(found.sentence)
    assert "\n" not in found.sentence
    json.loads(json.dumps(found.to_dict(), allow_nan=False))
    if found.healthy:
        state = json.loads(content)
        assert state["state"] == "finished" or NOW - state["heartbeat"] < state["hang_timeout_s"]


# --- the command ---


def test_the_command_prints_one_line_or_json(mini_r1: Kit, tmp_path: Path) -> None:
    none = mini_r1("health", cwd=tmp_path)
    assert (none.returncode, none.stdout, none.stderr) == (1, "no run yet in runs\n", "")
    write(tmp_path / "runs" / "first", heartbeat=time.time())
    good = mini_r1("health", cwd=tmp_path)
    assert good.returncode == 0
    assert good.stdout.startswith("runs/first runs: step 7, phase rollout for ")
    write(tmp_path / "runs" / "first", heartbeat=time.time() - 700)
    stale = mini_r1("health", "runs/first", "--json", cwd=tmp_path)
    assert stale.returncode == 1
    facts = json.loads(stale.stdout)
    assert "is stuck or dead" in facts.pop("sentence")
    assert 700 <= facts.pop("age_s") < 760
    assert facts == {
        "healthy": False, "run": "runs/first", "state": "running", "step": 7, "phase": "rollout", "hang_timeout_s": 600,
    }  # fmt: skip


class Training:
    """`mini-r1 train ARGS` in a process, with its demo model made anew, and the health that it has."""

    def __init__(self, cache: Path, *args: str | Path) -> None:
        environment = {"MINI_R1_CACHE": str(cache)}
        self.workers = Workers(None, train, *args, folder=cache.parent / "output", environment=environment)
        self.healthy_in: list[str] = []
        """Phases in which a look found it healthy, in order."""

    def until(self, run: Path, done: Callable[[Health], bool]) -> Health:
        """Look at the health until it is what is waited for."""
        end = time.monotonic() + 300
        while True:
            running = self.workers.running()
            if done(found := check_health(run, time.time())):
                return found
            assert time.monotonic() < end, found
            assert running, found
            phase = found.facts.get("phase", "none")
            if found.healthy and self.healthy_in[-1:] != [phase]:
                self.healthy_in.append(phase)
            time.sleep(0.01)


def test_the_health_of_a_real_run_from_its_warm_start_to_its_end(tmp_path: Path, mini_r1: Kit) -> None:
    run = RunDir(tmp_path / "runs" / "real")
    small = (*QUICK, "warm_start.steps=20", "warm_start.traces=2000", "save_strategy=no", "hang_timeout_s=120")
    args = ["demo-cpu", "--run-dir", run.path, *(f"--set={item}" for item in small)]
    assert mini_r1("health", tmp_path / "runs").returncode == 1  # as while it imports torch
    training = Training(tmp_path / "cache", *args, "--set=max_steps=2000")
    with training.workers:
        found = training.until(run.path, lambda health: health.facts.get("step", 0) >= 2)
        assert "model" in training.healthy_in  # where the warm start is; there is no recipe.yaml yet
        assert "rollout" in training.healthy_in
        assert found.facts["hang_timeout_s"] == 120
        assert mini_r1("health", tmp_path / "runs").returncode == 0

    state = run.read_state()
    assert state["state"] == "running"
    dead = mini_r1("health", run.path)
    assert dead.returncode == 1
    assert re.search(r"is dead: step \d+, phase \w+, and its process is gone; the same command", dead.stdout)
    write_json(run.state_file, {**state, "process": {**state["process"], "boot": "of another host"}})
    assert check_health(run.path, state["heartbeat"] + 119).healthy  # on another host it can't be known earlier
    assert "is stuck or dead: step" in check_health(run.path, state["heartbeat"] + 121).sentence
    write_json(run.state_file, state)

    again = Training(tmp_path / "another cache", *args)
    with again.workers:
        again.until(run.path, lambda health: "is finished at step 2" in health.sentence)
        assert "model" in again.healthy_in  # well again while it loads, not only from its next step on
        (ended,) = again.workers.wait()
    assert ended.code == 0
    assert mini_r1("health", run.path).returncode == 0
