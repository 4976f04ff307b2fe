"""Phrases by which a thought stops, goes back or takes another approach.

A proxy for English, made to be compared over the steps of one run. docs/metrics.md states its limits.
"""

import re

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
