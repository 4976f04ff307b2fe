"""The three tiers of tests, and what a run of one tier says about the others.

quick       no marker     `make test`       needs nothing but `make install`
real        `real`        `make test-real`  needs Slurm, a container engine, vLLM, DeepSpeed, Chromium, kubectl
exhaustive  `exhaustive`  `make test-all`   long matrices and many repetitions; this target runs all three tiers
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

COMMANDS = {"quick": "make test", "real": "make test-real", "exhaustive": "make test-all"}
"""The target that runs a tier."""

_LEFT_OUT = "mini_r1_left_out"
"""Key under which a worker process of pytest-xdist reports to the main process."""


def tier_of(item: pytest.Item) -> str:
    """Return the tier of a test; a test with both markers is exhaustive."""
    return next((tier for tier in ("exhaustive", "real") if item.get_closest_marker(tier)), "quick")


class TierReport:
    """A pytest plugin: after the tests, list the tiers that were left out, each with its command."""

    def __init__(self) -> None:
        self._left_out: Counter[str] = Counter()

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Count the tests that -m or -k left out."""
        self._left_out.update(tier_of(item) for item in items)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Send the counts of a worker process to the main process."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[_LEFT_OUT] = dict(self._left_out)

    @pytest.hookimpl(optionalhook=True)  # pytest-xdist's
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take over the counts of one worker process: every worker collects, and deselects, the same tests."""
        self._left_out |= Counter(getattr(node, "workeroutput", {}).get(_LEFT_OUT, {}))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the list."""
        if self._left_out:
            terminalreporter.section("not in this run")
        for tier, command in COMMANDS.items():
            if self._left_out[tier]:
                terminalreporter.line(f"{self._left_out[tier]} {tier} tests: `{command}`")
