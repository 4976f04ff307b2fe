"""Work grows no faster than the text: steps are counted, not timed. And nothing in the package evaluates text."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import mini_r1.tasks
import pytest
from mini_r1.tasks.countdown.parsed_completion import parse_completion
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.rewards import REWARDS, judge

FILES = sorted(Path(mini_r1.tasks.__file__).parent.rglob("*.py"))
LATE_IMPORTS = {
    "task_data.py": frozenset({"huggingface_hub"}),
    "problem_files.py": frozenset({"pyarrow", "yaml"}),
    "prompt_file.py": frozenset({"yaml"}),
}
"""Libraries that are imported where they are used."""
STEPS_PER_CHARACTER = 20
STEPS_AT_ALL = 3000
"""For an answer within the length limits, for a completion of any length."""

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
            taken = steps(lambda text=text, nums=nums: judge(text, Problem(nums, 5)).record())  # type: ignore[misc]
            assert taken <= 200 + STEPS_PER_CHARACTER * len(text), (size, taken)


@pytest.mark.parametrize("shape", ["open brackets", "signs", "sums", "digits", "powers", "blanks"])
def test_one_long_answer_costs_no_more_than_one_of_the_limit(shape: str) -> None:
    assert steps(lambda: judge(SHAPES[shape](200_000), Problem((9, 9, 9), 5))) < STEPS_AT_ALL


def test_right_answers_of_growing_length() -> None:
    for count in range(1, 9):
        text = "x</think>\n<answer>" + " + ".join("(-7)" for _ in range(count)) + "</answer>"
        taken = steps(lambda text=text, count=count: judge(text, Problem((7,) * count, -7 * count)))  # type: ignore[misc]
        assert taken <= 200 + STEPS_PER_CHARACTER * len(text)
        assert judge(text, Problem((7,) * count, -7 * count)).right == 1


def test_optional_rewards_are_linear_too() -> None:
    completion = parse_completion("x " * 100_000, Problem((1, 2), 3))
    for name in ("words", "length", "random"):
        assert steps(lambda name=name: REWARDS[name](completion)) < 50  # type: ignore[misc]


def evaluations(source: str) -> list[str]:
    """What in a module evaluates text as code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        # A regular expression is compiled, code is not.
        if name in {"eval", "exec", "compile", "__import__", "globals", "literal_eval"} and (
            ast.unparse(node) != "re.compile"
        ):
            found.append(ast.unparse(node))
    return found


def foreign_imports(source: str, late: frozenset[str]) -> set[str]:
    """What a module imports from outside `tasks` and the standard library; `late` may be imported in functions."""
    tree, found = ast.parse(source), set()
    for node in ast.walk(tree):
        names: set[str] = set()
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level != 1 and not str(node.module).startswith("mini_r1.tasks"):
            names = {"." * node.level + str(node.module).split(".")[0]}
        found |= names - sys.stdlib_module_names - (frozenset() if node in tree.body else late)
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("eval(text)", ["eval"]),
        ("import builtins\nbuiltins.exec(text)", ["builtins.exec"]),
        ("import re\nre.compile(text)", []),
        ("compile(text, '', 'eval')", ["compile"]),
        ("from ast import literal_eval\nliteral_eval(text)", ["literal_eval"]),
    ],
)
def test_evaluations_are_found(source: str, found: list[str]) -> None:
    assert evaluations(source) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import re, torch.nn", {"torch"}),
        ("from . import data\nfrom .data import rows", set()),
        ("from ..errors import KitError", {"..errors"}),
        ("from torch import nn", {"torch"}),
        ("import late", {"late"}),
        ("def f():\n    import late\n    import torch", {"torch"}),
    ],
)
def test_foreign_imports_are_found(source: str, found: set[str]) -> None:
    assert foreign_imports(source, frozenset({"late"})) == found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_module_evaluates_text(file: Path) -> None:
    assert evaluations(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_package_imports_no_other(file: Path) -> None:
    """But for the kit's errors, those of the hub and the words for values, which import nothing else."""
    source = file.read_text(encoding="utf-8")
    for line in (
        "from mini_r1.console import printable, text\n",
        "from mini_r1.errors import KitError, first_line\n",
        "from mini_r1.errors import KitError\n",
        "from mini_r1.hub_outages import hub_outage\n",
        "from mini_r1.values import describe_value, read_limited\n",
        "from mini_r1.values import describe_value\n",
    ):
        source = source.replace(line, "")
    assert foreign_imports(source, LATE_IMPORTS.get(file.name, frozenset())) == set()
