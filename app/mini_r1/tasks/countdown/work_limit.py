"""A limit to a search, counted in steps and not in seconds: a problem is searched equally far on every machine."""

from __future__ import annotations


class OutOfWork(Exception):
    """Raised where a search has taken all the steps that it may take: its answer is not known."""


class Work:
    """The steps that a search may take.

    Args:
        steps: how many; None is no limit.
    """

    def __init__(self, steps: int | None) -> None:
        self._left = float("inf") if steps is None else steps

    def spend(self, steps: int = 1) -> None:
        """Take steps.

        Raises:
            OutOfWork: there are none left.
        """
        self._left -= steps
        if self._left < 0:
            raise OutOfWork
