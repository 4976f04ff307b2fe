"""Problems without a hub: the distribution of the hub data set (Stream of Search's generator), seeded.

For each row: how many numbers, then the target, then numbers until they reach it by the rule of `generator_rule`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from mini_r1.tasks.data_errors import DataError

from .generator_rule import solvable_by_generator_rule
from .problem import Problem

TRIES_FOR_ONE_TARGET = 2_000
"""Sets of numbers tried for a target before it counts as out of reach. By default the hardest target takes 3 numbers
about 45 tries, so the distribution is left alone."""
TRIES_FOR_ONE_ROW = 1_000_000
"""Sets of numbers tried since the last new row before the specification is exhausted: a minute at most."""
DRAWS_FOR_ONE_ROW = 10_000
"""Targets drawn since the last new row, likewise: a small specification is exhausted long before a million tries."""


@dataclass(frozen=True)
class GeneratorSpec:
    """Distribution to generate; the default is the hub data set's. A recipe's `generator` is checked before."""

    sizes: Sequence[int] = (3, 4)  # counts of numbers, each equally likely; one given twice is twice as likely
    low: int = 1  # smallest number
    high: int = 99  # largest number
    target_low: int = 10  # smallest target
    target_high: int = 100  # largest target
    operators: str = "+-*/"  # operators a solution may need
    max_intermediate: int | None = None  # largest result of a step before the last one; None is no limit


DEFAULT_SPEC = GeneratorSpec()


def generate(rows: int, seed: int, spec: GeneratorSpec = DEFAULT_SPEC) -> Iterator[Problem]:
    """Yield `rows` distinct problems, each solvable by the generator's rule; by default 50,000 take about 20 s.

    No two have the same numbers in the same order and the same target; the same numbers in another order do occur, as
    in the hub data set. The first N problems of a seed are always the same, on every supported Python version.

    Raises:
        DataError: the specification has too few distinct problems.
    """
    random = Random(seed)
    seen: set[Problem] = set()
    out_of_reach: set[tuple[int, int]] = set()
    tries = draws = 0
    while len(seen) < rows:
        # randrange() alone: its algorithm is the same in Python 3.10 to 3.12.
        size = spec.sizes[random.randrange(len(spec.sizes))]
        target = random.randrange(spec.target_low, spec.target_high + 1)
        draws += 1
        if (size, target) not in out_of_reach:
            nums, used = _numbers_for(target, size, random, spec)
            tries += used
            if nums is None:
                out_of_reach.add((size, target))
            elif (problem := Problem(nums, target)) not in seen:
                seen.add(problem)
                tries = draws = 0
                yield problem
        if tries > TRIES_FOR_ONE_ROW or draws > DRAWS_FOR_ONE_ROW:
            raise DataError(
                f"only {len(seen)} distinct problems found for {spec}, {rows} asked: "
                "ask for fewer rows, or widen the numbers or the targets"
            )


def _numbers_for(target: int, size: int, random: Random, spec: GeneratorSpec) -> tuple[tuple[int, ...] | None, int]:
    """Return numbers that reach the target, or None, and how many sets were tried."""
    for tries in range(1, TRIES_FOR_ONE_TARGET + 1):
        nums = _draw(size, random, spec)
        if solvable_by_generator_rule(nums, target, spec.operators, spec.max_intermediate):
            return nums, tries
    return None, TRIES_FOR_ONE_TARGET


def _draw(size: int, random: Random, spec: GeneratorSpec) -> tuple[int, ...]:
    """Draw what `randrange(low, high + 1)` draws, three times as fast: small problems spend most of their time here."""
    width = spec.high + 1 - spec.low
    bits, draw = width.bit_length(), random.getrandbits
    nums: list[int] = []
    while len(nums) < size:
        number = draw(bits)
        if number < width:
            nums.append(spec.low + number)
    return tuple(nums)
