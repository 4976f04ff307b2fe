"""The style of a thought: whether it enumerates tries or reasons in prose.

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
