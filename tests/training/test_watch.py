"""Alerts about a run, how often they are reported, and a run that stops because of one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_r1.cli.training_commands import train
from mini_r1.errors import ExitCode, KitError
from mini_r1.recipe.fields import WatchRecipe
from mini_r1.run.reader import read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.training.trainer import CountdownTrainer
from mini_r1.training.watch import Alert, Watch
from safetensors.torch import load_file

Recipe = Callable[..., Path]


def alert_steps(watch: Watch, name: str, values: list[float]) -> list[int]:
    """Return the steps (from 1) with an alert, for one metric's values."""
    return [step for step, value in enumerate(values, start=1) if watch.check(step, {name: value})]


@pytest.mark.parametrize(
    ("metric", "values", "steps"),
    [
        ("loss", [0.1, math.nan, 0.1], [2]),
        ("loss", [0.1, -math.inf], [2]),
        ("grad_norm", [1.0, math.inf], [2]),
        ("kl", [0.1, 9.9, 10.1, 0.1], [3]),
        ("off_policy/sample_size", [1.0, 0.95, 0.94, 0.96], [3]),
        ("entropy", [0.009] * 4, [4]),
        ("entropy", [0.009, 0.009, 0.009, 0.2], []),
        ("entropy", [0.009] * 3, []),
        ("frac_groups_all_equal", [1.0, 1.0, 1.0, 0.9], [4]),
        ("frac_groups_all_equal", [1.0, 1.0, 0.9, 0.8], []),
        ("reward", [1.0] * 4 + [0.4] * 4, [8]),
        ("reward", [1.0] * 4 + [0.6] * 8, []),
        ("reward", [-1.0] * 4 + [-4.0] * 4, []),
        ("reward", [0.0] * 20, []),
    ],
    ids=str,
)
def test_alerts(metric: str, values: list[float], steps: list[int]) -> None:
    assert alert_steps(Watch(WatchRecipe(window=4, not_finite="warn")), metric, values) == steps


def test_a_warning_is_repeated_once_a_window_and_when_it_returns() -> None:
    watch = Watch(WatchRecipe(window=3))
    assert alert_steps(watch, "kl", [20.0] * 8 + [1.0] + [20.0]) == [1, 4, 7, 10]


@pytest.mark.parametrize(("age", "advice"), [(0, "it may not sample from the weights"), (1, "set rollout_ahead: 0")])
def test_a_gap_of_log_probabilities_has_the_cause_that_a_rollout_ahead_makes_likely(age: int, advice: str) -> None:
    (alert,) = Watch(WatchRecipe()).check(1, {"logp_gap": 0.3, "off_policy/age": age})
    assert advice in alert.sentence


def test_a_stop_is_reported_at_once_and_off_is_never_reported() -> None:
    found = Watch(WatchRecipe(kl="stop", max_kl=2)).check(7, {"kl": 2.5})
    assert found == [Alert("kl", "KL to the reference is 2.5 nats a token, above max_kl 2", stop=True)]
    assert Watch(WatchRecipe(kl="off")).check(7, {"kl": 1e9}) == []


def test_the_watch_s_state_survives_a_resume() -> None:
    values = [1.0, 0.9, 1.1, 0.4, 0.3, 0.2, 0.3, 0.2, 0.1]
    whole, first, second = (Watch(WatchRecipe(window=3)) for _ in range(3))
    expected = [whole.check(step, {"reward": value}) for step, value in enumerate(values, 1)]
    assert any(expected)
    before = [first.check(step, {"reward": value}) for step, value in enumerate(values[:5], 1)]
    second.load(json.loads(json.dumps(first.state())))
    after = [second.check(step, {"reward": value}) for step, value in enumerate(values[5:], 6)]
    assert before + after == expected


def test_a_run_stopped_by_the_watch_keeps_its_steps_and_can_be_resumed(small_recipe: Recipe, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    recipe = str(small_recipe(save_steps=100))
    strict = ["watch.entropy=stop", "watch.min_entropy=50", "watch.window=2"]
    with pytest.raises(
        KitError, match="stopped at step 2 because the recipe says watch.entropy: stop: entropy is "
    ) as e:
        train(recipe, strict, run.path)
    assert e.value.exit_code == ExitCode.FAILED
    state = run.read_state()
    assert (state["state"], state["step"], state["exit_code"]) == ("failed", 2, 1)
    assert "below min_entropy 50" in state["reason"]
    assert [saved.step for saved in run.complete_checkpoints()] == [2]
    assert "entropy" in read_metrics(run)[1]["trouble"]
    assert train(recipe, ["watch.min_entropy=50"], run.path) == ExitCode.FINISHED
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4]


def _spoil_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of one optimizer step NaN."""
    honest = CountdownTrainer.compute_loss

    def compute_loss(self: CountdownTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = honest(self, *args, **kwargs)
        return loss * math.nan if self.state.global_step == step - 1 else loss

    monkeypatch.setattr(CountdownTrainer, "compute_loss", compute_loss)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    _spoil_at(3, monkeypatch)
    with pytest.raises(
        KitError, match="stopped at step 3 because the recipe says watch.not_finite: stop: grad_norm not"
    ):
        train(str(small_recipe()), [], run.path)
    weights = [load_file(run.checkpoints / f"step-{n}" / "model.safetensors") for n in (2, 3)]
    for name, tensor in weights[0].items():
        assert tensor.isfinite().all()
        assert tensor.equal(weights[1][name])


def test_with_a_warning_the_run_skips_the_step_and_continues(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    _spoil_at(3, monkeypatch)
    assert train(str(small_recipe()), ["watch.not_finite=warn"], run.path) == ExitCode.FINISHED
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[2]["grad_norm"] is None  # NaN is no JSON
    assert rows[2]["trouble"] == {"not_finite": "grad_norm not finite (NaN or infinity)"}
    assert all(t.isfinite().all() for t in load_file(run.checkpoints / "step-4" / "model.safetensors").values())
