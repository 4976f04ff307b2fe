"""GRPO's loss of a micro-batch, and its correction for completions that another policy than the trained one sampled.

vLLM samples with other kernels, with rounded and merged weights, and with `rollout_ahead: 1` with the weights of one
step before. For a token that the sampler drew with log-probability q, and whose log-probability under the trained
weights is lp, r = exp(lp - q) is its importance ratio: the mean of r over the sampler's draws is 1. docs/metrics.md
explains the corrections. A rollout is used for one update, so the old policy of PPO is the trained one, lp detached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch

from mini_r1.recipe.fields import Recipe
from mini_r1.training.rollout import Batch

SUMS: Final = ("loss", "entropy", "kl")
"""The first sums that `grpo_loss` returns; with the sampler's log-probabilities those of SAMPLER_SUMS follow."""
SAMPLER_SUMS: Final = ("logp_gap", "tokens", "ratio", "squared_ratio", "limited", "sampler_kl")
LARGEST_LOG_RATIO: Final = 20.0
"""Nats. A larger lp - q counts as this one: exp of it overflows, and its gradient would be NaN."""


@dataclass(frozen=True, slots=True)
class OffPolicyCorrection:
    """What the loss does about a sampler that differs from the trained policy, by the recipe's keys."""

    kind: Literal["none", "tis", "clip"] = "none"
    cap: float = 2.0  # largest weight of a token
    epsilon: float = 0.0  # `clip` only: ratios below 1 - epsilon are clipped
    epsilon_high: float = 0.0  # `clip` only: ratios above 1 + epsilon_high are clipped

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> OffPolicyCorrection:
        low = recipe.epsilon or 0.0
        high = low if recipe.epsilon_high is None else recipe.epsilon_high
        return cls(recipe.resolved_off_policy, recipe.off_policy_cap, low, high)


def grpo_loss(
    logps: torch.Tensor, batch: Batch, beta: float, correction: OffPolicyCorrection
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of a micro-batch, and the sums over its tokens that `loss_metrics` needs, detached.

    `logps` (N,) are the log-probabilities of the batch's completion tokens under the trained weights, at the sampling
    temperature; the sums are (3,), or (9,) if the batch has the sampler's. By `correction.kind`, with sg for detached:

    - `none`: -exp(lp - sg(lp)) A + beta k3 (GRPO: DeepSeekMath, arXiv:2402.03300, equation 3)
    - `tis`: that times w = sg(min(r, cap)) (truncated importance sampling: Ionides 2008,
      https://doi.org/10.1198/106186008X320456)
    - `clip`: -min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A) + w beta k3 (PPO: arXiv:1707.06347, equation 7)

    k3 estimates KL(policy || reference), http://joschu.net/blog/kl-approx.html. The loss is a weighted sum over tokens,
    those that are capped or clipped among them. Without a correction its value is beta times the KL: the policy term is
    1 times advantages that average to 0 in every group. So it prints as 0 early on; its gradient is the policy's.
    """
    kl = torch.zeros_like(logps)
    if beta:
        difference = batch["reference_logps"] - logps
        kl = torch.exp(difference) - difference - 1
    advantages, weights = batch["advantages"], batch["weights"]
    policy = torch.exp(logps - logps.detach()) * advantages
    sampled = batch.get("sampled_logps")
    if sampled is None or correction.kind == "none":
        corrected = weights
        loss = ((beta * kl - policy) * weights).sum()
    else:
        ratio = torch.exp((logps - sampled).clamp(max=LARGEST_LOG_RATIO))
        corrected = weights * ratio.detach().clamp(max=correction.cap)
        if correction.kind == "tis":
            loss = ((beta * kl - policy) * corrected).sum()
        else:
            clipped = ratio.clamp(1 - correction.epsilon, 1 + correction.epsilon_high)
            policy = torch.minimum(ratio * advantages, clipped * advantages)
            loss = (beta * kl * corrected - policy * weights).sum()
    # The tokens' weights make -lp an estimate of the policy's entropy: without bias if the policy sampled them.
    sums = [loss, -(logps * corrected).sum(), (kl * corrected).sum()]
    if sampled is not None:
        sums += _sampler_sums(logps.detach(), sampled, advantages, weights, correction)
    return loss, torch.stack(sums).detach()


def _sampler_sums(
    logps: torch.Tensor,
    sampled: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    correction: OffPolicyCorrection,
) -> list[torch.Tensor]:
    counted = (weights > 0).to(logps.dtype)  # a completion that only fills a micro-batch up has weight 0
    log_ratio = (logps - sampled).clamp(max=LARGEST_LOG_RATIO)
    ratio = torch.exp(log_ratio)
    limited = torch.zeros_like(ratio)
    if correction.kind == "tis":
        limited = (ratio > correction.cap).to(ratio)
    elif correction.kind == "clip":
        above = (ratio > 1 + correction.epsilon_high) & (advantages > 0)
        limited = (above | ((ratio < 1 - correction.epsilon) & (advantages < 0))).to(ratio)
    gap = ((logps - sampled).abs() * weights).sum()
    # k3 over the sampler's own draws: KL(sampler || policy).
    each = (torch.ones_like(ratio), ratio, ratio.square(), limited, ratio - 1 - log_ratio)
    return [gap, *((value * counted).sum() for value in each)]


def loss_metrics(sums: Sequence[float], correction: OffPolicyCorrection, *, kl: bool) -> dict[str, float]:
    """Return a step's metrics from the means over ranks of `grpo_loss`'s sums, added up over its micro-batches."""
    found = dict(zip((*SUMS, *SAMPLER_SUMS), sums, strict=False))
    values = {name: found[name] for name in (*SUMS, "logp_gap") if name in found and (kl or name != "kl")}
    tokens = found.get("tokens", 0.0)
    if not tokens:
        return values
    values["off_policy/ratio"] = found["ratio"] / tokens
    # Kish's effective sample size (Survey Sampling, 1965), as a share of the tokens.
    values["off_policy/sample_size"] = found["ratio"] ** 2 / (tokens * found["squared_ratio"])
    values["off_policy/kl"] = found["sampler_kl"] / tokens
    if correction.kind != "none":
        values[f"off_policy/{'capped' if correction.kind == 'tis' else 'clipped'}"] = found["limited"] / tokens
    return values
