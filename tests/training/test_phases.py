"""state.json has the phase of a run before its first step, and is restored when a start fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_r1.cli.training_commands import train
from mini_r1.errors import ExitCode, KitError
from mini_r1.recipe.fields import Recipe
from mini_r1.run.run_dir import RunDir
from mini_r1.training.supervised import Phases, Supervisor

from tests.conftest import ASSETS


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "run").mkdir()
    return RunDir(tmp_path / "run")


def phases(run: RunDir) -> Phases:
    recipe = Recipe(model_name_or_path="builtin:demo", hang_timeout_s=77)
    return Phases(recipe, run, True, Supervisor(None, 0))


def fail(run: RunDir, *, in_its_attempt: bool = False) -> None:
    """Start, check the data and fail; or fail in the attempt, which records it in state.json."""
    with phases(run) as doing:
        doing.begin("data")
        assert run.read_state().get("phase", "data") == "data"
        if in_its_attempt:
            doing.begin("engine", 0, attempt=1)
            run.write_state("failed", step=0, exit_code=1, reason="division by zero", attempt=1)
        raise KitError("in vain")


def state_of(run: RunDir) -> dict[str, Any]:
    return {key: value for key, value in run.read_state().items() if key not in ("heartbeat", "process")}


def test_the_state_has_phase_and_limit_before_the_first_step(run: RunDir) -> None:
    run.write_state("interrupted", step=4, exit_code=143, reason="SIGTERM", attempt=1)
    with phases(run) as doing:
        doing.begin("model")
        assert state_of(run) == {"state": "running", "step": 4, "phase": "model", "hang_timeout_s": 77}
        doing.begin("engine", 3, attempt=2)
        assert state_of(run) == {"state": "running", "step": 3, "phase": "engine", "attempt": 2, "hang_timeout_s": 77}
        doing.begin("update", 5, attempt=2, in_flight=7)
        assert state_of(run)["in_flight"] == 7
        doing.begin("update", 5, attempt=2)
    assert state_of(run) == {"state": "running", "step": 5, "phase": "update", "attempt": 2, "hang_timeout_s": 77}


def test_a_failed_start_restores_the_state(run: RunDir) -> None:
    run.write_state("interrupted", step=4, exit_code=143, reason="SIGTERM", attempt=1)
    before = run.read_state()
    with pytest.raises(KitError, match="in vain"):
        fail(run)
    assert run.read_state() == before


def test_a_failed_first_start_leaves_no_state(run: RunDir) -> None:
    with pytest.raises(KitError, match="in vain"):
        fail(run)
    assert list(run.path.iterdir()) == []


def test_a_failed_attempt_records_its_end(run: RunDir) -> None:
    with pytest.raises(KitError, match="in vain"):
        fail(run, in_its_attempt=True)
    assert run.read_state()["state"] == "failed"


def test_a_full_disk_is_an_error_only_in_an_attempt(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "write_state", full)
    with pytest.raises(KitError, match="in vain"):
        fail(run)
    with pytest.raises(OSError, match="No space"):
        fail(run, in_its_attempt=True)


def test_a_refused_start_of_a_run_with_checkpoints_changes_nothing(
    small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Through the command: the data that it began with is gone."""
    run, data = RunDir(tmp_path / "run"), tmp_path / "rows.jsonl"
    data.write_bytes((ASSETS / "countdown_rows.jsonl").read_bytes())
    recipe = str(small_recipe(max_steps=2, dataset_id_or_path=str(data)))
    assert train(recipe, [], run.path) == ExitCode.FINISHED
    run.write_state("interrupted", step=2, exit_code=143, reason="SIGTERM", attempt=1)
    before = run.read_state()
    data.unlink()
    with pytest.raises(KitError, match=r"rows\.jsonl"):
        train(recipe, [], run.path)
    assert run.read_state() == before
