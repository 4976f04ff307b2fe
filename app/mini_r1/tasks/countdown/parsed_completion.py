"""A completion taken apart at its tags, once, and the kit's format rule. Plain string searches, linear.

A completion continues the prefill and so starts inside `<think>`; the rules read `<think>` + completion.
"""

from dataclasses import dataclass

from .expression import check_answer
from .problem import Problem

THINK, END_THINK = "<think>", "</think>"
ANSWER, END_ANSWER = "<answer>", "</answer>"
NOT_CLOSED = "the answer block is not closed"


@dataclass(frozen=True, slots=True)
class ParsedCompletion:
    """Input of every reward."""

    text: str
    problem: Problem
    thought: str  # the text before the first `</think>`; all of it when the thought never ends
    first_block: int | None
    """Start of the text of the answer block after the thought; None when the format is broken before it."""
    format_error: str | None
    """Breach of the kit's format, or None. The format is `<think>` thought `</think>`, a newline, `<answer>` answer
    `</answer>`, and nothing after. The thought holds no further `<think>`, the answer no `<answer>` or `</answer>`; a
    thought may mention `<answer>`."""
    answer: str | None  # the text of the last complete answer block after the last `</think>`
    equation_error: str | None  # error of the answer; None when it is right


def parse_completion(text: str, problem: Problem) -> ParsedCompletion:
    """Take the model's text after the prefill apart, and check its answer."""
    end = text.find(END_THINK)
    first_block, format_error = _check_format(text, end)
    answer, equation_error = last_answer(text)
    if answer is not None:
        equation_error = check_answer(answer, problem.nums, problem.target)
    thought = text if end < 0 else text[:end]
    return ParsedCompletion(text, problem, thought, first_block, format_error, answer, equation_error)


def last_answer(text: str) -> tuple[str | None, str | None]:
    """Return the last complete answer block after the last `</think>`, or None and the reason why there is none."""
    end_of_thought = text.rfind(END_THINK)
    if end_of_thought < 0:
        return None, "no </think>"
    last_end = text.rfind(END_ANSWER, end_of_thought)
    start = text.rfind(ANSWER, end_of_thought, max(last_end, 0))
    if start < 0:
        return None, _why_no_answer(text, end_of_thought)
    start += len(ANSWER)
    return text[start : text.find(END_ANSWER, start)], None


def _why_no_answer(text: str, end_of_thought: int) -> str:
    after = text[end_of_thought:]
    if ANSWER in after:
        return NOT_CLOSED
    if END_ANSWER in after:
        return "</answer> without <answer>"
    if ANSWER in text[text.find(END_THINK) : end_of_thought]:
        return "an answer follows the first </think>, but the last </think> counts"
    return "the answer is in the thought, none follows </think>" if ANSWER in text else "no answer after </think>"


def _check_format(text: str, end_of_thought: int) -> tuple[int | None, str | None]:
    """Return `first_block` and `format_error`."""
    if end_of_thought < 0:
        return None, "no </think>"
    if THINK in text[:end_of_thought]:
        return None, "a second <think> in the thought"
    begin = END_THINK + "\n" + ANSWER
    if not text.startswith(begin, end_of_thought):
        return None, "</think> is not followed by one newline and <answer>"
    start = end_of_thought + len(begin)
    block, closed, rest = text[start:].partition(END_ANSWER)
    if not closed:
        return start, NOT_CLOSED
    if ANSWER in block:
        return start, "a second <answer> in the answer block"
    if ANSWER in rest:
        again = rest.partition(ANSWER)[2]
        return start, "more than one answer block" if END_ANSWER in again else "a second <answer> that is not closed"
    if END_ANSWER in rest:
        return start, "a stray </answer> after the answer block"
    if not rest:
        return start, None
    return start, "text after </answer>" if rest.strip() else "white space after </answer>"
