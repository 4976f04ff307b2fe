"""The completions of one rollout: verdicts, rewards and advantages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from mini_r1.errors import Stopped
from mini_r1.generation.sampler import Stop, never
from mini_r1.tasks.countdown import task

ADVANTAGE_EPSILON = 1e-4
"""Added to a group's standard deviation; TRL 0.14.0's value."""


@dataclass(slots=True)
class Completion:
    """One sampled completion and everything known about it."""

    problem: task.Problem
    prompt: str
    prompt_ids: list[int]
    ids: list[int]
    truncated: bool  # at max_completion_length, without an end token
    text: str = ""
    sampled_logps: list[float] | None = None  # of each token, by the program that sampled it, unless it is the trainer
    verdict: task.Verdict | None = None
    reward: float = 0.0
    advantage: float = 0.0
    group_differs: bool = True  # whether the rewards of its group differ

    def record(self, step: int) -> dict[str, Any]:
        """Return the row of completions.jsonl."""
        assert self.verdict is not None
        return {
            "step": step,
            **self.verdict.record(),
            "prompt": self.prompt,
            "reward": self.reward,
            "advantage": self.advantage,
            "tokens": len(self.ids),
            "truncated": self.truncated,
        }


class GroupStatistics(NamedTuple):
    """Statistics over the groups of one rank."""

    reward_std: float  # mean over the groups of the rewards' standard deviation
    equal: float  # share of the groups whose rewards are all equal: they have no advantage and teach nothing


def score(completions: Sequence[Completion], weights: Mapping[str, float], stop: Stop = never) -> None:
    """Fill in verdicts and rewards; `weights` is the weight of each reward in the sum, by its name in the task."""
    for c in completions:
        if stop():
            raise Stopped
        c.verdict = task.judge(c.text, c.problem, weights)
        c.reward = sum(weight * c.verdict.rewards[name] for name, weight in weights.items())


def set_advantages(completions: Sequence[Completion], num_generations: int, *, scale: bool = True) -> GroupStatistics:
    """Fill in advantages: the reward minus its group's mean, over the group's standard deviation.

    DeepSeekMath, arXiv:2402.03300, section 4.1.2; without `scale` small differences count little (Dr. GRPO,
    arXiv:2503.20783). The `num_generations` completions of each prompt are next to one another.
    """
    groups = torch.tensor([c.reward for c in completions]).view(-1, num_generations)
    std = groups.std(dim=1, keepdim=True)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if scale:
        advantages = advantages / (std + ADVANTAGE_EPSILON)
    # Not std == 0: the standard deviation of equal numbers need not come out as exactly 0.
    equal = (groups == groups[:, :1]).all(dim=1)
    for i, (c, advantage) in enumerate(zip(completions, advantages.flatten().tolist(), strict=True)):
        c.advantage = advantage
        c.group_differs = not bool(equal[i // num_generations])
    return GroupStatistics(std.mean().item(), equal.float().mean().item())
