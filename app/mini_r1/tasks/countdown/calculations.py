"""What a thought calculates: its tries, each with its expressions and the results it claims for them.

The text comes from a model, so every repetition that could be retried is bounded: a search is linear in the text.
docs/metrics.md has a table of what is a try and what is not. Nothing here checks that the arithmetic is right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from .markup import END_THINK


class Equation(NamedTuple):
    """One expression and the result that the text claims for it."""

    expression: str
    """As written, from its first operand to its last: `8 + 2`, `6 \\times 7`, `\\frac{8}{2}`."""
    result: str
    """As written: `10`, `-4`, `3.33`, `5/2`, `\\frac{5}{2}`."""


MAX_MARKUP = 12
"""Signs of markup, brackets and spaces in a row that an expression may hold: no search looks further than this."""

# ASCII digits only, as in the scorer.
_NUMBER = r"[0-9]+(?:[.,][0-9]+)*"
_OPERATOR = r"(?:[-+/×÷−·xX]|\*(?!\*)|\\\*|\\(?:times|div|cdot)(?![A-Za-z]))"
_RELATION = r"(?:!?={1,3}(?![=>])|[≠≈]|\\(?:neq?|approx)(?![A-Za-z]))"
# What changes how an expression looks and not what it is; `**` is bold type, because the game has no powers.
_MARKUP = (
    r"(?:\s|[$&_`]|\*\*|\\[()\[\],;:!\ ]"
    r"|\\(?:quad|boxed|fbox|underline|math[a-z]{1,5}|text[a-z]{0,8})(?![A-Za-z]))"
)
_FRACTION = r"\\[dt]?frac(?![A-Za-z])"
_NEXT_PART = r"\}\s?\{"
"""Between the numerator and the denominator of a LaTeX fraction."""
_BEFORE = rf"(?:{_MARKUP}|(?:\\left)?[(\[{{]|{_FRACTION})"
_AFTER = rf"(?:{_MARKUP}|(?!{_NEXT_PART})(?:\\right)?[)\]}}])"
_LEAD = rf"(?:{_MARKUP}|[({{*]){{0,{MAX_MARKUP}}}"
_RESULT = (
    rf"(?P<result>[-−]?{_NUMBER}(?:/[0-9]+(?![0-9]|\s?(?:{_OPERATOR}|{_RELATION})))?"
    rf"|{_FRACTION}\s?\{{[0-9]+{_NEXT_PART}[0-9]+\}})"
)
# From the first number to the relation. It begins with one character class, for which `re` searches fastest.
_ARITHMETIC = re.compile(
    rf"""[0-9][0-9]*(?:[.,][0-9]+)* {_AFTER}{{0,{MAX_MARKUP}}}
    (?: (?P<operator>{_OPERATOR}|{_NEXT_PART}) (?:{_BEFORE}|[-+−]){{0,{MAX_MARKUP}}}
        {_NUMBER} {_AFTER}{{0,{MAX_MARKUP}}} )*
    (?P<end>) (?:\*\s?)? (?: {_RELATION} (?: (?={_LEAD}{_RESULT}) | (?P<unfinished>{_LEAD}\s*$) )? )?
    """,
    re.VERBOSE,
)
# A sign with a space behind it is the bullet of a list.
_BEFORE_FIRST = re.compile(rf"(?:[-−](?=[(\[{{\\]))?{_BEFORE}{{0,{MAX_MARKUP}}}[-−]?\Z")
_OUTER_MARKUP = re.compile(rf"\A{_MARKUP}{{1,{MAX_MARKUP}}}|{_MARKUP}{{1,{MAX_MARKUP}}}\Z")
_FIRST_NUMBER = re.compile(_LEAD + _RESULT)
_CONTINUES = re.compile(rf"{_AFTER}{{0,{MAX_MARKUP}}}{_OPERATOR}|[.)]\s+\S")
_YEAR = r"(?:19|20)[0-9]{2}"
# With a year of two digits it would be a calculation.
_DATE = re.compile(
    rf"(?:{_YEAR}(?:-[01][0-9]-[0-3][0-9]|/[01]?[0-9]/[0-3]?[0-9])"
    rf"|[0-3]?[0-9](?:-[0-3]?[0-9]-|/[0-3]?[0-9]/){_YEAR})(?![0-9])"
)

_Found = tuple[re.Match[str], str]
"""An expression with its `=`, and the result."""


def calculations(completion: str) -> list[list[Equation]]:
    """Return the tries of the thought in order: for each line that calculates, its equations, at least one.

    `8 + 2 = 10 - 3 = 7 (yes)` is one try with the equations (`8 + 2`, `10`) and (`10 - 3`, `7`).

    Args:
        completion: the model's text after the prefill; what follows the first `</think>` is not read.
    """
    return [
        [Equation(_expression(match), result) for match, result in found] for _, found in _lines(completion) if found
    ]


def calculating_lines(completion: str) -> Iterator[tuple[str, bool]]:
    """Yield the lines of the thought, and whether each is a try.

    A line that only gives the result of the line before is joined to that one.
    """
    return ((line, bool(found)) for line, found in _lines(completion))


def _lines(completion: str) -> Iterator[tuple[str, list[_Found]]]:
    text, found = "", list[_Found]()
    unfinished: re.Match[str] | None = None
    for line in completion.split(END_THINK, 1)[0].split("\n"):
        if unfinished:
            if not line.strip():
                continue
            result = _only_number(line)
            if result is not None:
                yield f"{text} {line}", [*found, (unfinished, result)]
                unfinished = None
                continue
            yield text, found
        text, (found, unfinished) = line, _equations(line)
        if not unfinished:
            yield text, found
    if unfinished:
        yield text, found


def _only_number(line: str) -> str | None:
    """The number that a line begins with, unless it is the first of an expression or numbers an item of a list."""
    found = _FIRST_NUMBER.match(line)
    if found is None or _has_relation(line) or _CONTINUES.match(line, found.end()):
        return None
    return found["result"]


def _equations(line: str) -> tuple[list[_Found], re.Match[str] | None]:
    """The equations of a line, and the expression whose `=` is the end of the line."""
    equations: list[_Found] = []
    if _has_relation(line):
        for match in _ARITHMETIC.finditer(line):
            if match["operator"] is None or _DATE.match(line, match.start()):
                continue
            if match["result"] is not None:
                equations.append((match, match["result"]))
            elif match["unfinished"] is not None:
                return equations, match
    return equations, None


def _has_relation(line: str) -> bool:
    """Whether a line may hold a relation; most lines of prose do not, and substrings are found fastest."""
    return "=" in line or "≠" in line or "≈" in line or "\\ne" in line or "\\approx" in line


def _expression(match: re.Match[str]) -> str:
    """The expression without the markup around it, and without brackets at its ends that have no partner in it."""
    line, start = match.string, match.start()
    before = _BEFORE_FIRST.search(line, max(0, start - 4 * MAX_MARKUP), start)
    text = _OUTER_MARKUP.sub("", line[before.start() if before else start : match.start("end")])
    unclosed = sum(map(text.count, "([{")) - sum(map(text.count, ")]}"))
    while unclosed > 0 and text[0] in "([{":
        text, unclosed = text[1:].lstrip(), unclosed - 1
    while unclosed < 0 and text[-1] in ")]}":
        text, unclosed = text[:-1].rstrip(), unclosed + 1
    return text
