"""The tasks by their names in recipes."""

import difflib
from collections.abc import Mapping
from typing import Any, Final

from mini_r1.errors import KitError
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.tasks.data_errors import DataError, parse_json
from mini_r1.tasks.qa.qa_task import QaTask
from mini_r1.tasks.task import Task

AnyTask = Task[Any]

DEFAULT_TASK: Final = CountdownTask.name
"""The task of a recipe, and of a row of completions, that names none."""
TASKS: Final[dict[str, AnyTask]] = {task.name: task for task in (CountdownTask(), QaTask())}


def find_task(name: str) -> AnyTask:
    """Return a task; a KitError that names the nearest for one that there is not."""
    if name not in TASKS:
        raise KitError(describe_unknown_task(name))
    return TASKS[name]


def describe_unknown_task(name: str) -> str:
    """Return the error for a task that there is not."""
    close = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(TASKS)}"
    return f"there is no task '{name[:60]}': {hint}"


def task_of_row(row: Mapping[str, Any]) -> AnyTask:
    """Return the task of a row of completions; files of earlier versions name none."""
    name = row.get("task")
    return TASKS.get(name if isinstance(name, str) else DEFAULT_TASK, TASKS[DEFAULT_TASK])


def score_line(line: bytes, place: str = "input", task: str = DEFAULT_TASK) -> dict[str, float | str]:
    """Judge the completion in a line of JSONL, as `mini-r1 score` does; return its rewards and "reason".

    The line is a row of the task's data with a `completion`; its own `task` comes first. Other keys are ignored.

    Raises:
        DataError: for anything else, naming the `place` of the line, such as `completions.jsonl:3`.
    """
    return score_row(parse_json(line, place), place, task)


def score_row(row: Any, place: str, task: str = DEFAULT_TASK) -> dict[str, float | str]:
    """Judge the completion of one row, as `score_line`."""
    name = row.get("task", task) if isinstance(row, dict) else task
    if not isinstance(name, str) or name not in TASKS:
        raise DataError(f"{place}: {describe_unknown_task(str(name))}")
    return TASKS[name].score_row(row, place)


def is_right(row: Mapping[str, Any]) -> bool | None:
    """Return whether the answer in a row of completions is right; None if the row has no verdict."""
    rewards = row.get("rewards")
    value = rewards.get(task_of_row(row).success) if isinstance(rewards, Mapping) else None
    return bool(value) if isinstance(value, int | float) else None
