"""Completions as micro-batches: every tensor to the last padding, and what each completion weighs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mini_r1.tasks.countdown import task
from mini_r1.training.rollout import Batch, Completion, collate, micro_batches

CPU = torch.device("cpu")
PAD = 9


def completion(prompt: list[int], ids: list[int], **known: Any) -> Completion:
    return Completion(task.Problem((1, 2), 3), "", prompt, ids, False, **known)


def of_lengths(*lengths: int, differs: bool = True) -> list[Completion]:
    return [completion([1], [1] * length, group_differs=differs) for length in lengths]


def cut(completions: list[Completion], count: int, **options: Any) -> list[Batch]:
    return micro_batches(completions, count, pad_token_id=PAD, device=CPU, **options)


def lengths_and_weights(batches: list[Batch]) -> list[tuple[list[int], list[float]]]:
    return [
        (batch["completion_mask"].sum(1).tolist(), [round(w, 6) for w in batch["weights"].tolist()])
        for batch in batches
    ]


def test_prompts_are_padded_on_the_left_and_completions_on_the_right() -> None:
    pair = [completion([1, 2, 3], [4], advantage=0.5), completion([5], [6, 7], advantage=-1.0)]
    batch = collate(pair, 0.25, PAD, CPU)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, PAD], [PAD, PAD, 5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert batch["completion_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch["advantages"].tolist() == [0.5, -1.0]
    assert batch["weights"].tolist() == [0.25, 0.25]
    assert "sampled_logps" not in batch


def test_log_probabilities_of_another_sampler_are_aligned_with_their_tokens() -> None:
    pair = [completion([1, 2], [4], sampled_logps=[-0.5]), completion([5], [6, 7], sampled_logps=[-1.5, -2.5])]
    assert collate(pair, 1.0, PAD, CPU)["sampled_logps"].tolist() == [[-0.5, 0.0], [-1.5, -2.5]]


def test_tensors_are_on_the_device() -> None:
    batch = collate([completion([1], [2], sampled_logps=[-1.0])], 1.0, PAD, torch.device("meta"))
    assert {name: tensor.device.type for name, tensor in batch.items()} == dict.fromkeys(batch, "meta")
    assert len(batch) == 6


def test_similar_lengths_share_a_batch_and_a_completion_has_its_share_of_the_step() -> None:
    assert lengths_and_weights(cut(of_lengths(4, 1, 3, 2, 5), 2)) == [([1, 2], [0.4] * 2), ([3, 4, 5], [0.4] * 3)]


def test_equal_groups_are_left_out_only_on_request() -> None:
    completions = of_lengths(1, 2, differs=False) + of_lengths(3, 4)
    assert lengths_and_weights(cut(completions, 1)) == [([1, 2, 3, 4], [0.25] * 4)]
    assert lengths_and_weights(cut(completions, 1, drop_equal_groups=True)) == [([3, 4], [0.5] * 2)]


@pytest.mark.parametrize(("counted", "weight"), [(None, 1.0), (4.0, 0.5), (0.0, 0.0)])
def test_the_weight_is_that_of_the_completions_left_on_all_ranks(counted: float | None, weight: float) -> None:
    assert lengths_and_weights(cut(of_lengths(1, 2), 2, counted=counted)) == [([1], [weight]), ([2], [weight])]


def test_a_rank_with_too_few_completions_fills_up_with_micro_batches_of_weight_0() -> None:
    completions = of_lengths(2, 1, differs=False) + of_lengths(3)
    batches = lengths_and_weights(cut(completions, 3, drop_equal_groups=True))
    assert sorted(batches) == [([1], [0.0]), ([1], [0.0]), ([3], [3.0])]
    dropped = lengths_and_weights(cut(completions[:2], 2, drop_equal_groups=True))
    assert dropped == [([1], [0.0])] * 2
