"""Watching for trouble: a run that went wrong says so at the step, and stops if the recipe wants it to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mini_r1.recipe.fields import WatchRecipe


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that looks wrong after a step."""

    name: str
    """The key of the recipe's `watch` that it is about."""
    sentence: str
    stop: bool


class Watch:
    """Compares each step with the limits of the recipe's `watch`.

    A trouble that goes on is told at its first step and then once in every `window` steps.
    """

    def __init__(self, limits: WatchRecipe) -> None:
        self._limits = limits
        self._recent: dict[str, list[float]] = {}
        self._best_reward: float | None = None
        self._told: dict[str, int] = {}

    def check(self, step: int, values: dict[str, float]) -> list[Trouble]:
        """What is wrong after a step.

        Args:
            step: the optimizer step just done.
            values: its metrics, the same on every rank; those of `loss`, `grad_norm`, `kl`, `reward`, `entropy`,
                `logp_gap` and `frac_groups_all_equal` that are there are looked at.
        """
        found = [(name, sentence) for name, sentence in self._sentences(values).items() if sentence]
        troubles = []
        for name, sentence in found:
            action = getattr(self._limits, name)
            if action == "off" or (action == "warn" and step - self._told.get(name, -math.inf) < self._limits.window):
                continue
            self._told[name] = step
            troubles.append(Trouble(name, sentence, action == "stop"))
        for name in self._told.keys() - {name for name, _ in found}:
            del self._told[name]
        return troubles

    def _sentences(self, values: dict[str, float]) -> dict[str, str | None]:
        """For each key of `watch` a sentence, or None when all is well."""
        limits = self._limits
        broken = [name for name in ("loss", "grad_norm") if name in values and not math.isfinite(values[name])]
        kl, gap = values.get("kl"), values.get("logp_gap")
        reward, entropy, equal = (
            self._recent_mean(name, values) for name in ("reward", "entropy", "frac_groups_all_equal")
        )
        return {
            "not_finite": f"{' and '.join(broken)} not finite (NaN or infinity)" if broken else None,
            "kl": f"KL to the reference is {kl:.3g} nats a token, above max_kl {limits.max_kl:g}"
            if kl is not None and kl > limits.max_kl
            else None,
            "logp_gap": f"vLLM's log-probabilities are {gap:.3g} nats a token from the trainer's, above max_logp_gap "
            f"{limits.max_logp_gap:g}: it may not sample from the weights that are trained"
            if gap is not None and gap > limits.max_logp_gap
            else None,
            "reward_collapse": self._collapse(reward),
            "entropy": f"entropy is {entropy:.3g} nats a token over {limits.window} steps, below min_entropy "
            f"{limits.min_entropy:g}: the policy hardly varies its answers any more"
            if entropy is not None and entropy < limits.min_entropy
            else None,
            "equal_groups": f"{equal:.0%} of the groups had equal rewards over {limits.window} steps, above "
            f"max_equal_groups {limits.max_equal_groups:.0%}: there is hardly anything to learn from"
            if equal is not None and equal > limits.max_equal_groups
            else None,
        }

    def _recent_mean(self, name: str, values: dict[str, float]) -> float | None:
        """Mean over the last `window` steps; None until there are that many."""
        recent = self._recent.setdefault(name, [])
        if math.isfinite(values.get(name, math.nan)):
            recent.append(values[name])
            del recent[: -self._limits.window]
        return math.fsum(recent) / len(recent) if len(recent) == self._limits.window else None

    def _collapse(self, reward: float | None) -> str | None:
        if reward is None:
            return None
        best = self._best_reward = reward if self._best_reward is None else max(reward, self._best_reward)
        if best <= 0 or reward >= self._limits.collapse_share * best:
            return None
        return (
            f"reward is {reward:.3g} over {self._limits.window} steps and was {best:.3g}: "
            f"it fell below collapse_share {self._limits.collapse_share:g} of its best"
        )

    def state(self) -> dict[str, Any]:
        """What has to be remembered over a resume, as JSON takes it."""
        return {"recent": self._recent, "best_reward": self._best_reward, "told": self._told}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self._recent, self._best_reward, self._told = state["recent"], state["best_reward"], state["told"]
