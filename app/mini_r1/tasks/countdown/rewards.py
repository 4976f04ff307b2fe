"""The rewards of a completion, by name, and the verdict that is logged for every completion.

To add a reward, write a function `(completion, problem) -> float` and put `@reward("its_name")` above it; a recipe
then names it with a weight. Keep it linear in the length of the completion, and let no text raise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from . import markup, original_scoring
from .expression import check_answer
from .problem import Problem

RewardFunction = Callable[[str, Problem], float]

REWARDS: dict[str, RewardFunction] = {}
"""Every reward a recipe can name."""

VERDICTS = ("format", "equation", "format_original", "equation_original")
"""The rewards that a Verdict already holds, each 0 or 1."""

WORDS_PER_NUMBER = 10
"""Words of thought for each given number that earn the whole `words` reward."""
LENGTH_FULL = 1000
"""Characters up to which `length` pays 1.0; the original's trained answers were about 310 tokens, near this."""
LENGTH_NONE = 4000
"""Characters from which `length` pays nothing; the recipe's 1024 tokens of English are about this."""


_QUOTED = re.compile(r"""(character|unexpected|before) ('(?:[^'\\]|\\.)*'|".*?")""")
_NUMBER = re.compile(r"-?[0-9]+(?:\.\.\.)?(?:/[0-9]+(?:\.\.\.)?)?")


@dataclass(frozen=True, slots=True)
class Verdict:
    """All four verdicts on one completion, 0 or 1 each, and the kit's reason."""

    format: int
    equation: int
    format_original: int
    equation_original: int
    reason: str
    """`correct`, or what is wrong in words; the equation's fault comes before the format's."""


def folded(reason: str) -> str:
    """A verdict's reason with every number as N and every quoted sign as …, so that like reasons count as one.

    `result is 7, not 24` and `result is 5/2, not 30` are both `result is N, not N`.
    """
    return _NUMBER.sub("N", _QUOTED.sub(r"\1 …", reason))


def judge(completion: str, nums: Sequence[int], target: int) -> Verdict:
    """Give all four verdicts on a completion.

    No text raises (control characters and lone surrogates included), and the work is bounded by a constant times
    the length of the completion.

    Args:
        completion: the model's text after the prefill, so it starts inside `<think>`.
        nums: the given numbers.
        target: the value to reach.
    """
    format_fault = markup.format_fault(completion)
    equation_fault = _equation_fault(completion, nums, target)
    if equation_fault is not None:
        reason = equation_fault
    elif format_fault is not None:
        reason = f"correct, but the format is broken: {format_fault}"
    else:
        reason = "correct"
    return Verdict(
        format=int(format_fault is None),
        equation=int(equation_fault is None),
        format_original=original_scoring.format_original(completion),
        equation_original=original_scoring.equation_original(completion, nums, target),
        reason=reason,
    )


def reward(name: str) -> Callable[[RewardFunction], RewardFunction]:
    """Register the function below under `name`.

    Raises:
        ValueError: when the name is taken.
    """

    def register(function: RewardFunction) -> RewardFunction:
        if name in REWARDS:
            raise ValueError(f"the reward '{name}' is already defined")
        REWARDS[name] = function
        return function

    return register


@reward("format")
def format_reward(completion: str, problem: Problem) -> float:
    """1 for one thought, one answer block and nothing after it, else 0."""
    return float(markup.format_fault(completion) is None)


@reward("equation")
def equation_reward(completion: str, problem: Problem) -> float:
    """1 when the last answer after `</think>` is right by exact arithmetic, else 0."""
    return float(_equation_fault(completion, problem.nums, problem.target) is None)


@reward("format_original")
def format_original_reward(completion: str, problem: Problem) -> float:
    """1 when the original's format function pays, else 0."""
    return float(original_scoring.format_original(completion))


@reward("equation_original")
def equation_original_reward(completion: str, problem: Problem) -> float:
    """1 when the original's equation function pays, else 0."""
    return float(original_scoring.equation_original(completion, problem.nums, problem.target))


@reward("words")
def words_reward(completion: str, problem: Problem) -> float:
    """min(1, words of the thought / (10 words for each given number)): the original's second hypothesis.

    A thought that never ends earns nothing: else the reward would pay for running into the length limit.
    """
    thought = markup.thought(completion)
    if thought is None:
        return 0.0
    return min(1.0, len(thought.split()) / (WORDS_PER_NUMBER * len(problem.nums)))


@reward("length")
def length_reward(completion: str, problem: Problem) -> float:
    """1.0 up to 1000 characters, then falling in a straight line to 0.0 at 4000: favours short answers."""
    return min(1.0, max(0.0, (LENGTH_NONE - len(completion)) / (LENGTH_NONE - LENGTH_FULL)))


@reward("random")
def random_reward(completion: str, problem: Problem) -> float:
    """A fair coin, 0 or 1, fixed by a hash of completion and problem: the control of an experiment.

    A run that gets better on this reward alone learns from noise, and so may its neighbour with the real one.
    """
    # surrogatepass: a decoded completion may hold lone surrogates, which strict UTF-8 refuses.
    text = f"{problem.nums}|{problem.target}|{completion}".encode("utf-8", "surrogatepass")
    return float(blake2b(text, digest_size=1).digest()[0] & 1)


def _equation_fault(completion: str, nums: Sequence[int], target: int) -> str | None:
    answer, reason = markup.final_answer(completion)
    return reason if answer is None else check_answer(answer, nums, target)
