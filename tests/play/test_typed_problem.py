"""A typed line becomes a problem, or an error that says what is wrong."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mini_r1.errors import KitError
from mini_r1.play import typed_line
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.typed_problem import read_problem

split_line = partial(typed_line.split_line, CountdownTask())


@pytest.mark.parametrize("line", ["3 5 9 -> 1", "3,5,9=1", "[3, 5, 9] → 1", " 3; 5 ,9 to 1 ", "3 5 9 => +1"])
def test_a_line_holds_numbers_and_target(line: str) -> None:
    numbers, target = split_line(line)
    assert target is not None
    assert read_problem(numbers, target) == Problem((3, 5, 9), 1)


def test_the_target_may_be_asked_for() -> None:
    assert split_line("3 5 9") == ("3 5 9", None)
    assert read_problem("3 5", "-2") == Problem((3, 5), -2)


@pytest.mark.parametrize(
    ("numbers", "target", "message"),
    [
        ("", "1", "give 2 to 6 numbers, such as 3, 5, 9; found 0"),
        ("7", "1", "found 1"),
        ("1 2 3 4 5 6 7", "1", "found 7"),
        ("abc", "1", "found 'abc'"),
        ("3 x", "1", "a number is a whole number, such as 7; found 'x'"),
        ("3 5.5", "1", "found '5.5'"),
        ("3 1e3", "1", "found '1e3'"),
        ("3 ٣", "1", "whole number"),
        ("3 0", "1", "'nums' must hold whole numbers from 1 to 1000000, found 0"),
        ("3 -5", "1", "found -5"),
        ("3 5", "", "a target is a whole number, such as 7; found nothing"),
        ("3 5", "9" * 4999, "that target is too large: it has 4999 digits"),
        ("3 " + "9" * 5000, "1", "that number is too large"),
        ("3 \x1b[31m", "1", r"found '\\x1b\[31m'"),
        ("3 5", "__import__('os')", "a target is a whole number"),
    ],
)
def test_a_wrong_input_raises_an_error(numbers: str, target: str, message: str) -> None:
    with pytest.raises(KitError, match=message):
        read_problem(numbers, target)


@given(line=st.text(max_size=60))
def test_any_line_is_a_problem_or_an_error(line: str) -> None:
    problem = None
    with contextlib.suppress(KitError):
        numbers, target = split_line(line)
        problem = read_problem(numbers, "1" if target is None else target)
    assert problem is None or 2 <= len(problem.nums) <= 6
