"""The tags of a completion, and the kit's format rule. Plain string searches, linear.

A completion continues the prompt's prefill, so the rules read both together. The kit's own prompts end in `<think>`.
"""

import re
from collections.abc import Mapping
from typing import Any

THINK, END_THINK = "<think>", "</think>"
ANSWER, END_ANSWER = "<answer>", "</answer>"
NOT_CLOSED = "the answer block is not closed"
NO_BLOCK = "no answer block"

_QUOTED = re.compile(r"""(character|unexpected|before) ('(?:[^'\\]|\\.)*'|".*?")""")
_NUMBER = re.compile(r"-?[0-9]+(?:\.\.\.)?(?:/[0-9]+(?:\.\.\.)?)?")
_MISSING = (
    (NO_BLOCK, "no answer"),
    ("no answer after </think>", "no answer after the thought"),
    ("an answer follows the first </think>", "no answer after the thought"),
    ("the answer is in the thought", "no answer after the thought"),
    ("</answer> without <answer>", "no answer after the thought"),
    (NOT_CLOSED, NOT_CLOSED),
)
"""How the reason of a missing answer begins, and the kind of failure that it is."""


def prefill_of(row: Mapping[str, Any]) -> str:
    """Return the prefill that the completion of a row continues; rows of the prompts that a task has name none."""
    prefill = row.get("prefill")
    return prefill if isinstance(prefill, str) else THINK


def own_prefill(prefill: str) -> dict[str, str]:
    """Return what `prefill_of` reads: nothing for a prefill that only opens the thought, as those of the tasks do."""
    return {} if prefill.endswith(THINK) and THINK not in prefill[: -len(THINK)] else {"prefill": prefill}


def last_answer(completion: str, prefill: str = THINK) -> tuple[str | None, str | None]:
    """Return the last complete answer block after the last `</think>`, or None and the reason why there is none.

    Without any `<think>` the whole text is searched: then the prompt asked for no thought, or the model wrote none.
    """
    text = prefill + completion
    end_of_thought = text.rfind(END_THINK)
    if end_of_thought < 0 and THINK in text:
        return None, "no </think>"
    if end_of_thought < 0 and ANSWER not in text:
        return None, NO_BLOCK
    end_of_thought = max(end_of_thought, 0)
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


def find_thought(completion: str, prefill: str = THINK) -> tuple[str, bool]:
    """Return the thought in a completion, and whether it ends; without any `<think>` it is the text before the answer.

    The tags are no part of it.
    """
    text = completion if THINK in prefill else completion.lstrip().removeprefix(THINK)
    tag = ANSWER if THINK not in prefill + completion and END_THINK not in text else END_THINK
    thought, end, _ = text.partition(tag)
    return thought, bool(end)


def check_format(completion: str, prefill: str = THINK) -> tuple[int | None, str | None]:
    """Return where the text of the answer block after the thought starts in a completion, and the breach of the format.

    The start is None when the format is broken before it, the breach None when there is none. The format is `<think>`
    thought `</think>`, a newline, `<answer>` answer `</answer>`, and nothing after. The thought holds no further
    `<think>`, the answer no `<answer>` or `</answer>`; a thought may mention `<answer>`. Of the prefill only what
    follows its `<think>` is a part of this.
    """
    _, opened, rest = prefill.partition(THINK)
    text = rest + completion if opened else completion.lstrip()
    if not opened and not text.startswith(THINK):
        return None, "the text does not begin with <think>"
    text = text if opened else text[len(THINK) :]
    start, breach = _check_inside(text, text.find(END_THINK))
    return None if start is None else max(0, start + len(completion) - len(text)), breach


def _check_inside(text: str, end_of_thought: int) -> tuple[int | None, str | None]:
    """Return the same for a text that starts inside the thought."""
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
