"""The kit's scorer: compared with this test's exact arithmetic, on right, wrong and hostile answers."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mini_r1.tasks.countdown.expression import MAX_DEPTH, MAX_LENGTH, check_answer, whole_value

NUMBERS = st.lists(st.integers(1, 99), min_size=1, max_size=6)


SUM, PRODUCT, SIGNED, ATOM = range(4)
"""How tightly the outermost operator of a text binds."""


def random_expression(nums: list[int], rng: random.Random) -> tuple[str, Fraction | None, int]:
    """(text, value by Fraction or None for a division by zero, how tightly the text binds)."""
    blank = rng.choice(["", "", " ", "\n", "\t  "])
    value: Fraction | None
    if len(nums) == 1:
        text, value, level = str(nums[0]), Fraction(nums[0]), ATOM
    else:
        cut = rng.randrange(1, len(nums))
        left, a, left_level = random_expression(nums[:cut], rng)
        right, b, right_level = random_expression(nums[cut:], rng)
        operator = rng.choice("+-*/")
        level = SUM if operator in "+-" else PRODUCT
        if left_level < level:
            left = f"({left})"
        if right_level <= level:
            right = f"({right})"
        text = f"{left}{blank}{operator}{blank}{right}"
        if a is None or b is None or (operator == "/" and b == 0):
            value = None
        else:
            value = {"+": a + b, "-": a - b, "*": a * b, "/": a / (b or 1)}[operator]
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        text, level = f"({blank}{text})", ATOM
    if level == ATOM and rng.random() < 0.2:
        text, value, level = f"-{blank}{text}", None if value is None else -value, SIGNED
    return text, value, level


@given(NUMBERS, st.randoms(use_true_random=False))
def test_every_expression_is_judged_as_exact_arithmetic_judges_it(nums: list[int], rng: random.Random) -> None:
    shuffled = rng.sample(nums, len(nums))
    text, value, _ = random_expression(shuffled, rng)
    if value is None:
        assert check_answer(text, nums, 7) == "division by zero"
        return
    target = rng.choice([value.numerator // value.denominator, rng.randint(-50, 200)])
    reason = check_answer(text, nums, target)
    if value == target:
        assert reason is None
        assert check_answer(f" {text} = {target}\n", nums, target) is None
        assert check_answer(f"{text} = {target + 1}", nums, target) == (
            f"right-hand side {target + 1} is not the value {target}"
        )
    else:
        assert reason is not None
        assert reason.startswith("result is ")
        assert reason.endswith(f", not {target}")


@given(NUMBERS, st.randoms(use_true_random=False), st.sampled_from(["twice", "missing", "foreign"]))
def test_a_wrong_multiset_is_always_rejected(nums: list[int], rng: random.Random, how: str) -> None:
    used = {"twice": [*nums, nums[0]], "missing": nums[1:] or [100], "foreign": [*nums, 100]}[how]
    text, _, _ = random_expression(used, rng)
    reason = check_answer(text, nums, 5)
    assert reason is not None
    assert reason.startswith("number ")


@given(st.text(), NUMBERS, st.integers(-1000, 1000))
@example("\ud800", [1], 1)
@example("٣", [3], 3)
@example("1\x00", [1], 1)
def test_no_text_raises(text: str, nums: list[int], target: int) -> None:
    reason = check_answer(text, nums, target)
    assert reason is None or (0 < len(reason) < 160 and reason.isprintable())


@given(st.text(alphabet="0123456789+-*/()= \n", max_size=600))
def test_no_text_of_the_grammars_own_characters_raises(text: str) -> None:
    reason = check_answer(text, [1, 2, 3], 6)
    assert reason is None or (0 < len(reason) < 160 and reason.isprintable())


@pytest.mark.parametrize(
    ("text", "nums", "target", "reason"),
    [
        ("(1 + 2) / 3 = 1", [1, 2, 3], 1, None),
        ("44 + 19 + 35", [44, 19, 35], 98, None),
        ("44\n+ 19\n+ 35", [44, 19, 35], 98, None),
        ("8 / (3 - 8/3)", [8, 3, 8, 3], 24, None),
        ("2 * -3 * 4 = -24", [2, 3, 4], -24, None),
        ("--5", [5], 5, None),
        ("-(2 - 7)", [2, 7], 5, None),
        ("2 - 3 - 4", [2, 3, 4], -5, None),
        ("24 / 4 / 2", [24, 4, 2], 3, None),
        ("2 + 3 * 4", [2, 3, 4], 14, None),
        ("(" * MAX_DEPTH + "5" + ")" * MAX_DEPTH, [5], 5, None),
        (" " * 1000 + "5", [5], 5, None),
        ("", [5], 5, "answer is empty"),
        (" \n ", [5], 5, "answer is empty"),
        ("5" + " " * MAX_LENGTH + "+ 1", [5, 1], 6, "answer is longer than 512 characters"),
        ("(" * (MAX_DEPTH + 1) + "5" + ")" * (MAX_DEPTH + 1), [5], 5, "brackets nest deeper than 32"),
        ("3 × 5", [3, 5], 15, "unexpected character '×'"),
        ("3 − 5", [3, 5], -2, "unexpected character '−'"),
        (r"3 \times 5", [3, 5], 15, r"unexpected character '\\'"),
        ("3\x1b[31m", [3], 3, r"unexpected character '\x1b'"),
        ("3\ud800", [3], 3, r"unexpected character '\ud800'"),
        ("6.5*10", [6, 5, 10], 65, "unexpected character '.'"),
        ("3(5)", [3, 5], 15, "operator missing before '('"),
        ("3 5", [3, 5], 15, "operator missing before 5"),
        ("03+5", [3, 5], 8, "number 03 has a leading zero"),
        ("65 + 7//99", [65, 7, 99], 65, "unexpected '/' where a number belongs"),
        ("64 + 1**97", [64, 1, 97], 65, "unexpected '*' where a number belongs"),
        ("3 +", [3], 3, "answer ends where a number belongs"),
        ("(3", [3], 3, "'(' is not closed"),
        ("3)", [3], 3, "')' without '('"),
        ("()", [3], 3, "unexpected ')' where a number belongs"),
        ("3 = x", [3], 3, "unexpected character 'x'"),
        ("3 =", [3], 3, "one whole number must follow '='"),
        ("3 = 1 + 2", [3], 3, "one whole number must follow '='"),
        ("3 = 3 = 3", [3], 3, "one whole number must follow '='"),
        ("3 = 03", [3], 3, "number 03 has a leading zero"),
        ("7 + 7", [7, 5], 14, "number 7 used twice"),
        ("7 + 7 + 7", [7, 7], 14, "number 7 used 3 times, given twice"),
        ("7 + 5", [7, 5, 7], 14, "number 7 used once, given twice"),
        ("5 + 7", [5, 7, 7], 12, "number 7 used once, given twice"),
        ("7", [7, 5], 7, "number 5 not used"),
        ("7", [7, 5, 3], 7, "number 5 not used"),
        ("2 + 5 + 2 + 5", [2, 5], 14, "number 2 used twice"),
        ("7 + 5 + 9", [7, 5], 21, "number 9 is not among the numbers"),
        ("9" * 24, [7], 21, f"number {'9' * 24} is not among the numbers"),
        ("9" * 25, [7], 21, f"number {'9' * 24}... is not among the numbers"),
        ("5" + " " * (MAX_LENGTH - 2) + "5", [5], 5, "operator missing before 5"),
        ("5" + " " * (MAX_LENGTH - 1) + "5", [5], 5, "answer is longer than 512 characters"),
        ("9" * 400, [7], 21, f"number {'9' * 24}... is not among the numbers"),
        ("5 / (3 - 3)", [5, 3, 3], 5, "division by zero"),
        ("(3 - 3) / (5 - 5)", [5, 3, 3, 5], 5, "division by zero"),
        ("44 + 19 + 34", [44, 19, 34], 98, "result is 97, not 98"),
        ("7 / 3", [7, 3], 2, "result is 7/3, not 2"),
        ("3 - 7", [7, 3], 2, "result is -4, not 2"),
        ("44 + 19 + 35 = 5", [44, 19, 35], 98, "right-hand side 5 is not the value 98"),
        ("7 / 3 = 2", [7, 3], 2, "right-hand side 2 is not the value 7/3"),
    ],
)
def test_reasons_in_words(text: str, nums: list[int], target: int, reason: str | None) -> None:
    assert check_answer(text, nums, target) == reason


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2", 3),
        (" 2 - 1\n", 1),
        ("1 / 2", None),
        ("2 / 1", 2),
        ("1 + 2 = 9", 3),
        ("1", None),
        ("1 + 2 + 2", None),
        ("1 + 3", None),
        ("1 + two", None),
        ("", None),
    ],
)
def test_the_whole_value_an_expression(text: str, value: Fraction | None) -> None:
    assert whole_value(text, [1, 2]) == value


def test_a_division_by_zero_has_no_value() -> None:
    assert whole_value("1 / (2 - 2)", [1, 2, 2]) is None
