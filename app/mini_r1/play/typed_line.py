"""The two parts of a line that a person typed. No torch."""

import re
from typing import Any

from mini_r1.errors import KitError
from mini_r1.tasks.task import Task


def split_line(task: Task[Any], line: str) -> tuple[str, str | None]:
    """Return the two parts of a line such as `3 5 9 -> 1`; None for a second one that is still to be asked for."""
    given, *wanted = re.split(task.arrow, line)
    if len(wanted) > 1:
        first, second = task.columns.values()
        raise KitError(f"type one arrow between the {first} and the {second}, such as {task.typed_example}")
    return given, wanted[0] if wanted else None
