"""The completions of one rollout: verdicts, rewards, advantages, and their micro-batches as tensors."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch

from mini_r1.errors import Stopped
from mini_r1.generation.sampler import Stop, never
from mini_r1.tasks.answer_tags import THINK
from mini_r1.tasks.registry import AnyTask
from mini_r1.tasks.reward_file import CodeReward
from mini_r1.tasks.task import TaskProblem, TaskVerdict

ADVANTAGE_EPSILON = 1e-4
"""Added to a group's standard deviation; TRL 0.14.0's value."""
Batch = dict[str, torch.Tensor]
"""One micro-batch: `input_ids` (B, S), each row a prompt, its completion, and padding, which comes last so that a
causal model needs no mask; or packed, (1, S): all sequences in one row, with `position_ids` (1, S) that begin again at
each. For each of its N completion tokens, all (N,): `targets`, the token; `predictors`, the
position that predicts it, as an index into the B * S positions; `advantages`; `weights`, how much it counts in the
micro-batch's loss; `sampled_logps` if another program sampled; later `reference_logps`."""


@dataclass(slots=True)
class Completion:
    """One sampled completion and everything known about it."""

    problem: TaskProblem
    prompt: str
    prompt_ids: list[int]
    ids: list[int]
    truncated: bool  # at max_completion_length, without an end token
    text: str = ""
    sampled_logps: list[float] | None = None  # of each token, by the program that sampled it, unless it is the trainer
    policy_step: int = 0  # optimizer steps that the weights had taken which sampled it
    verdict: TaskVerdict | None = None
    reward: float = 0.0
    advantage: float = 0.0
    group_differs: bool = True  # whether the rewards of its group differ

    @property
    def rewards(self) -> dict[str, float]:
        """The rewards of its verdict."""
        assert self.verdict is not None
        return self.verdict.rewards

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt_ids) + len(self.ids)

    def record(self, task: AnyTask, step: int) -> dict[str, Any]:
        """Return the row of completions.jsonl."""
        assert self.verdict is not None
        return {
            "step": step,
            **task.record(self.verdict),
            "prompt": self.prompt,
            "reward": self.reward,
            "advantage": self.advantage,
            "tokens": len(self.ids),
            "truncated": self.truncated,
            "policy_step": self.policy_step,
        }


class GroupStatistics(NamedTuple):
    """Statistics over the groups of one rank."""

    reward_std: float  # mean over the groups of the rewards' standard deviation
    equal: float  # share of the groups whose rewards are all equal: they have no advantage and teach nothing


def score(
    task: AnyTask,
    completions: Sequence[Completion],
    weights: Mapping[str, float],
    stop: Stop = never,
    *,
    prefill: str = THINK,
    code: Sequence[CodeReward] = (),
    step: int = 0,
) -> None:
    """Fill in verdicts and rewards; `weights` is the weight of each reward in the sum, of the task's and of `code`."""
    names = [name for name in weights if name in task.rewards]
    for c in completions:
        if stop():
            raise Stopped
        c.verdict = task.judge(c.text, c.problem, names, prefill)
    rows = [task.row(c.problem) for c in completions] if code else []
    for reward in code if completions else ():
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        values = reward([c.prompt for c in completions], [c.text for c in completions], columns, step)
        for c, value in zip(completions, values, strict=True):
            c.rewards[reward.name] = value
    for c in completions:
        c.reward = sum(weight * c.rewards[name] for name, weight in weights.items())


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


def split(completions: Sequence[Completion], tokens: int, *, packed: bool = False) -> list[list[Completion]]:
    """Split completions, longest first, into micro-batches of at most `tokens` tokens, with padding unless packed.

    A completion that is longer is alone. No split of completions in this order has fewer parts.
    """
    parts: list[list[Completion]] = []
    size = 0
    for c in sorted(completions, key=lambda c: c.length, reverse=True):
        more = c.length if packed or not parts else parts[-1][0].length
        if parts and size + more <= tokens:
            parts[-1].append(c)
            size += more
        else:
            parts.append([c])
            size = c.length
    return parts


def micro_batches(
    completions: Sequence[Completion],
    count: int,
    weight: float,
    filler: Completion,
    *,
    packed: bool = False,
    pad_token_id: int,
    device: torch.device,
) -> list[Batch]:
    """Return `count` micro-batches of similar size and similar lengths, in which each completion has this weight.

    The loss of a step is a mean over completions of a mean over tokens, so the micro-batch of a completion does not
    change the step's gradient. Every rank needs the same number of micro-batches, because the others wait for its
    gradients: with too few completions some hold only the `filler`, with weight 0.
    """
    most = len(completions) * sum(c.length for c in completions)
    tokens = bisect_left(range(most), True, key=lambda size: len(split(completions, size, packed=packed)) <= count)
    parts = [(part, weight) for part in split(completions, tokens, packed=packed)]
    parts += [([filler], 0.0)] * (count - len(parts))
    return [collate(part, worth, pad_token_id, device, packed=packed) for part, worth in parts]


def collate(
    completions: Sequence[Completion], weight: float, pad_token_id: int, device: torch.device, *, packed: bool = False
) -> Batch:
    """Return one micro-batch whose completions have this weight each."""
    width = max(c.length for c in completions)
    rows = [c.prompt_ids + c.ids + [pad_token_id] * (0 if packed else width - c.length) for c in completions]
    ends = list(accumulate(map(len, rows)))
    if not packed:
        ends = [end - width + c.length for end, c in zip(ends, completions, strict=True)]
    spans = [range(end - len(c.ids), end) for end, c in zip(ends, completions, strict=True)]
    values: dict[str, list[Any]] = {
        "input_ids": [list(chain(*rows))] if packed else rows,
        "predictors": [position - 1 for span in spans for position in span],
        "targets": [token for c in completions for token in c.ids],
        "advantages": [c.advantage for c in completions for _ in c.ids],
        "weights": [weight / len(c.ids) for c in completions for _ in c.ids],
    }
    if packed:
        values["position_ids"] = [[i for row in rows for i in range(len(row))]]
    if completions[0].sampled_logps is not None:
        values["sampled_logps"] = [logp for c in completions for logp in c.sampled_logps or ()]
    return {name: torch.tensor(value, device=device) for name, value in values.items()}
