"""The completions of one rollout: verdicts, rewards, advantages, and their micro-batches as tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from mini_r1.errors import Stopped
from mini_r1.generation.sampler import Stop, never
from mini_r1.tasks.countdown import task

ADVANTAGE_EPSILON = 1e-4
"""Added to a group's standard deviation; TRL 0.14.0's value."""
Batch = dict[str, torch.Tensor]
"""`input_ids` and `attention_mask` (B, P + C): prompts padded on the left, completions on the right.
`completion_mask` (B, C), `advantages` (B,), and `weights` (B,): the weight of a completion in its micro-batch's loss.
`sampled_logps` (B, C) if another program sampled; later `reference_logps` (B, C)."""


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


def micro_batches(
    completions: Sequence[Completion],
    count: int,
    *,
    pad_token_id: int,
    device: torch.device,
    drop_equal_groups: bool = False,
    counted: float | None = None,
) -> list[Batch]:
    """Cut a rank's completions, at least one, into `count` micro-batches, similar lengths together.

    The loss of a step is a mean over completions of a mean over tokens, so the batch of a completion does not change
    the step's gradient, and short completions are not padded to the longest one. Every rank needs the same number of
    micro-batches, because the others wait for its gradients: if too few completions are left without the groups whose
    rewards are all equal, a micro-batch holds one completion of weight 0. `counted` is the number of completions left,
    the mean over the ranks; None: this rank's.
    """
    ordered = sorted(completions, key=lambda c: len(c.ids))
    kept = [c for c in ordered if c.group_differs or not drop_equal_groups]
    counted = len(kept) if counted is None else counted
    # The trainer takes the mean over micro-batches and ranks, so a completion counts count / counted in its own.
    weight = count / counted if counted else 0.0
    cuts = [round(i * len(kept) / count) for i in range(count + 1)]
    parts = [(kept[i:end], weight) if end > i else (ordered[:1], 0.0) for i, end in pairwise(cuts)]
    return [collate(part, worth, pad_token_id, device) for part, worth in parts]


def collate(completions: Sequence[Completion], weight: float, pad_token_id: int, device: torch.device) -> Batch:
    """Return one micro-batch whose completions have this weight each."""
    prompt_width = max(len(c.prompt_ids) for c in completions)
    width = max(len(c.ids) for c in completions)
    ids, mask = [], []
    for c in completions:
        left, right = prompt_width - len(c.prompt_ids), width - len(c.ids)
        ids.append([pad_token_id] * left + c.prompt_ids + c.ids + [pad_token_id] * right)
        mask.append([0] * left + [1] * (len(c.prompt_ids) + len(c.ids)) + [0] * right)
    attention_mask = torch.tensor(mask, device=device)
    batch = {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": attention_mask,
        "completion_mask": attention_mask[:, prompt_width:],
        "advantages": torch.tensor([c.advantage for c in completions], device=device),
        "weights": torch.full((len(completions),), weight, device=device),
    }
    if completions[0].sampled_logps is not None:
        padded = [[*(c.sampled_logps or ()), *[0.0] * (width - len(c.ids))] for c in completions]
        batch["sampled_logps"] = torch.tensor(padded, device=device)
    return batch
