"""What comes of one rollout: completions, their verdicts, rewards and advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mini_r1.errors import Stopped
from mini_r1.generation.sampler import Stop, never
from mini_r1.tasks.countdown import task

ADVANTAGE_EPSILON = 1e-4
"""Added to a group's standard deviation; TRL 0.14.0's value."""


@dataclass(frozen=True, slots=True)
class RewardPlan:
    """What is rewarded, and how rewards become advantages."""

    names: tuple[str, ...]
    """In the registry of `countdown.rewards`."""
    weights: tuple[float, ...]
    """Of each in the sum."""
    scale: bool = True
    """Divide by the group's standard deviation; without it small differences count little (Dr. GRPO,
    arXiv:2503.20783)."""
    drop_equal_groups: bool = False
    """Leave groups without any difference in reward out of the update."""


@dataclass(slots=True)
class Completion:
    """One sampled completion and everything known about it."""

    problem: task.Problem
    prompt: str
    prompt_ids: list[int]
    ids: list[int]
    truncated: bool
    """Cut at max_completion_length, without an end token."""
    text: str = ""
    sampled_logps: list[float] | None = None
    """Log-probability of each token by the program that sampled it, where that was not the trainer's own."""
    verdict: task.Verdict | None = None
    rewards: tuple[float, ...] = ()
    """One for each name of the RewardPlan, without weights."""
    reward: float = 0.0
    advantage: float = 0.0
    group_differs: bool = True
    """Whether the rewards of its group differ at all."""

    def record(self, step: int, names: Sequence[str]) -> dict[str, Any]:
        """The row of completions.jsonl."""
        assert self.verdict is not None
        judged = task.record(self.problem, self.text, self.verdict)
        judged["rewards"] |= dict(zip(names, self.rewards, strict=True))
        return {
            "step": step,
            **judged,
            "prompt": self.prompt,
            "reward": self.reward,
            "advantage": self.advantage,
            "tokens": len(self.ids),
            "truncated": self.truncated,
        }


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """Of one rank's groups."""

    reward_std: float
    """Mean over the groups of the rewards' standard deviation."""
    equal: float
    """Share of the groups whose rewards are all equal: they have no advantage and teach nothing."""


def judge(completions: Sequence[Completion], plan: RewardPlan, stop: Stop = never) -> None:
    """Fill in verdicts and rewards.

    Raises:
        Stopped: `stop`, asked before each completion, returned true.
    """
    for c in completions:
        if stop():
            raise Stopped
        c.verdict = task.judge(c.text, c.problem)
        c.rewards = tuple(task.reward_values(plan.names, c.text, c.problem, c.verdict))
        c.reward = sum(weight * value for weight, value in zip(plan.weights, c.rewards, strict=True))


def compare(completions: Sequence[Completion], plan: RewardPlan, num_generations: int) -> GroupStatistics:
    """Fill in advantages: the reward minus its group's mean, over the group's standard deviation.

    DeepSeekMath, arXiv:2402.03300, section 4.1.2.

    Args:
        completions: judged, the `num_generations` of each prompt next to one another.
        plan: whether to divide.
        num_generations: completions in a group, G.
    """
    groups = torch.tensor([c.reward for c in completions]).view(-1, num_generations)
    std = groups.std(dim=1, keepdim=True)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if plan.scale:
        advantages = advantages / (std + ADVANTAGE_EPSILON)
    # Not std == 0: the standard deviation of equal numbers need not come out as exactly 0.
    equal = (groups == groups[:, :1]).all(dim=1)
    for i, (c, advantage) in enumerate(zip(completions, advantages.flatten().tolist(), strict=True)):
        c.advantage = advantage
        c.group_differs = not bool(equal[i // num_generations])
    return GroupStatistics(std.mean().item(), equal.float().mean().item())
