"""The true result of each calculation of a thought."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.rewards import Verdict, judge


def verdict(text: str, nums: tuple[int, ...]) -> Verdict:
    return judge(text, Problem(nums, 1))


@pytest.mark.parametrize(
    ("line", "nums", "result"),
    [
        ("8 + 2 = 10 - 3 = 7 (too low)", (8, 2, 3), 7),
        ("8 + 2 = 11 - 3 = 8", (8, 2, 3), 7),  # the model's results are ignored
        ("3 - 8 = -5 + 9 = 4", (3, 8, 9), 4),
        ("8 + 2 = 10", (8, 2, 3), None),  # a number is left out
        ("8 + 2 + 3 + 3 = 16", (8, 2, 3), None),  # one too often
        ("(8 + 2) / 3 = 10/3", (8, 2, 3), None),  # no whole number
        ("8 / (2 - 2) = 0", (8, 2, 2), None),
        ("6 * 4 - 5 = 24 - 5 = 19", (6, 4, 5), 19),  # its second part only reckons on
        ("- 6 * 4 - 5 = 19", (6, 4, 5), 19),  # an item of a list
        ("3. 6 * 4 - 5 = 19", (6, 4, 5), 19),
        ("-8 + 10 = 2", (8, 10), 2),
        ("If I try 6 × 4 − 5 = 19, no", (6, 4, 5), 19),
        ("8 x 2 + 3 = 19", (2, 8, 3), 19),
        (r"$8 \times (2 + 3) = 40$", (2, 8, 3), 40),
        ("[8 ÷ 2] · 3 ≠ 13", (2, 8, 3), 12),
        ("6 * 4 - 5 != 20", (6, 4, 5), 19),
        (r"\frac{8}{2} + 3 = 7", (8, 2, 3), 7),
        (r"\(8 \div 2 + 3 = \boxed{7}\)", (8, 2, 3), 7),
        ("**8 / 2 + 3** = **7**", (8, 2, 3), 7),
        ("8 / 2 + 3 =\n7", (8, 2, 3), 7),
        ("8 + 2 = 10, 8 * 2 = 16, 8 + 2 + 3 = 13", (8, 2, 3), 13),  # one try, by the line
    ],
)
def test_the_true_result_of_a_line(line: str, nums: tuple[int, ...], result: int | None) -> None:
    assert verdict(line, nums).results == [result]


def test_one_for_each_that_is_counted_and_none_after_the_thought() -> None:
    text = "Let me see.\n8 + 2 = 10\n8 * 2 - 3 = 13\nno\n</think>\n<answer>8 + 2 + 3 = 13</answer>"
    assert verdict(text, (8, 2, 3)).tries == 2
    assert verdict(text, (8, 2, 3)).results == [None, 13]
    assert verdict("</think>\n<answer>8 + 2 + 3</answer>", (8, 2, 3)).results == [13]
    assert verdict("</think>\n<answer>8 + 2</answer>", (8, 2, 3)).results == [None]
    assert verdict("8 + 2 + 3 is 13", (8, 2, 3)).results == [None]


@given(text=st.text(alphabet="0123456789+-*/()=x×÷−$\\ \n{}.frac", max_size=200))
def test_any_text_has_as_many_results_as_tries(text: str) -> None:
    found = verdict(text, (8, 2, 3))
    assert len(found.results) == max(found.tries, 1)


@pytest.mark.parametrize("line", ["9*" * 50_000 + "9 = 1", "(" * 50_000 + "8 + 2 = 10", "8 + 2 = 10 - 3 = 7 " * 5_000])
def test_a_long_line_costs_no_more_than_reading_it(line: str) -> None:
    assert set(verdict(line, (8, 2, 3)).results) <= {None, 7}
