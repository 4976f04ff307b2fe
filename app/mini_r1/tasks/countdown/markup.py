"""Where a completion keeps its thought and its answer, and the kit's format rule. Plain string searches, linear.

A completion continues the prefill and so starts inside `<think>`; the rules read `<think>` + completion.
"""

from __future__ import annotations

THINK, END_THINK = "<think>", "</think>"
ANSWER, END_ANSWER = "<answer>", "</answer>"


def format_fault(completion: str) -> str | None:
    """Say how a completion breaks the format, or None when it keeps it.

    The format is exactly `<think>` thought `</think>`, a newline, `<answer>` answer `</answer>`, and nothing after:
    the original's rule (see `original_scoring`) without its trailing newline and second answer block. The thought holds
    no further `<think>`, the answer no `<answer>` or `</answer>`; a thought may mention `<answer>`.
    """
    end_of_thought = completion.find(END_THINK)
    if end_of_thought < 0:
        return "no </think>"
    if completion.find(THINK, 0, end_of_thought) >= 0:
        return "a second <think> in the thought"
    start = end_of_thought + len(END_THINK)
    if not completion.startswith("\n" + ANSWER, start):
        return "</think> is not followed by one newline and <answer>"
    start += 1 + len(ANSWER)
    end = completion.find(END_ANSWER, start)
    if end < 0:
        return "no </answer>"
    if completion.find(ANSWER, start) >= 0 or completion.find(END_ANSWER, end + 1) >= 0:
        return "more than one answer block"
    if end + len(END_ANSWER) != len(completion):
        return "text after </answer>"
    return None


def thought(completion: str) -> str | None:
    """The text before the first `</think>`; None when the thought never ends."""
    end = completion.find(END_THINK)
    return None if end < 0 else completion[:end]


def final_answer(completion: str) -> tuple[str | None, str]:
    """The text of the last complete answer block after the last `</think>`.

    Returns:
        (text, ""), or (None, reason) when there is none.
    """
    end_of_thought = completion.rfind(END_THINK)
    if end_of_thought < 0:
        return None, "no </think>"
    last_end = completion.rfind(END_ANSWER, end_of_thought)
    start = completion.rfind(ANSWER, end_of_thought, max(last_end, 0))
    if start < 0:
        return None, "no answer after </think>"
    start += len(ANSWER)
    return completion[start : completion.find(END_ANSWER, start)], ""
