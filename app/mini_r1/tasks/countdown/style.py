"""How a completion goes about its search: what can be counted in the thought, whatever the verdict.

The thought is the text before the first `</think>`; one that never ends reaches to the end of the text. All figures
are proxies for English, made to be compared over the steps of one run. docs/metrics.md states their limits.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal

from .calculations import calculating_lines
from .markup import END_THINK

Style = Literal["enumerating", "wordy", "neither"]

MIN_CALCULATIONS = 3
"""Lines of calculation that make an enumeration: a first guess and its repair are not a search yet."""
MIN_WORDS = 30
"""Words that make a wordy thought: only saying the problem again takes 15 to 20."""

# A LaTeX command such as \times is a sign, not a word; "re-evaluate" and "let's" are one word each.
_TOKEN = re.compile(
    r"(?P<sign>\\[A-Za-z]+|[-+*/×÷−·=≠≈])|(?P<number>[0-9]+(?:[.,][0-9]+)*)|(?P<word>[^\W\d_]+(?:['’-][^\W\d_]+)*)"
)

_ANOTHER_WAY = r"(?:another|(?:a )?different) (?:approach|way|method)"
# Written for text in which white space is one space. A phrase takes in what belongs to it, so that "let me try
# a different approach" is one reflection and not two.
REFLECTION_PATTERN = (
    r"\b(?:"
    + "|".join(
        (
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
            # It takes another road.
            r"alternatively",
            _ANOTHER_WAY,
            # It finds itself wrong.
            r"mistak(?:e|es|en)",
        )
    )
    + r")\b"
)
"""Every phrase that `reflections` counts, in any case, where white space is one space; a page marks them by it too."""
_REFLECTION = re.compile(REFLECTION_PATTERN, re.IGNORECASE)


def tries(completion: str) -> int:
    """Count the calculations tried in the thought: its lines that work something out.

    A line counts once, however long its chain: `8 + 2 = 10 - 3 = 7 (too low)` is one try. See
    `calculations.calculations` for what each of them calculates, and docs/metrics.md for what counts.
    """
    return sum(calculates for _, calculates in calculating_lines(completion))


def reflections(completion: str) -> int:
    """Count the phrases in the thought by which it stops, goes back or takes another road.

    The phrases: wait (but not `can't wait`), hm(m), actually no; let me try, let me (let's) check / verify / correct,
    double-check, try / check / think again, re-evaluate, reconsider, rethink, recheck, re-examine; alternatively,
    another (a different) approach / way / method; mistake(n). In any case, at word boundaries, with or without the
    hyphen, over line ends. Phrases that overlap count once, phrases that follow each other count each: `wait, wait` is
    2.

    Not counted: the verdict on a try (`that's not 24`, `too low`, `doesn't work`), which would make each line of an
    enumeration a reflection, and the announcement of a step (`let me solve this step by step`, `let's try 8 + 2`).
    """
    return sum(1 for _ in _REFLECTION.finditer(" ".join(_thought(completion).split())))


def classify_style(completion: str) -> Style:
    """Say whether a thought enumerates attempts or reasons in words, by its lines.

    A line with more words than numbers and signs (`+ - * / =`, their variants, LaTeX commands) is prose; any other
    line that `tries` counts is a calculation. So `- 6 * 4 - 5 = 19 (too low)` is a calculation, and `If I take 6 * 4
    = 24 first, I only need to lose 5` is prose. A line without a word or number (blank, `\\[`, a rule) is no line.

    - enumerating: at least 3 calculations, and more than half of the lines are calculations.
    - wordy: at least 30 words, and more than half of the lines are prose.
    - neither: the rest, such as one or two tries and a short sentence.

    A thought that introduces each calculation with a sentence on a line of its own is not enumerating: half of its
    lines are prose. Many tries on one line are one calculation, so a run that enumerates in a single line is
    `neither`; a word is a run of letters, so the rule says little about languages without spaces.
    """
    lines = calculations = prose = total_words = 0
    for line, calculates in calculating_lines(completion):
        tokens = Counter(token.lastgroup for token in _TOKEN.finditer(line))
        words, numbers, signs = tokens["word"], tokens["number"], tokens["sign"]
        if not words and not numbers:
            continue
        lines += 1
        total_words += words
        if words > numbers + signs:
            prose += 1
        elif calculates:
            calculations += 1
    if calculations >= MIN_CALCULATIONS and 2 * calculations > lines:
        return "enumerating"
    if total_words >= MIN_WORDS and 2 * prose > lines:
        return "wordy"
    return "neither"


def _thought(completion: str) -> str:
    return completion.split(END_THINK, 1)[0]
