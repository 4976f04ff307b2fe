"""A worker under a launcher: it sends heartbeats, writes stacks when asked, and leaves decisions to the launcher."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_r1.run.run_dir import RunDir
from mini_r1.training import rollout_engines
from mini_r1.training.supervised import StopRequest, Supervisor
from mini_r1.training.world import World

from tests.training.workers import Workers, train, wait_until


def train_and_be_signalled(at_call: int, *args: str | Path) -> None:
    """`mini-r1 train ARGS`; in a rollout this process is asked for its stacks and signalled three times to stop."""
    sample, calls = rollout_engines.sample, []

    def signalled(*given: Any, **kwargs: Any) -> list[list[int]]:
        calls.append(1)
        if len(calls) == at_call:
            for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
                os.kill(os.getpid(), number)
        return sample(*given, **kwargs)

    rollout_engines.sample = signalled
    train(*args)


def heartbeat(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "rank-0.heartbeat").read_text())
    return found


def test_heartbeats_stacks_and_any_number_of_signals(small_recipe: Callable[..., Path], tmp_path: Path) -> None:
    launcher, run = tmp_path / "launcher", RunDir(tmp_path / "run")
    launcher.mkdir()
    args = (2, small_recipe(), "--run-dir", run.path)
    environment = {"MINI_R1_SUPERVISOR": str(launcher)}
    with Workers(None, train_and_be_signalled, *args, folder=tmp_path / "logs", environment=environment) as workers:
        (ended,) = workers.wait()
    assert ended.code == 143, ended.errors
    state = run.read_state()
    assert (state["state"], state["step"]) == ("interrupted", 1)
    assert run.complete_checkpoints()[0].step == 1
    beat = heartbeat(launcher)
    assert (beat["phase"], beat["step"], beat["attempt"]) == ("save", 1, 1)
    assert "in signalled" in (launcher / "rank-0.stack").read_text()


def train_and_be_asked(at_call: int, launcher: Path, *args: str | Path) -> None:
    """`mini-r1 train ARGS`; in a rollout, which does not end by itself, the launcher asks it to stop."""
    sample, calls = rollout_engines.sample, []

    def asked(*given: Any, **kwargs: Any) -> list[list[int]]:
        calls.append(1)
        if len(calls) == at_call:
            (launcher / "stop").write_text("SIGUSR1")
            wait_until(kwargs["stop"])
        return sample(*given, **kwargs)

    rollout_engines.sample = asked
    train(*args)


def test_the_launcher_s_stop_file_ends_a_rollout(small_recipe: Callable[..., Path], tmp_path: Path) -> None:
    launcher, run = tmp_path / "launcher", RunDir(tmp_path / "run")
    launcher.mkdir()
    args, environment = (small_recipe(), "--run-dir", run.path), {"MINI_R1_SUPERVISOR": str(launcher)}
    with Workers(
        None, train_and_be_asked, 2, launcher, *args, folder=tmp_path / "logs", environment=environment
    ) as workers:
        (ended,) = workers.wait()
    assert ended.code == 143, ended.errors
    state = run.read_state()
    assert (state["state"], state["step"], state["reason"]) == ("interrupted", 1, "SIGUSR1")
    assert run.complete_checkpoints()[0].step == 1


def test_a_start_stopped_before_its_attempt_leaves_nothing(small_recipe: Callable[..., Path], tmp_path: Path) -> None:
    launcher, run = tmp_path / "launcher", tmp_path / "run"
    launcher.mkdir()
    (launcher / "stop").write_text("SIGTERM")
    args, environment = (small_recipe(), "--run-dir", run), {"MINI_R1_SUPERVISOR": str(launcher)}
    with Workers(None, train, *args, folder=tmp_path / "logs", environment=environment) as workers:
        (ended,) = workers.wait()
    assert ended.code == 143, ended.errors
    assert ended.errors.splitlines()[-1] == "stopped while the data was looked at: run the same command again"
    assert "error" not in ended.errors
    assert not run.exists()


@pytest.mark.parametrize(("agent", "later", "ends"), [("none", 1.9, False), ("none", 2.1, True), (None, 0.1, True)])
def test_torchrun_passes_a_signal_on_that_a_worker_may_have_got(
    agent: str | None, later: float, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same signal again within 2 s is the same request; without torchrun a second one exits at once."""
    now, ended = [5.0], list[int]()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("os._exit", ended.append)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if agent is not None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", agent)
    stop = StopRequest(Supervisor(None, 0), World(60))
    stop._handle(signal.SIGTERM, None)
    now[0] += later
    stop._handle(signal.SIGTERM, None)
    assert ended == [143] * ends
    assert stop.signal_name == "SIGTERM"


def test_without_a_launcher_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINI_R1_SUPERVISOR", raising=False)
    monkeypatch.chdir(tmp_path)
    supervisor = Supervisor.from_environment()
    supervisor.attach()
    supervisor.beat("rollout", 3, 1)
    assert not supervisor
    assert supervisor.stop_signal() is None
    assert not StopRequest(supervisor, World(60))
    assert list(tmp_path.iterdir()) == []
