"""The tags of a completion, and the kit's format rule. Plain string searches, linear.

A completion continues the prefill and so starts inside `<think>`; the rules read `<think>` + completion.
"""

import re

THINK, END_THINK = "<think>", "</think>"
ANSWER, END_ANSWER = "<answer>", "</answer>"
NOT_CLOSED = "the answer block is not closed"

_QUOTED = re.compile(r"""(character|unexpected|before) ('(?:[^'\\]|\\.)*'|".*?")""")
_NUMBER = re.compile(r"-?[0-9]+(?:\.\.\.)?(?:/[0-9]+(?:\.\.\.)?)?")
_MISSING = (
    ("no answer after </think>", "no answer after the thought"),
    ("an answer follows the first </think>", "no answer after the thought"),
    ("the answer is in the thought", "no answer after the thought"),
    ("</answer> without <answer>", "no answer after the thought"),
    (NOT_CLOSED, NOT_CLOSED),
)
"""How the reason of a missing answer begins, and the kind of failure that it is."""


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


def check_format(text: str, end_of_thought: int) -> tuple[int | None, str | None]:
    """Return the start of the text of the answer block after the thought, and the breach of the kit's format.

    The start is None when the format is broken before it, the breach None when there is none. The format is `<think>`
    thought `</think>`, a newline, `<answer>` answer `</answer>`, and nothing after. The thought holds no further
    `<think>`, the answer no `<answer>` or `</answer>`; a thought may mention `<answer>`.
    """
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


def classify_missing_answer(reason: str, *, truncated: bool) -> str | None:
    """Return the kind of failure of a completion without an answer, from its verdict's reason; None for another one."""
    if reason == "no </think>":
        return "cut off at the longest length while still thinking" if truncated else "the thought never ends"
    return next((kind for beginning, kind in _MISSING if reason.startswith(beginning)), None)


def fold_reason(reason: str) -> str:
    """Return a verdict's reason with every number as N and every quoted sign as …, so that like reasons count as one.

    `result is 7, not 24` and `result is 5/2, not 30` are both `result is N, not N`.
    """
    return _NUMBER.sub("N", _QUOTED.sub(r"\1 …", reason))
