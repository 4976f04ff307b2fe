"""A power cut after any fsync: a checkpoint that is there has its logs, and the run ends as an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mini_r1.cli.training_commands import train
from mini_r1.errors import ExitCode, KitError
from mini_r1.run.manifest import verify
from mini_r1.run.reader import read_completions, read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.training.run_logs import describe_lost_logs
from mini_r1.training.trainer import CountdownTrainer

from tests.conftest import disk_full_at, without_times, write_recipe
from tests.power_cut import Recording, recorded_syncs
from tests.training.outcome import outcome
from tests.training.workers import Workers
from tests.training.workers import train as train_in_worker


@pytest.fixture(scope="module")
def recipe(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "six.yaml"
    return str(write_recipe(path, untrained, max_steps=6, save_steps=2))


@pytest.fixture(scope="module")
def recorded(
    recipe: str, one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunDir, Recording]]:
    """A run, stopped by a full disk at step 4 and resumed to its end, and all its fsyncs."""
    folder = tmp_path_factory.mktemp("recorded")
    run = RunDir(folder / "runs" / "first")
    save = CountdownTrainer._save_checkpoint
    with recorded_syncs(folder) as recording, pytest.MonkeyPatch.context() as patched:

        def promised(self: CountdownTrainer, model: object, trial: object) -> None:
            save(self, model, trial)
            recording.promise(self.state.global_step)

        patched.setattr(CountdownTrainer, "_save_checkpoint", promised)
        with disk_full_at(4), pytest.raises(KitError):
            train(recipe, [], run.path)
        assert train(recipe, [], run.path) == ExitCode.FINISHED
    yield run, recording
    recording.close()


def up_to(rows: Any, step: int) -> list[dict[str, Any]]:
    return [row for row in rows if row["step"] <= step]


def test_after_any_fsync_a_complete_checkpoint_has_its_logs(recorded: tuple[RunDir, Recording], tmp_path: Path) -> None:
    expected, recording = recorded
    metrics, completions = without_times(read_metrics(expected)), list(read_completions(expected))
    seen = []
    for count in range(len(recording.synced) + 1):
        left = tmp_path / str(count)
        recording.cut(count, left)
        run = RunDir(left / "runs" / "first")
        complete = run.complete_checkpoints()
        newest = complete[0].step if complete else 0
        assert newest >= recording.promised(count), f"after {count} fsyncs"
        if complete:
            assert run.is_run(), f"after {count} fsyncs"
            assert [verify(saved, run.run_id) for saved in complete] == [None] * len(complete), f"after {count} fsyncs"
            assert up_to(without_times(read_metrics(run)), newest) == up_to(metrics, newest), f"after {count} fsyncs"
            assert up_to(read_completions(run), newest) == up_to(completions, newest), f"after {count} fsyncs"
            assert describe_lost_logs(run, complete[0]) is None, f"after {count} fsyncs"
            assert newest in {saved.step for saved in run.complete_snapshots()}, f"after {count} fsyncs"
        seen.append(newest)
        shutil.rmtree(left)
    assert set(seen) == {0, 2, 4, 6}
    assert [step for _, step in recording.promises] == [2, 4, 6]


@pytest.mark.parametrize(
    "numbers", [range(3), pytest.param(range(3, 12), marks=pytest.mark.exhaustive)], ids=["3 cuts", "9 more"]
)
def test_a_run_resumed_after_a_power_cut_ends_as_an_uninterrupted_one(
    recipe: str, recorded: tuple[RunDir, Recording], tmp_path: Path, numbers: range
) -> None:
    expected, recording = recorded
    for number in numbers:
        # The first before any checkpoint, the others between the first one and the end.
        first = recording.promises[0][0]
        count = random.Random(number).randrange(first, len(recording.synced)) if number else first // 2
        recording.cut(count, tmp_path / str(number))
        run = RunDir(tmp_path / str(number) / "runs" / "first")
        assert train(recipe, [], run.path) == ExitCode.FINISHED
        found, whole = outcome(run), outcome(expected)
        for name, value in whole.items():
            assert found[name] == value, f"after {count} fsyncs: another {name}"


# --- two ranks ---


def train_noting(log: Path, *args: Any) -> None:
    """`mini-r1 train ARGS`; every fsync of every rank is a line of `log`: the path and its size."""

    def note(descriptor: int) -> None:
        line = json.dumps([os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_size])
        with log.open("a") as file:
            file.write(line + "\n")

    os.fsync = note
    train_in_worker(*args)


def test_with_two_ranks_the_manifest_is_synced_last(recipe: str, tmp_path: Path) -> None:
    run, log = RunDir(tmp_path / "runs" / "first"), tmp_path / "syncs"
    with Workers(2, train_noting, log, recipe, "--run-dir", run.path, folder=tmp_path / "logs") as workers:
        assert [ended.code for ended in workers.wait()] == [0, 0]
    syncs = [json.loads(line) for line in log.read_text().splitlines()]
    paths = [path for path, _ in syncs]
    assert str(run.path.parent) in paths
    for saved in run.complete_checkpoints():
        scratch = run.checkpoints / f"checkpoint-{saved.step}"
        sealed = next(at for at, path in enumerate(paths) if path.startswith(f"{scratch}/.manifest.json"))
        before = dict(syncs[:sealed])
        said = json.loads((saved.path / "manifest.json").read_text())
        assert "rng_state_1.pth" in said["files"]
        for name, facts in said["files"].items():
            assert before[f"{scratch}/{name}"] == facts["size"]
        assert {"attempts/1/metrics.jsonl", "attempts/1/completions.jsonl"} < set(said["logs"])
        assert any(name.startswith("completion_samples/") and size for name, size in said["logs"].items())
        for name, size in said["logs"].items():
            assert before[f"{run.path}/{name}"] == size
        folders = [run.path, run.attempts, run.attempts / "1", run.completion_samples]
        assert all(str(folder) in paths[:sealed] for folder in folders)
        assert paths[sealed + 1] == str(scratch)
        assert str(run.checkpoints) in paths[sealed:]


# --- logs that are lost all the same ---


@pytest.fixture(scope="module")
def stopped(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that a full disk stopped after the checkpoint of step 4."""
    run = RunDir(tmp_path_factory.mktemp("stopped") / "run")
    with disk_full_at(6), pytest.raises(KitError):
        train(recipe, [], run.path)
    return run


def emptied(run: RunDir) -> None:
    for path in (run.attempts / "1").iterdir():
        path.unlink()


def cut_short(run: RunDir) -> None:
    for name in ("metrics.jsonl", "completions.jsonl"):
        path = run.attempts / "1" / name
        os.truncate(path, path.stat().st_size // 3)


@pytest.mark.parametrize("lose", [emptied, cut_short])
def test_a_resume_reports_incomplete_logs_and_continues(
    recipe: str, stopped: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], lose: Callable[[RunDir], None]
) -> None:
    run = RunDir(Path(shutil.copytree(stopped.path, tmp_path / "run")))
    lose(run)
    assert train(recipe, [], run.path) == ExitCode.FINISHED
    said = capsys.readouterr().err
    assert "logs of steps up to 4 are incomplete" in said
    for name in ("metrics", "completions"):
        assert f"attempts/1/{name}.jsonl has " in said
    assert "completion_samples" not in said
    assert [row["step"] for row in read_metrics(run)][-2:] == [5, 6]


def test_a_resume_with_complete_logs_reports_nothing(
    recipe: str, stopped: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when rows of steps after the checkpoint are cut short."""
    run = RunDir(Path(shutil.copytree(stopped.path, tmp_path / "run")))
    path = run.attempts / "1" / "completions.jsonl"
    os.truncate(path, path.stat().st_size - 10)
    assert train(recipe, [], run.path) == ExitCode.FINISHED
    assert "incomplete" not in capsys.readouterr().err
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4, 5, 6]
