"""The style of a thought: reflections, and whether it enumerates tries or reasons in prose.

All figures are proxies for English, made to be compared over the steps of one run. docs/metrics.md states their limits.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from .calculations import ThoughtLine

Style = Literal["enumerating", "wordy", "neither"]

MIN_CALCULATIONS = 3
"""Calculations that make an enumeration: a first guess and its correction are not a search yet."""
MIN_WORDS = 30
"""Words that make a wordy thought: repeating the problem alone takes 15 to 20."""

# A LaTeX command such as \times is a sign, not a word; "re-evaluate" and "let's" are one word each.
_TOKEN = re.compile(
    r"(?P<sign>\\[A-Za-z]+|[-+*/×÷−·=≠≈])|(?P<number>[0-9]+(?:[.,][0-9]+)*)|(?P<word>[^\W\d_]+(?:['’-][^\W\d_]+)*)"
)

_ANOTHER_WAY = r"(?:another|(?:a )?different) (?:approach|way|method)"
# Written for text in which white space is one space. A phrase includes its object, so that "let me try a different
# approach" is one reflection and not two.
_PHRASES = (
    # The thought stops itself.
    r"(?<!can't )(?<!can’t )(?<!cannot )wait",
    r"hm+",
    r"actually,? no",
    # It goes over something again. "Let's try" is missing: Qwen announces every ordinary step with it.
    rf"let me try(?: again| {_ANOTHER_WAY})?",
    r"let(?: me|['’]s) (?:check|verify|correct)(?: again)?",
    r"double[- ]check\w*",
    r"(?:try|check|think) again",
    r"(?:re-?evaluat|re-?consider|re-?think|re-?check|re-?examin)\w*",
    # It takes another approach.
    r"alternatively",
    _ANOTHER_WAY,
    # It finds itself wrong.
    r"mistak(?:e|es|en)",
)
REFLECTION_PATTERN = rf"\b(?:{'|'.join(_PHRASES)})\b"
"""Every phrase that `count_reflections` counts, where white space is one space; the report highlights them too."""
_REFLECTION = re.compile(REFLECTION_PATTERN, re.IGNORECASE)


def count_reflections(thought: str) -> int:
    """Count the phrases by which a thought stops, goes back or takes another approach; see docs/metrics.md."""
    return sum(1 for _ in _REFLECTION.finditer(" ".join(thought.split())))


def classify_style(thought: Iterable[ThoughtLine]) -> Style:
    """Return whether a thought enumerates tries or reasons in prose, by its lines; see docs/metrics.md.

    A line with more words than numbers and signs is prose; any other line that is a try is a calculation. So
    `- 6 * 4 - 5 = 19 (too low)` is a calculation, and `If I take 6 * 4 = 24 first, I only need to lose 5` is prose.
    A line with neither words nor numbers (blank, `\\[`) is ignored.
    """
    lines = calculations = prose = total_words = 0
    for line in thought:
        tokens = Counter(token.lastgroup for token in _TOKEN.finditer(line.text))
        words, others = tokens["word"], tokens["number"] + tokens["sign"]
        lines += bool(words or tokens["number"])
        total_words += words
        prose += words > others
        calculations += words <= others and bool(line.equations)
    if calculations >= MIN_CALCULATIONS and 2 * calculations > lines:
        return "enumerating"
    if total_words >= MIN_WORDS and 2 * prose > lines:
        return "wordy"
    return "neither"
