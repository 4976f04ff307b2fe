"""A completion taken apart at its tags, once, and its answer checked."""

from dataclasses import dataclass

from mini_r1.tasks.answer_tags import THINK, check_format, find_thought, last_answer

from .expression import check_answer
from .problem import Problem


@dataclass(frozen=True, slots=True)
class ParsedCompletion:
    """Input of every reward."""

    text: str
    problem: Problem
    thought: str  # the text before the first `</think>`; all of it when the thought never ends; see `find_thought`
    thought_ends: bool
    first_block: int | None
    """Start of the text of the answer block after the thought; None when the format is broken before it."""
    format_error: str | None
    """Breach of the kit's format, or None; see `answer_tags.check_format`."""
    answer: str | None  # the text of the last complete answer block after the last `</think>`
    equation_error: str | None  # error of the answer; None when it is right
    prefill: str  # what the text continues


def parse_completion(text: str, problem: Problem, prefill: str = THINK) -> ParsedCompletion:
    """Take the model's text after the prefill apart, and check its answer."""
    first_block, format_error = check_format(text, prefill)
    answer, equation_error = last_answer(text, prefill)
    if answer is not None:
        equation_error = check_answer(answer, problem.nums, problem.target)
    return ParsedCompletion(
        text, problem, *find_thought(text, prefill), first_block, format_error, answer, equation_error, prefill
    )
