"""The completions of one optimizer step as micro-batches of tensors."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from mini_r1.training.rollout import Completion

Batch = dict[str, torch.Tensor]
"""`input_ids` and `attention_mask` (B, P + C): prompts padded on the left, completions on the right.
`completion_mask` (B, C), `advantages` (B,), and `weights` (B,): the weight of a completion in its micro-batch's loss.
`sampled_logps` (B, C) if another program sampled; later `reference_logps` (B, C)."""


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
