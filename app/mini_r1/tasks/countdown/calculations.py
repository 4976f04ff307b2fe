"""The calculations of a thought: its tries, each with its expressions, the results it claims, and its true result.

The text comes from a model, so every repetition in a pattern is bounded: a search is linear in the text.
docs/metrics.md has a table of what is a try and what is not.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .expression import MAX_LENGTH, parse, whole_value


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


# From the signs of an expression to the scorer's.
_NUMBERS_OF_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]{1,60})\}\s?\{([^{}]{1,60})\}")
_COMMAND = re.compile(r"\\(?:([A-Za-z]+)|[()\[\],;:! ])")
_LATEX_SIGNS = {"times": "*", "cdot": "*", "div": "/"}
_TEXT_MARKUP = re.compile(r"[$&_`]|\*\*")
_SIGNS = str.maketrans("×·xX÷−[]{}", "****/-()()")


class ThoughtLine(NamedTuple):
    """A line of the thought; one that only gives the result of the line before is joined to that one."""

    text: str
    equations: list[Equation]
    """In order: `8 + 2 = 10 - 3 = 7 (yes)` has (`8 + 2`, `10`) and (`10 - 3`, `7`). A line with one is a try."""

    def true_result(self, nums: Sequence[int]) -> int | None:
        """Return the true result of the line by the scorer's rules.

        The model's arithmetic does not count: `8 + 2 = 11 - 3 = 8` is 7. A line that calculates with its own result is
        one expression: `8 + 2 = 10 - 3 = 7` is (8 + 2) - 3. It ends when all numbers are used: `6 * 4 - 5 = 24 - 5 =
        19` is 6 * 4 - 5. Of several expressions, the first that uses all numbers counts. None for a calculation that
        doesn't use each number exactly once, or has no whole result: it can hit no target.
        """
        given, written, claimed = Counter(nums), "", ""
        for equation in self.equations:
            part = _with_plain_signs(equation.expression)
            continues = bool(claimed) and part.startswith(claimed)
            written = f"({written}){part.removeprefix(claimed)}" if continues else part
            parsed = parse(written)
            if not isinstance(parsed, str) and Counter(parsed.literals) == given:
                break
            claimed = _with_plain_signs(equation.result)
        return whole_value(written, nums)


def thought_lines(thought: str) -> Iterator[ThoughtLine]:
    """Yield the lines of a thought with what each calculates."""
    text, found = "", list[Equation]()
    unfinished: str | None = None
    for line in thought.split("\n"):
        if unfinished:
            if not line.strip():
                continue
            result = _only_number(line)
            if result is not None:
                yield ThoughtLine(f"{text} {line}", [*found, Equation(unfinished, result)])
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


def _equations(line: str) -> tuple[list[Equation], str | None]:
    """Return the equations of a line, and the expression whose `=` ends the line."""
    equations: list[Equation] = []
    if _has_relation(line):
        for match in _ARITHMETIC.finditer(line):
            if match["operator"] is None or _DATE.match(line, match.start()):
                continue
            if match["result"] is not None:
                equations.append(Equation(_expression(match), match["result"]))
            elif match["unfinished"] is not None:
                return equations, _expression(match)
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


def _with_plain_signs(text: str) -> str:
    """Return the text in the scorer's signs; a text that is too long is no calculation of the game."""
    if len(text) > MAX_LENGTH:
        return ""
    text = _NUMBERS_OF_FRACTION.sub(r"(\1/\2)", text)
    text = _COMMAND.sub(lambda found: _LATEX_SIGNS.get(found[1] or "", " "), text)
    return _TEXT_MARKUP.sub("", text.replace("\\*", "*")).translate(_SIGNS).strip()
