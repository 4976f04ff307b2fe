"""Completions as micro-batches: every tensor to the last padding, and what each completion weighs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.training.rollout import Batch, Completion, collate, micro_batches, split

CPU = torch.device("cpu")
PAD = 9


def completion(prompt: list[int], ids: list[int], **known: Any) -> Completion:
    return Completion(Problem((1, 2), 3), "", prompt, ids, False, **known)


def of_lengths(*lengths: int) -> list[Completion]:
    """Completions of these lengths, each after a prompt of one token."""
    return [completion([1], [1] * length) for length in lengths]


def cut(completions: list[Completion], count: int) -> list[Batch]:
    return micro_batches(completions, count, 2.0, completion([1], [5]), pad_token_id=PAD, device=CPU)


def lengths(parts: list[list[Completion]]) -> list[list[int]]:
    return [[len(c.ids) for c in part] for part in parts]


def test_padding_is_on_the_right_and_each_token_has_the_position_that_predicts_it() -> None:
    pair = [completion([1, 2, 3], [4], advantage=0.5), completion([5], [6, 7], advantage=-1.0)]
    batch = collate(pair, 0.5, PAD, CPU)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 7, PAD]]
    assert batch["predictors"].tolist() == [2, 4, 5]
    assert batch["input_ids"].flatten()[batch["predictors"]].tolist() == [3, 5, 6]
    assert batch["targets"].tolist() == [4, 6, 7]
    assert batch["advantages"].tolist() == [0.5, -1.0, -1.0]
    assert batch["weights"].tolist() == [0.5, 0.25, 0.25]  # a completion's mean over its tokens
    assert "sampled_logps" not in batch


def test_packed_sequences_share_a_row_without_padding_and_their_positions_begin_again() -> None:
    pair = [completion([1, 2, 3], [4]), completion([5], [6, 7])]
    batch = collate(pair, 0.5, PAD, CPU, packed=True)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch["predictors"].tolist() == [2, 4, 5]
    assert batch["targets"].tolist() == [4, 6, 7]


def test_log_probabilities_of_another_sampler_are_aligned_with_their_tokens() -> None:
    pair = [completion([1, 2], [4], sampled_logps=[-0.5]), completion([5], [6, 7], sampled_logps=[-1.5, -2.5])]
    assert collate(pair, 1.0, PAD, CPU)["sampled_logps"].tolist() == [-0.5, -1.5, -2.5]


def test_tensors_are_on_the_device() -> None:
    batch = collate([completion([1], [2], sampled_logps=[-1.0])], 1.0, PAD, torch.device("meta"))
    assert {name: tensor.device.type for name, tensor in batch.items()} == dict.fromkeys(batch, "meta")
    assert len(batch) == 6


def test_a_micro_batch_holds_as_many_tokens_as_are_allowed_padding_included() -> None:
    completions = of_lengths(4, 1, 3, 2, 4)
    assert lengths(split(completions, 10)) == [[4, 4], [3, 2], [1]]
    assert lengths(split(completions, 9)) == [[4], [4], [3, 2], [1]]  # 2 x 5 tokens are too many
    assert lengths(split(completions, 25)) == [[4, 4, 3, 2, 1]]
    assert split([], 10) == []
    assert lengths(split(of_lengths(4, 2, 2), 14)) == [[4, 2], [2]]  # each of them is padded to the first
    assert lengths(split(completions, 10, packed=True)) == [[4, 4], [3, 2, 1]]  # 5 + 5 and 4 + 3 + 2


def test_a_completion_above_the_limit_is_alone() -> None:
    assert lengths(split(of_lengths(1, 8, 9, 1), 4)) == [[9], [8], [1, 1]]


def test_micro_batches_are_balanced() -> None:
    """With 24 tokens allowed the first would have four of five completions."""
    assert lengths(split(of_lengths(5, 5, 5, 5, 5), 24)) == [[5, 5, 5, 5], [5]]
    assert [len(batch["input_ids"]) for batch in cut(of_lengths(5, 5, 5, 5, 5), 2)] == [3, 2]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_each_completion_is_in_one_micro_batch_and_the_largest_is_as_small_as_it_can_be(count: int) -> None:
    completions = [completion([n], [n] * n) for n in (1, 2, 3, 30, 31, 40, 41)]
    batches = cut(completions, count)
    assert len(batches) == count
    tokens = sorted(token for batch in batches for token in batch["targets"].tolist())
    assert tokens == sorted(token for c in completions for token in c.ids)
    assert sum(batch["weights"].sum().item() for batch in batches) == pytest.approx(2.0 * len(completions))
    least = next(limit for limit in range(1000) if len(split(completions, limit)) <= count)
    assert [len(batch["input_ids"]) for batch in batches] == [len(part) for part in split(completions, least)]


def test_a_rank_with_too_few_completions_fills_up_with_micro_batches_of_weight_0() -> None:
    batches = cut(of_lengths(3), 3)
    assert [batch["targets"].tolist() for batch in batches] == [[1, 1, 1], [5], [5]]
    assert [batch["weights"].sum().item() for batch in batches] == pytest.approx([2.0, 0.0, 0.0])
    assert [batch["weights"].tolist() for batch in cut([], 1)] == [[0.0]]
