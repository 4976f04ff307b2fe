"""What is a try: every row of the table in docs/metrics.md, and the equations of a try."""

from __future__ import annotations

import re

import pytest
from mini_r1.tasks.countdown.calculations import Equation, thought_lines
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.rewards import judge
from mini_r1.tasks.countdown.style import classify_style

from tests.conftest import REPO


def calculations(text: str) -> list[list[Equation]]:
    """Return the equations of each try."""
    thought = judge(text, Problem((1,), 1)).completion.thought
    return [line.equations for line in thought_lines(thought) if line.equations]


HEAD = "| thought | tries |\n|---|---|\n"
ROW = re.compile(r"\| `(?P<thought>[^`]+)` \| (?P<tries>\d+) \|")


def table() -> list[tuple[str, int]]:
    """The rows of the page; one that is not of the form that is read here is an error."""
    page = (REPO / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = page.split(HEAD)[1].split("\n\n")[0].split("\n")
    matches = [ROW.fullmatch(row) for row in rows]
    assert None not in matches, rows[matches.index(None)]
    return [(re.sub(" *⏎ *", "\n", match["thought"]), int(match["tries"])) for match in matches if match]


TABLE = table()


def test_the_table_has_both_kinds() -> None:
    assert {count for _, count in TABLE} == {0, 1, 2}
    assert len(dict(TABLE)) == len(TABLE) >= 40


@pytest.mark.parametrize(("thought", "count"), TABLE)
def test_the_page_lists_what_is_counted(thought: str, count: int) -> None:
    assert len(calculations(thought)) == count


@pytest.mark.parametrize(
    ("thought", "equations"),
    [
        ("8 + 2 = 10 - 3 = 7 (yes)", [("8 + 2", "10"), ("10 - 3", "7")]),
        ("25 * 4 = 100, 100 - 6 = 94, no", [("25 * 4", "100"), ("100 - 6", "94")]),
        ("8 + 2 = 10 - 3", [("8 + 2", "10")]),
        ("8+2=10", [("8+2", "10")]),
        ("- 95 - 21 = 74", [("95 - 21", "74")]),
        ("* 8 - 2 = 6", [("8 - 2", "6")]),
        ("-5 + 8 = 3", [("-5 + 8", "3")]),
        ("-(5 + 3) = -8", [("-(5 + 3)", "-8")]),
        ("2) 8 - 9 = −1", [("8 - 9", "−1")]),
        ("(25 - 6) * 4 = 76", [("(25 - 6) * 4", "76")]),
        ("((25 - 6) * 4 = 76)", [("(25 - 6) * 4", "76")]),
        ("(so 25 - 6) = 19", [("25 - 6", "19")]),
        ("[[1 + 2] * 3] = 9", [("[[1 + 2] * 3]", "9")]),
        ("**8 + 2** = **10**", [("8 + 2", "10")]),
        ("`8 + 2` = `10`", [("8 + 2", "10")]),
        (r"\[ \left( 25 - 6 \right) \times 4 = \boxed{76} \]", [(r"\left( 25 - 6 \right) \times 4", "76")]),
        (r"3 * \frac{8 + 2}{5} - 1 = 5", [(r"3 * \frac{8 + 2}{5} - 1", "5")]),
        (r"\frac{\frac{8}{2}}{2} = 2", [(r"\frac{\frac{8}{2}}{2}", "2")]),
        ("10/4 = 5/2", [("10/4", "5/2")]),
        ("8 + 2 = 10/5 = 2", [("8 + 2", "10"), ("10/5", "2")]),
        (r"10 / 4 = \dfrac{5}{2}", [("10 / 4", r"\dfrac{5}{2}")]),
        ("1,200 + 5 = 1,205.5, or so", [("1,200 + 5", "1,205.5")]),
        ("1 + 2 = 3, 3 + 8 =\n\n**11**.", [("1 + 2", "3"), ("3 + 8", "11")]),
        ("8 + 2 =\n10.", [("8 + 2", "10")]),
    ],
)
def test_the_equations_of_a_try(thought: str, equations: list[tuple[str, str]]) -> None:
    assert calculations(thought) == [equations]


def test_each_line_is_a_try_with_its_own_equations() -> None:
    thought = "8 + 2 =\n8 * 2 =\n16\n\n8 / 2 = 4\n8 - 2 =\n</think>6 + 1 = 7"
    assert calculations(thought) == [[("8 * 2", "16")], [("8 / 2", "4")]]
    assert calculations("1 + 1 = 2\n3 - 1 =") == [[("1 + 1", "2")]]


def test_a_result_on_the_next_line_is_part_of_the_calculation() -> None:
    """As a separate line it would be neither prose nor a calculation, and half of the lines are no enumeration."""
    assert classify_style(thought_lines("25 + 6 =\n31\n25 - 6 =\n19\n19 * 4 =\n76\n")) == "enumerating"


LENGTH = 100_000


@pytest.mark.parametrize(
    ("piece", "count"),
    [
        ("1+1=", 1),
        ("1+1==", 1),
        ("1 + 1 =\n", 0),
        ("1 + 1 =\n2\n", LENGTH // 10),
        ("1 + 1 =\n\n\n", 0),
        ("1+1=**", 1),
        ("= ****", 0),
        ("1+1=  x", 0),
        ("1+((", 0),
        ("1 + - ", 0),
        ("1}{", 0),
        (r"\frac{", 0),
        (r"\frac{1}{2}", 0),
        (r"\left(", 0),
        ("= 1/9", 1),
        ("1/1/2024=", 0),
        ("2024-01-0", 0),
        ("1.", 0),
        (r"1 + 1 = \boxed{", 1),
        (r"\ne ", 0),
        ("1 + 1" + " " * 5000 + "= 2\n", 0),
        ("1 + 1 =" + " " * 5000 + "2\n", 0),
        ("9" * 5000 + "+1=1\n", LENGTH // 5005),
    ],
)
def test_hostile_text(piece: str, count: int) -> None:
    """A hundred thousand characters, counted at once: a search that tries again for each place would take minutes."""
    text = piece * (LENGTH // len(piece))
    assert len(calculations(text)) == count
