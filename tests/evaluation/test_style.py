"""What counts as a try, by a list labelled by hand."""

from __future__ import annotations

import time

import pytest
from mini_r1.countdown import task

ONE = [
    "8 + 2 = 10 - 3 = 7 (too low)\n",
    "44 + 19 + 35 = 98",
    "- 95 - 21 = 74, then 74 + 3 = 77",
    "(44 + 19) * 2 = 126 is too large",
    "44 + (19 - 35) = 28",
    "First, I try 44-19=25.",
    "6 × 7 = 42",
    "42 ÷ 6 = 7",
    "6 x 7 = 42",
    r"\(6 \times 7 = 42\)",
    r"$42 \div 6 = $7",
    "5 - 9 = -4",
    "5 + -9 = -4",
    "3 * 3 != 8",
    "3 * 3 ≠ 8",
    "10 / 3 ≈ 3.33",
    "so x = 3 and 4 + 5 = 9",
    "44 + 19 = 63</think>\n1 + 1 = 2\n2 + 2 = 4",
    "Try: 44+19+35 = (98)",
]
NONE = [
    "",
    "\n\n",
    "</think>\n8 + 2 = 10",
    "I need to reach 98 with 44, 19 and 35.",
    "8 plus 2 is 10",
    "8 + 2",
    "8 + 2 =",
    "8 + 2 = ?",
    "x = 3",
    "10 = 8 + 2",
    "target = 98",
    "a + b = 10",
    "+ = 7",
    "8 +\n2 = 10",
    "=" * 50,
]


@pytest.mark.parametrize("thought", ONE)
def test_one_try(thought: str) -> None:
    assert task.tries(thought) == 1


@pytest.mark.parametrize("thought", NONE)
def test_no_try(thought: str) -> None:
    assert task.tries(thought) == 0


def test_tries_are_counted_by_line() -> None:
    assert (
        task.tries("8 + 2 = 10 (too high)\n8 - 2 = 6 (too low)\nhm\n8 * 2 = 16 (yes)\n</think>\n<answer>8 * 2</answer>")
        == 3
    )
    assert task.tries("1 + 1 = 2\r\n1 + 2 = 3\n\x00\ud800 1 + 1 = 2") == 3


@pytest.mark.parametrize("piece", ["=", "1 ", "1+", "1 + 1 ", "= 1", "1 + = ", "((((", "1)))) ", "- ", "x"])
def test_the_time_grows_with_the_text_and_not_its_square(piece: str) -> None:
    """A megabyte on one line; quadratic work would take minutes."""
    started = time.perf_counter()
    task.tries(piece * (1_000_000 // len(piece)))
    assert time.perf_counter() - started < 5
