"""What training asks of its data before the first step: bounded work, progress that is seen, a stop that ends it."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO

import pytest
from mini_r1.console import ProgressLine
from mini_r1.errors import ExitCode, KitError, Stopped
from mini_r1.recipe.fields import Recipe
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.task_data import TaskData
from mini_r1.training import prepare
from rich.console import Console

UNSOLVABLE = Problem((1, 2), 7)
HARD = Problem((71, 73, 79, 83, 89, 97, 41, 43), 999_999_937)
"""Without a solution too, which a search of an hour would find."""


def data(problems: Iterable[Problem]) -> TaskData:
    return TaskData(list(problems), [], {"source": "rows.jsonl"})


def look(problems: Iterable[Problem], monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> str:
    """What it prints, each row of its progress; `stop_at` is the question to which the answer is to stop."""
    monkeypatch.setattr(ProgressLine, "PLAIN_EVERY", -1.0)
    said, asked = StringIO(), iter(range(1, 1000))
    prepare.refuse_unsolvable(
        CountdownTask(), data(problems), Console(file=said, soft_wrap=True), lambda: next(asked) == stop_at
    )
    return said.getvalue()


def test_data_without_a_solution_is_refused() -> None:
    with pytest.raises(
        KitError, match=r"none of the first 200 training problems of rows.jsonl has a solution"
    ) as found:
        prepare.refuse_unsolvable(CountdownTask(), data([UNSOLVABLE] * 300))
    assert found.value.exit_code == ExitCode.CONFIG


def test_the_first_solution_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    said = look([UNSOLVABLE, Problem((1, 2), 3), *[HARD] * 100], monkeypatch)
    assert said == "looking for a problem with a solution 1/102\n"


def test_a_search_that_takes_too_long_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    said = look([HARD, UNSOLVABLE, HARD], monkeypatch)
    assert "looking for a problem with a solution 2/3\n" in said
    assert "none of the first 3 training problems of rows.jsonl is known to have a solution; 2 of them were not" in said


def test_a_stop_ends_the_check_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stopped, match="stopped while the data was looked at"):
        look([UNSOLVABLE] * 3, monkeypatch, stop_at=3)


def test_a_stop_ends_the_generation_of_data(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(model_name_or_path="builtin:demo", dataset_id_or_path="generated", dataset_rows=30, max_steps=1)
    asked = iter(range(1, 100))
    with pytest.raises(Stopped, match="stopped after generating 5 of 30 problems"):
        prepare.load_task_data(recipe, stop=lambda: next(asked) == 5)
