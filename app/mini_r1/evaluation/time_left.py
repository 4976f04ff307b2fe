"""How long an evaluation will still take, from how fast its completions come."""

from __future__ import annotations

import time

from mini_r1.values import duration

KNOWN_AFTER_S = 3.0
"""Before that the rate is the first batch's alone, which waits for everything to be warm."""


class Rest:
    """What is left of a step, and of the steps after it.

    Args:
        total: completions of a step.
        steps: after this one, of as many completions each.
    """

    def __init__(self, total: int, steps: int) -> None:
        self._total = total
        self._steps = steps
        self._began = time.monotonic()

    def words(self, done: int) -> str:
        """After so many completions; nothing where nothing is left, or nothing is known yet."""
        passed = time.monotonic() - self._began
        if not 0 < done < self._total or passed < KNOWN_AFTER_S:
            return ""
        each = passed / done
        said = f"about {duration(each * (self._total - done))} left"
        if self._steps:
            said += f", {duration(each * (self._total * (1 + self._steps) - done))} with all steps"
        return said
