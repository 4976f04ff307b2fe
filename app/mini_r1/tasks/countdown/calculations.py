"""The calculations of a thought: its tries, each with its expressions and the results it claims for them.

The text comes from a model, so every repetition in a pattern is bounded: a search is linear in the text.
docs/metrics.md has a table of what is a try and what is not. Nothing here checks that the arithmetic is right.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple


class Equation(NamedTuple):
    """One expression and the result that the text claims for it."""

    expression: str
    """The text from its first operand to its last: `8 + 2`, `6 \\times 7`, `\\frac{8}{2}`."""
    result: str
    """The text: `10`, `-4`, `3.33`, `5/2`, `\\frac{5}{2}`."""


MAX_MARKUP = 12
"""Signs of markup, brackets and spaces in a row that an expression may hold: bounds every search."""

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


class ThoughtLine(NamedTuple):
    """A line of the thought; one that only gives the result of the line before is joined to that one."""

    text: str
    matches: list[tuple[re.Match[str], str]]
    """Each expression with its `=`, and the result; a line with at least one is a try."""

    @property
    def equations(self) -> list[Equation]:
        """Its equations in order: `8 + 2 = 10 - 3 = 7 (yes)` has (`8 + 2`, `10`) and (`10 - 3`, `7`)."""
        return [Equation(_expression(match), result) for match, result in self.matches]


def thought_lines(thought: str) -> Iterator[ThoughtLine]:
    """Yield the lines of a thought with what each calculates."""
    text, found = "", list[tuple[re.Match[str], str]]()
    unfinished: re.Match[str] | None = None
    for line in thought.split("\n"):
        if unfinished:
            if not line.strip():
                continue
            result = _only_number(line)
            if result is not None:
                yield ThoughtLine(f"{text} {line}", [*found, (unfinished, result)])
                unfinished = None
                continue
            yield ThoughtLine(text, found)
        text, (found, unfinished) = line, _equations(line)
        if not unfinished:
            yield ThoughtLine(text, found)
    if unfinished:
        yield ThoughtLine(text, found)


def _only_number(line: str) -> str | None:
    """Return the number that a line begins with, unless it begins an expression or numbers an item of a list."""
    found = _FIRST_NUMBER.match(line)
    if found is None or _has_relation(line) or _CONTINUES.match(line, found.end()):
        return None
    return found["result"]


def _equations(line: str) -> tuple[list[tuple[re.Match[str], str]], re.Match[str] | None]:
    """Return the equations of a line, and the expression whose `=` ends the line."""
    equations: list[tuple[re.Match[str], str]] = []
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
    # Most lines of prose hold no relation, and substrings are found fastest.
    return "=" in line or "≠" in line or "≈" in line or "\\ne" in line or "\\approx" in line


def _expression(match: re.Match[str]) -> str:
    """Return the expression without the markup around it, and without unpaired brackets at its ends."""
    line, start = match.string, match.start()
    before = _BEFORE_FIRST.search(line, max(0, start - 4 * MAX_MARKUP), start)
    text = _OUTER_MARKUP.sub("", line[before.start() if before else start : match.start("end")])
    unclosed = sum(map(text.count, "([{")) - sum(map(text.count, ")]}"))
    while unclosed > 0 and text[0] in "([{":
        text, unclosed = text[1:].lstrip(), unclosed - 1
    while unclosed < 0 and text[-1] in ")]}":
        text, unclosed = text[:-1].rstrip(), unclosed + 1
    return text
