"""Work grows no faster than the text: steps are counted, not timed. And nothing in the package evaluates text."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import mini_r1.countdown
import pytest
from mini_r1.countdown.expression import parse
from mini_r1.countdown.problem import Problem
from mini_r1.countdown.rewards import REWARDS, judge

PACKAGE = Path(mini_r1.countdown.__file__).parent
STEPS_PER_CHARACTER = 20
STEPS_AT_ALL = 3000
"""For an answer within the length limits, whatever the length of the completion."""

SHAPES: dict[str, Callable[[int], str]] = {
    "answers without end": lambda n: "</think>\n" + "<answer>" * n,
    "ends without answers": lambda n: "</think>\n" + "</answer>" * n,
    "answer lines": lambda n: "</think>\n" + "<answer>\n" * n,
    "ends of thought": lambda n: "</think>" * n,
    "thoughts": lambda n: "<think>" * n + "</think>\n<answer>1</answer>",
    "angle brackets": lambda n: "<" * n + "</think>\n<answer>1</answer>",
    "newlines": lambda n: "</think>\n<answer>1</answer>" + "\n" * n,
    "blocks": lambda n: "</think>\n" + "<answer>1 + 1</answer>" * n,
    "open brackets": lambda n: "</think>\n<answer>" + "(" * n + "</answer>",
    "signs": lambda n: "</think>\n<answer>" + "-" * n + "1</answer>",
    "sums": lambda n: "</think>\n<answer>1" + "+1" * n + "</answer>",
    "digits": lambda n: "</think>\n<answer>" + "9" * n + "</answer>",
    "powers": lambda n: "</think>\n<answer>9" + "**9" * n + "</answer>",
    "blanks": lambda n: "</think>\n<answer>" + " " * n + "1</answer>",
    "words": lambda n: "x " * n,
}


def steps(function: Callable[[], object]) -> int:
    """Lines of Python executed by a call."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> object:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    parse.cache_clear()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_bounded_by_the_length(shape: str) -> None:
    for size in (1, 10, 100, 400, 1000, 10_000, 100_000):
        text = SHAPES[shape](size)
        for nums in ((1,), (9,) * 8):
            taken = steps(lambda text=text, nums=nums: judge(text, nums, 5))  # type: ignore[misc]
            assert taken <= 200 + STEPS_PER_CHARACTER * len(text), (size, taken)


@pytest.mark.parametrize("shape", ["open brackets", "signs", "sums", "digits", "powers", "blanks"])
def test_one_long_answer_costs_no_more_than_one_of_the_limit(shape: str) -> None:
    assert steps(lambda: judge(SHAPES[shape](200_000), (9, 9, 9), 5)) < STEPS_AT_ALL


def test_right_answers_of_growing_length() -> None:
    for count in range(1, 9):
        text = "x</think>\n<answer>" + " + ".join("(-7)" for _ in range(count)) + "</answer>"
        taken = steps(lambda text=text, count=count: judge(text, (7,) * count, -7 * count))  # type: ignore[misc]
        assert taken <= 200 + STEPS_PER_CHARACTER * len(text)
        assert judge(text, (7,) * count, -7 * count).equation == 1


def test_optional_rewards_are_linear_too() -> None:
    for name in ("words", "length", "random"):
        assert steps(lambda name=name: REWARDS[name]("x " * 100_000, Problem((1, 2), 3))) < 50  # type: ignore[misc]


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*.py")), ids=lambda file: file.name)
def test_no_module_evaluates_text(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            assert node.id not in {"eval", "exec", "compile", "__import__", "globals"}, node.lineno
        if isinstance(node, ast.Attribute) and node.attr in {"eval", "exec", "compile", "literal_eval"}:
            # A regular expression is compiled, code is not.
            assert isinstance(node.value, ast.Name), node.lineno
            assert (node.value.id, node.attr) == ("re", "compile"), node.lineno


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*.py")), ids=lambda file: file.name)
def test_the_package_stands_alone(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    top_level = {id(node) for node in tree.body}
    late = {"pyarrow", "huggingface_hub"} if file.name == "data.py" else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, node.lineno
            continue
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {str(node.module).split(".")[0]}
        else:
            continue
        allowed = sys.stdlib_module_names if id(node) in top_level else sys.stdlib_module_names | late
        assert names <= allowed, node.lineno
