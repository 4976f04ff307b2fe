"""How a completion goes about its search: what can be counted in the thought, whatever the verdict."""

from __future__ import annotations

import re

from .markup import END_THINK

# Every repetition is bounded, so a search is linear in the line; ASCII digits only, as in the scorer.
_OPERATION = re.compile(r"[0-9][\s)]{0,4}(?:[-+*/×÷−·xX]|\\times|\\div|\\cdot)[\s(]{0,4}[-−]?[0-9]")
_EQUALS = re.compile(r"[=≠≈]")
_RESULT = re.compile(r"[\s$(]{0,4}[-−]?[0-9]")


def tries(completion: str) -> int:
    """Count the calculations tried in the thought: its lines that work something out.

    A line counts once, however long its chain: `8 + 2 = 10 - 3 = 7 (too low)` is one try. It counts when it holds
    `number operator number ... = number`, where `≠`, `!=` and `≈` are as good as `=`, and `×`, `÷`, `x`, `\\times`
    and brackets as good as plain operators. Not counted: a result in words (`8 plus 2 is 10`), an expression without
    a result, an equation that starts with its result (`10 = 8 + 2`), whatever comes after the first `</think>`. A
    thought that never ends counts to the end of the text. Two tries that share a line are one: a proxy, made
    to be compared over the steps of a run, not between models that write differently.
    """
    return sum(map(_calculates, completion.split(END_THINK, 1)[0].split("\n")))


def _calculates(line: str) -> bool:
    """Whether some `=` of the line has an operation between it and the `=` before it, and a number behind it."""
    start = 0
    for equals in _EQUALS.finditer(line):
        if _RESULT.match(line, equals.end()) and _OPERATION.search(line, start, equals.start()):
            return True
        start = equals.end()
    return False
