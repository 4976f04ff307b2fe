"""`push_to_hub: true`: snapshots and logs are sent to a stand-in of the hub while the real program trains.

The first run is started by the console script, the others are forked. Each starts a process that pushes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from mini_r1.errors import ExitCode
from mini_r1.run.run_dir import RunDir

from tests.conftest import command
from tests.hub_upload import BadAnswer, WritableHub
from tests.training.workers import Workers, train

TOKEN = "hf_plantedPLANTEDplantedPLANTED00"
Recipe = Callable[..., Path]


@pytest.fixture
def hub() -> Iterator[WritableHub]:
    with WritableHub({TOKEN: "anna"}) as serving:
        yield serving
        assert serving.leaks == []


def online(hub: WritableHub, run: RunDir) -> dict[str, str]:
    """Return the variables of a user with a network and a token."""
    home = str(run.path.parent / "home")
    return {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HOME": home}


def train_online(environment: dict[str, str], *arguments: str | Path) -> None:
    """Run `mini-r1 train` in a process that imported huggingface_hub offline."""
    from huggingface_hub import constants

    os.environ.update(environment)
    constants.HF_HUB_OFFLINE = False
    train(*arguments)


def start(hub: WritableHub, recipe: Path, run: RunDir, ranks: int | None = None) -> Workers:
    arguments = (online(hub, run), recipe, "--run-dir", run.path)
    return Workers(ranks, train_online, *arguments, folder=run.path.parent / "output")


def exit_code(workers: Workers) -> int:
    """Wait for the only process."""
    (ended,) = workers.wait(300)
    return ended.code


def output(run: RunDir) -> str:
    return " ".join(" ".join(path.read_text() for path in (run.path.parent / "output").iterdir()).split())


def pushers(run: RunDir) -> list[psutil.Process]:
    arguments = ["mini_r1.hub.push", str(run.path)]
    return [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[-2:] == arguments]


def wait_for(condition: Callable[[], bool], workers: Workers) -> None:
    while not condition():
        assert workers.running(), "it ended too early"
        time.sleep(0.05)


def weights(run: RunDir, step: int) -> bytes:
    return (run.snapshots / f"step-{step}" / "model.safetensors").read_bytes()


def test_each_snapshot_and_the_logs_are_pushed_and_a_failed_push_is_retried(
    hub: WritableHub, small_recipe: Recipe, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    hub.errors = [
        BadAnswer("POST", "/api/repos/create", 503),
        BadAnswer("POST", "/commit/", -1),
        BadAnswer("GET", "/refs", 500),
    ]
    recipe = small_recipe(push_to_hub=True, hub_strategy="every_save", hub_model_id="pushed")
    (tmp_path / "output").mkdir()
    arguments = [*command(), "train", str(recipe), "--run-dir", str(run.path)]
    with (tmp_path / "output" / "all").open("w") as log:
        done = subprocess.run(arguments, env={**os.environ, **online(hub, run)}, stdout=log, stderr=log, timeout=300)
    assert done.returncode == ExitCode.FINISHED, output(run)
    repo = hub.repos["anna/pushed"]
    assert repo.private is True
    assert sorted(repo.branches) == ["main", "step-2", "step-4"]
    assert repo.files("step-2")["model.safetensors"] == weights(run, 2)
    assert repo.files("main")["model.safetensors"] == repo.files("step-4")["model.safetensors"] == weights(run, 4)
    rows = [json.loads(line) for line in repo.files()["logs/metrics.jsonl"].splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert any(name.startswith("logs/tensorboard/events") for name in repo.files())
    assert not any("completions" in name or "rank-0" in name or "checkpoint" in name for name in repo.files())
    assert f"all snapshots are on {hub.address}/anna/pushed" in output(run)
    record = json.loads((run.path / "hub.json").read_text())
    assert (record["repo"], record["pushed"], record["error"]) == ("anna/pushed", [2, 4], None)
    assert run.read_state()["state"] == "finished"
    assert "trying again" in (run.attempts / "1" / "hub.log").read_text()
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert TOKEN.encode() not in path.read_bytes(), path
    assert pushers(run) == []


@pytest.mark.exhaustive
def test_a_hub_that_never_answers_delays_neither_training_nor_its_end(
    hub: WritableHub, small_recipe: Recipe, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    hub.errors = [BadAnswer("POST", "/commit/step-4", -2, times=1000)]
    recipe = small_recipe(push_to_hub=True, hub_model_id="pushed", hang_timeout_s=30, hub_private_repo=False)
    with start(hub, recipe, run) as workers:
        assert exit_code(workers) == ExitCode.FINISHED, output(run)
    assert run.read_state()["state"] == "finished"
    assert [saved.step for saved in run.complete_snapshots()] == [4, 2]
    assert f"not everything was pushed: `mini-r1 publish {run.path} --repo anna/pushed --public` sends" in output(run)
    assert json.loads((run.path / "hub.json").read_text())["pushed"] == [2]  # it is recorded at once
    assert pushers(run) == []


def test_a_signal_is_not_delayed_and_the_next_start_pushes_what_is_missing(
    hub: WritableHub, small_recipe: Recipe, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    hub.errors = [BadAnswer("POST", "/commit/step-2", -2)]
    recipe = small_recipe(push_to_hub=True, hub_model_id="pushed", max_steps=40)
    with start(hub, recipe, run) as first:
        wait_for(lambda: any("/commit/step-2" in line for line in hub.asked), first)
        first.send(signal.SIGTERM)
        assert exit_code(first) == ExitCode.INTERRUPTED, output(run)
    assert pushers(run) == []
    stopped_at = run.complete_checkpoints()[0].step
    assert stopped_at == run.complete_snapshots()[0].step < 40
    assert "model.safetensors" not in hub.repos["anna/pushed"].files("step-2")

    with start(hub, recipe, run) as second:
        assert exit_code(second) == ExitCode.FINISHED, output(run)
    repo = hub.repos["anna/pushed"]
    steps = [saved.step for saved in run.complete_snapshots()]
    assert {2, stopped_at, 40} <= set(steps)
    assert set(repo.branches) == {"main", *(f"step-{step}" for step in steps)}
    for step in steps:
        assert repo.files(f"step-{step}")["model.safetensors"] == weights(run, step)


@pytest.mark.exhaustive
def test_a_killed_or_refused_push_does_not_fail_the_run(hub: WritableHub, small_recipe: Recipe, tmp_path: Path) -> None:
    """The process is killed at its first push; the next save starts another, which the hub always refuses."""
    run = RunDir(tmp_path / "run")
    hub.errors = [
        BadAnswer("POST", "/commit/", -2, times=1),
        BadAnswer("POST", "/preupload/", 403, times=1000, after=2),
    ]
    recipe = small_recipe(push_to_hub=True, hub_model_id="pushed", max_steps=40, save_steps=10)
    with start(hub, recipe, run) as workers:
        wait_for(lambda: bool(run.complete_snapshots()), workers)
        workers.send(signal.SIGSTOP)  # or the last save may come before the process that pushes is ready
        wait_for(lambda: any("/commit/" in line for line in hub.asked), workers)
        (pusher,) = pushers(run)
        pusher.kill()
        workers.send(signal.SIGCONT)
        assert exit_code(workers) == ExitCode.FINISHED, output(run)
    assert "not everything was pushed (this token can't write to anna/pushed" in output(run)
    assert run.read_state()["state"] == "finished"


def test_without_push_to_hub_no_request_is_made(hub: WritableHub, small_recipe: Recipe, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with start(hub, small_recipe(max_steps=2), run) as workers:
        assert exit_code(workers) == ExitCode.FINISHED, output(run)
    assert hub.asked == []
    assert not (run.path / "hub.json").exists()


def test_only_one_of_two_ranks_pushes(hub: WritableHub, small_recipe: Recipe, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    recipe = small_recipe(push_to_hub=True, hub_model_id="pushed", max_steps=2)
    with start(hub, recipe, run, 2) as workers:
        ended = workers.wait(300)
    assert [rank.code for rank in ended] == [0, 0], [rank.errors for rank in ended]
    assert hub.asked.count("POST /api/repos/create") == 1
    assert sum("/commit/step-2" in line for line in hub.asked) == 1
    assert sorted(hub.repos["anna/pushed"].branches) == ["main", "step-2"]
    reports = [(rank.output + rank.errors).count("all snapshots are on") for rank in ended]
    assert reports == [1, 0]
    assert TOKEN not in "".join(rank.output + rank.errors for rank in ended)


def test_the_push_process_exits_when_the_trainer_is_killed(
    hub: WritableHub, small_recipe: Recipe, tmp_path: Path
) -> None:
    hub.errors = [BadAnswer("POST", "/commit/", -2, times=1000)]
    run = RunDir(tmp_path / "run")
    with start(hub, small_recipe(push_to_hub=True, hub_model_id="pushed", max_steps=1000), run) as workers:
        wait_for(lambda: any("/commit/" in line for line in hub.asked), workers)
        (pusher,) = pushers(run)
        assert TOKEN not in " ".join(pusher.cmdline())
        workers.kill()
        workers.wait()
    pusher.wait(60)


@pytest.mark.exhaustive
def test_a_damaged_snapshot_does_not_hold_up_the_next_one(
    hub: WritableHub, small_recipe: Recipe, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    recipe = small_recipe(push_to_hub=True, hub_strategy="end", hub_model_id="pushed", max_steps=12)
    with start(hub, recipe, run) as workers:
        wait_for(lambda: (run.snapshots / "step-2").is_dir(), workers)
        (run.snapshots / "step-2" / "model.safetensors").unlink()
        assert exit_code(workers) == ExitCode.FINISHED, output(run)
    assert "model.safetensors" in hub.repos["anna/pushed"].files("step-12")
    assert hub.repos["anna/pushed"].files()["model.safetensors"] == weights(run, 12)
    assert f"not everything was pushed (the snapshot {run.snapshots / 'step-2'} is damaged" in output(run)
