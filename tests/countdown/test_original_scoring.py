"""The original's verdicts, compared with its own rules: the regular expression, and Python's evaluator (here only)."""

from __future__ import annotations

import random
import re
import sys
import warnings
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from mini_r1.tasks.countdown import original_scoring
from mini_r1.tasks.countdown.original_scoring import MAX_BITS, MAX_EQUATION
from mini_r1.tasks.countdown.parsed_completion import parse_completion
from mini_r1.tasks.countdown.problem import Problem

FORMAT = re.compile(r"^<think>([^<]*(?:<(?!/?think>)[^<]*)*)<\/think>\n<answer>([\s\S]*?)<\/answer>$")
FRAGMENTS = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "\n",
    "</think>\n<answer>",
    "<",
    "a",
    "1+2",
    "\r",
    "\u2028",
]


def reference_equation(completion: str, nums: list[int], target: int) -> int:
    """The original's equation rule as the facts put it, with the evaluator it uses."""
    try:
        found = re.search(r"<answer>(.*?)</answer>", f"<think>{completion}")
        if found is None:
            return 0
        equation = found.group(1).strip()
        if sorted(int(digits) for digits in re.findall(r"\d+", equation)) != sorted(nums):
            return 0
        if not re.match(r"^[\d+\-*/().\s]+$", equation):
            return 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = eval(equation, {"__builtins__": None}, {})
        return int(abs(float(result) - float(target)) < 1e-5)
    except Exception:
        return 0


def format_original(completion: str) -> int:
    return original_scoring.format_original(parse_completion(completion, Problem((1, 2), 3)))


def equation_original(completion: str, nums: list[int], target: int) -> int:
    return original_scoring.equation_original(parse_completion(completion, Problem(tuple(nums), target)))


def in_answer(equation: str) -> str:
    return f"thinking</think>\n<answer>{equation}</answer>"


@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12).map("".join))
@example("a</think>\n<answer>b</answer>\n")
@example("a</think>\n<answer>b</answer>\n\n")
@example("a</think>\n<answer>b</answer><answer>c</answer>")
@example("a</think>\n<answer>")
@example("</think>\n<answer></answer>")
@settings(max_examples=400)
def test_format_is_the_regular_expression(completion: str) -> None:
    assert format_original(completion) == int(FORMAT.search(f"<think>{completion}") is not None)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))
@settings(max_examples=400)
def test_the_first_answer_on_one_line(completion: str) -> None:
    assert equation_original(completion, [1, 2], 3) == reference_equation(completion, [1, 2], 3)


# Numbers stay below 10, at most 4 of them, and `**` at most once: the reference's evaluator must return.
OPERATORS = ["+", "-", "*", "/", "//", " + ", "*-", "(", ")", ".", " ", "--", "\t", "\x0c", "\xa0", "\r", "()", "..."]


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.lists(st.sampled_from(OPERATORS), min_size=0, max_size=8),
    st.sampled_from(["", "**", "**-"]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=1500)
def test_any_equation_of_the_allowed_characters(
    nums: list[int], operators: list[str], power: str, rng: random.Random
) -> None:
    parts = [str(number) for number in nums] + operators + ([power] if power else [])
    rng.shuffle(parts)
    equation = "".join(parts)
    # Neighbouring numbers melt into one; powers of powers need brackets or two `**` made of single stars: not here.
    used = [int(digits) for digits in re.findall(r"\d+", equation)]
    assume(equation.count("**") <= 1 and max(used, default=0) < 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target = round(float(eval(equation)))
        except Exception:
            target = 3
    assert equation_original(in_answer(equation), used, target) == reference_equation(in_answer(equation), used, target)


@given(st.lists(st.integers(1, 99), min_size=2, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=500)
def test_well_formed_equations(nums: list[int], rng: random.Random) -> None:
    text = str(nums[0])
    for number in nums[1:]:
        operator = rng.choice([" + ", " - ", " * ", " / ", "//", "-+", "+-"])
        text = rng.choice(["{0}{1}{2}", "({0}{1}{2})", "{2}{1}({0})", "-({2}{1}{0})"]).format(text, operator, number)
    try:
        value = float(eval(text))
    except ZeroDivisionError:
        value = 0.0
    for target in (round(value), round(value) + 1):
        assert equation_original(in_answer(text), nums, target) == reference_equation(in_answer(text), nums, target)


@given(st.text())
@example("<answer>\ud800</answer>")
@example("<answer>٣</answer>")
@example("<answer>" + "9" * 5000 + "</answer>")
def test_no_text_raises(text: str) -> None:
    for completion in (text, in_answer(text)):
        assert equation_original(completion, [3], 3) in (0, 1)
        assert format_original(completion) in (0, 1)


@pytest.mark.parametrize(
    ("equation", "nums", "target", "paid"),
    [
        ("9**9**9", [9, 9, 9], 9, 0),
        ("99**98**7", [99, 98, 7], 9, 0),
        ("9**9**9 * 9**9**9", [9] * 6, 9, 0),
        ("1**999999 + 4", [1, 999999, 4], 5, 1),
        ("99**98 // 99**97", [99, 98, 99, 97], 99, 1),
        ("2**-999999 + 5", [2, 999999, 5], 5, 1),
        ("0**-1", [0, 1], 0, 0),
        ("(-8)**.5", [8, 5], 3, 0),
        ("3(5)", [3, 5], 15, 0),
        ("()", [], 0, 0),
        ("...", [], 0, 0),
        ("", [], 0, 0),
        ("٣", [3], 3, 0),
        ("-" * 900 + "5", [5], 5, 1),
        ("(" * 190 + "5" + ")" * 190, [5], 5, 1),
        ("(" * 400 + "5" + ")" * 400, [5], 5, 0),
        ("5" + " " * MAX_EQUATION + "+ 1", [5, 1], 6, 0),
        ("1.5", [1, 5], 2, 0),
        ("9**999//1", [9, 999, 1], 10**400, 0),
        ("1 + 2", [1, 3], 3, 0),
        ("3//1", [3, 2], 3, 0),
        # A power and a product of 2**18 bits are computed, and one of a bit more is not.
        ("2**262144//2**262143", [2, 262144, 2, 262143], 2, 1),
        ("2**262145//2**262144", [2, 262145, 2, 262144], 2, 0),
        ("(-2)**262144//2**262143", [2, 262144, 2, 262143], 2, 1),
        ("2**131071*2**131072//2**262142", [2, 131071, 2, 131072, 2, 262142], 2, 1),
        ("2**131072*2**131072//2**262143", [2, 131072, 2, 131072, 2, 262143], 2, 0),
        ("(0**999999)**999999", [0, 999999, 999999], 0, 1),
        ("(2**262144+2**262144)**1//2**262144", [2, 262144, 2, 262144, 1, 2, 262144], 2, 0),
        # 1,000 characters are read, and no more.
        ("(5" + " " * 997 + ")", [5], 5, 1),
        ("(5" + " " * 998 + ")", [5], 5, 0),
        # Closer than 0.00001 is right.
        ("1/100001", [1, 100001], 0, 1),
        ("1/100000", [1, 100000], 0, 0),
    ],
)
def test_what_stalls_or_is_odd_in_the_original_returns(equation: str, nums: list[int], target: int, paid: int) -> None:
    assert equation_original(in_answer(equation), nums, target) == paid


def test_an_answer_may_be_all_there_is() -> None:
    assert equation_original("<answer>1+2</answer>", [1, 2], 3) == 1
    assert equation_original("<answer>1\n</answer><answer>1+2</answer>", [1, 2], 3) == 1
    assert equation_original("<answer></answer>", [], 0) == 0


def test_no_integer_beyond_the_bound_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0

    def watch(operation: Callable[..., object], left: object, right: object) -> object:
        nonlocal largest
        value = operation(left, right)
        largest = max(largest, value.bit_length()) if isinstance(value, int) else largest
        return value

    watched = {node: partial(watch, operation) for node, operation in original_scoring._BINARY.items()}
    monkeypatch.setattr(original_scoring, "_BINARY", watched)
    for equation in ("99**98**7", "3**82000*3**82000*3**82000", "9**9**9", "2**262144", "7**(9**5)"):
        nums = [int(digits) for digits in re.findall(r"\d+", equation)]
        equation_original(in_answer(equation), nums, 1)
    # A power may have twice the bits of its lower bound, and no more.
    assert 0 < largest <= 2 * MAX_BITS + 2


def test_python_warns_about_nothing(recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("always")
    for equation in ("3(5)", "(3)(5)", "3 .5", "3.(5)"):
        equation_original(in_answer(equation), [3, 5], 15)
    assert not recwarn.list, sys.version
