"""The ways to part a set of numbers in two: the last operation of an expression joins the values of the two parts."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from typing import TypeVar

T = TypeVar("T")


def splits(items: tuple[T, ...]) -> list[tuple[tuple[T, ...], tuple[T, ...]]]:
    """Every unordered pair of non-empty parts, the smaller one first: 2**(n-1) - 1 pairs, the order of items kept."""
    return [
        (tuple([items[i] for i in left]), tuple([items[i] for i in right]))
        for left, right in _split_indices(len(items))
    ]


@lru_cache(maxsize=16)
def _split_indices(count: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    pairs = []
    for size in range(1, count // 2 + 1):
        for left in combinations(range(count), size):
            # Of two halves of equal size each pair would come twice; the one that holds the first item stands for both.
            if 2 * size < count or left[0] == 0:
                pairs.append((left, tuple(i for i in range(count) if i not in left)))
    return tuple(pairs)
