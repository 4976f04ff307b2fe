"""Alerts about a run that goes wrong, and a guard that keeps gradients that are not finite from the weights."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

from mini_r1.recipe.fields import WatchRecipe


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that looks wrong after a step."""

    name: str  # a key of the recipe's `watch`
    sentence: str
    stop: bool


class Watch:
    """Compares each step with the limits of the recipe's `watch`; repeats a warning once in `window` steps."""

    def __init__(self, limits: WatchRecipe) -> None:
        self._limits = limits
        self._recent: dict[str, list[float]] = {}
        self._best_reward: float | None = None
        self._reported: dict[str, int] = {}

    def check(self, step: int, values: dict[str, float]) -> list[Alert]:
        """Return the alerts after a step, from its metrics, which are the same on every rank; any may be missing."""
        found = dict(self._sentences(values))
        alerts = []
        for name, sentence in found.items():
            action = getattr(self._limits, name)
            recent = step - self._reported.get(name, -math.inf) < self._limits.window
            if action == "off" or (action == "warn" and recent):
                continue
            self._reported[name] = step
            alerts.append(Alert(name, sentence, action == "stop"))
        self._reported = {name: at for name, at in self._reported.items() if name in found}
        return alerts

    def _sentences(self, values: dict[str, float]) -> Iterator[tuple[str, str]]:
        """Yield a key of `watch` and a sentence for everything that is wrong."""
        limits, window = self._limits, f"over {self._limits.window} steps"
        broken = [name for name in ("loss", "grad_norm") if not math.isfinite(values.get(name, 0.0))]
        kl, gap = values.get("kl", -math.inf), values.get("logp_gap", -math.inf)
        reward, entropy, equal = (
            self._recent_mean(name, values) for name in ("reward", "entropy", "frac_groups_all_equal")
        )
        if broken:
            yield "not_finite", f"{' and '.join(broken)} not finite (NaN or infinity)"
        if kl > limits.max_kl:
            yield "kl", f"KL to the reference is {kl:.3g} nats a token, above max_kl {limits.max_kl:g}"
        if gap > limits.max_logp_gap:
            distance = f"{gap:.3g} nats a token from the trainer's, above max_logp_gap {limits.max_logp_gap:g}"
            advice = "it may not sample from the weights that are trained"
            if values.get("off_policy/age"):
                advice = "a step changes the policy much; lower learning_rate, or set rollout_ahead: 0"
            yield "logp_gap", f"vLLM's log-probabilities are {distance}: {advice}"
        size = values.get("off_policy/sample_size", math.inf)
        if size < limits.min_sample_size:
            limit = f"below min_sample_size {limits.min_sample_size:g}: few of vLLM's tokens decide the gradient"
            advice = "stop the run, and start a new one from an earlier snapshot with a lower learning_rate"
            yield "sample_size", f"off_policy/sample_size is {size:.3g}, {limit}; {advice}"
        if reward is not None:
            best = self._best_reward = reward if self._best_reward is None else max(reward, self._best_reward)
            if best > 0 and reward < limits.collapse_share * best:
                fall = f"it fell below collapse_share {limits.collapse_share:g} of its best"
                yield "reward_collapse", f"reward is {reward:.3g} {window} and was {best:.3g}: {fall}"
        if entropy is not None and entropy < limits.min_entropy:
            limit = f"below min_entropy {limits.min_entropy:g}: the policy's answers hardly vary any more"
            yield "entropy", f"entropy is {entropy:.3g} nats a token {window}, {limit}"
        if equal is not None and equal > limits.max_equal_groups:
            limit = f"above max_equal_groups {limits.max_equal_groups:.0%}: there is hardly anything to learn from"
            yield "equal_groups", f"{equal:.0%} of the groups had equal rewards {window}, {limit}"

    def _recent_mean(self, name: str, values: dict[str, float]) -> float | None:
        """Return the mean over the last `window` finite values, None if there are fewer."""
        recent = self._recent.setdefault(name, [])
        if math.isfinite(values.get(name, math.nan)):
            recent.append(values[name])
            del recent[: -self._limits.window]
        return math.fsum(recent) / len(recent) if len(recent) == self._limits.window else None

    def state(self) -> dict[str, Any]:
        """Return what a resume has to restore, as JSON."""
        return {"recent": self._recent, "best_reward": self._best_reward, "reported": self._reported}

    def load(self, state: dict[str, Any]) -> None:
        """Restore `state()`."""
        self._recent, self._best_reward, self._reported = state["recent"], state["best_reward"], state["reported"]


class GradientGuard(TrainerCallback):
    """Skips an optimizer step whose gradient holds NaN or infinity: one such step would spoil every weight.

    Not under float16 (the loss scaler does that) or DeepSpeed (its engine owns the gradients).
    """

    def __init__(self) -> None:
        self.norm = 0.0
        """Norm of the last gradient, after clipping."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        parameters = [p for p in model.parameters() if p.grad is not None]
        if args.fp16 or not parameters:
            return
        # With an infinite limit nothing is clipped: torch has no other function for the norm.
        self.norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf).item()
        if not math.isfinite(self.norm):
            for parameter in parameters:
                parameter.grad = None  # the optimizer skips these, momentum included
