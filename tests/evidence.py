"""The evidence page, docs/verified.md: which tests prove each of its lines, and when they last passed.

`make test-all` passes `--record-evidence`. After the tests, this writes today's date into each line of which every test
ran and passed. No other line changes: a part of the tests dates what it covers completely.
"""

from __future__ import annotations

import ast
import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.tiers import COMMANDS

_NAME = re.compile(r"`(tests(?:/\w+)*(?:\.py(?:::\w+)?)?)`")
_COLLECTED = "mini_r1_collected"
"""Key under which a worker process of pytest-xdist reports to the main process."""

Test = tuple[str, str]
"""A file, relative to the checkout, and a test function in it."""


@dataclass(frozen=True)
class Line:
    """One line of the page's table; `number` counts from 0."""

    number: int
    feature: str
    cpu: str
    gpu: str
    tests: str
    tier: str
    last_run: str

    def names(self) -> list[str]:
        """Return the folders, files and `file::test` that the line names."""
        return _NAME.findall(self.tests)


def parse(page: str) -> list[Line]:
    """Return the lines of the table, without its header."""
    rows = [(number, text) for number, text in enumerate(page.splitlines()) if text.startswith("|")]
    return [Line(number, *(cell.strip() for cell in text.strip()[1:-1].split("|"))) for number, text in rows[2:]]


def tiers_of(name: str, root: Path) -> dict[Test, set[str]]:
    """Return the test functions of a name on the page, each with the tiers of its cases.

    Raises:
        FileNotFoundError: there is no such file or folder.
        KeyError: the file has no such test.
    """
    file, _, function = name.partition("::")
    path = root / file
    if path.is_dir():
        files = sorted(path.rglob("test_*.py"))
        return {test: tiers for found in files for test, tiers in tiers_of(str(found.relative_to(root)), root).items()}
    tiers = _tiers_in(ast.parse(path.read_text()))
    return {(file, test): tiers[test] for test in ([function] if function else tiers)}


def _tiers_in(module: ast.Module) -> dict[str, set[str]]:
    """Return the tiers of each test function: by `pytestmark`, its decorators, and the marks of its parameters."""
    assigned = {
        target.id: node.value
        for node in module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    of_module = _marks_in(assigned["pytestmark"]) if "pytestmark" in assigned else set()
    found = {}
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            every, some = set(of_module), set()
            for decorator in node.decorator_list:
                value = assigned.get(decorator.id, decorator) if isinstance(decorator, ast.Name) else decorator
                # Of a parametrization, a mark belongs to some of the cases.
                (some if isinstance(value, ast.Call) else every).update(_marks_in(value))
            found[node.name] = {_highest(every), *(_highest({*every, mark}) for mark in some)}
    return found


def _marks_in(expression: ast.expr) -> set[str]:
    return {node.attr for node in ast.walk(expression) if isinstance(node, ast.Attribute) and node.attr in COMMANDS}


def _highest(marks: set[str]) -> str:
    return next((tier for tier in ("exhaustive", "real") if tier in marks), "quick")


def tier_column(line: Line, root: Path) -> str:
    """Return what the column `tier` of a line must say."""
    tiers = {tier for name in line.names() for of_test in tiers_of(name, root).values() for tier in of_test}
    return ", ".join(tier for tier in COMMANDS if tier in tiers) or "-"


def record(page: str, root: Path, today: str, collected: set[str], passed: set[str]) -> str:
    """Return the page with today's date in each line of which all tests are there and passed.

    Args:
        collected: IDs of all cases that pytest found, those that it left out (-k, -m) included.
        passed: IDs of the cases that ran and passed.
    """
    cases: dict[Test, set[str]] = {}
    for case in collected:
        file, _, test = case.partition("[")[0].partition("::")
        cases.setdefault((file, test), set()).add(case)

    def proven(line: Line) -> bool:
        tests = [test for name in line.names() for test in tiers_of(name, root)]
        return bool(tests) and all(cases.get(test) and cases[test] <= passed for test in tests)

    texts = page.splitlines(keepends=True)
    for line in parse(page):
        if proven(line):
            texts[line.number] = f"{texts[line.number].rstrip()[:-1].rpartition('|')[0]}| {today} |\n"
    return "".join(texts)


class EvidenceRecorder:
    """A pytest plugin: after the tests, write the date into the lines of the page that they proved."""

    def __init__(self, config: pytest.Config) -> None:
        self._root = config.rootpath
        self._page = self._root / "docs" / "verified.md"
        # Then pytest does not collect the other cases of a file, and what is missing is unknown.
        self._worker = hasattr(config, "workerinput")
        self._incomplete = any("::" in arg for arg in config.args) or bool(config.getoption("lf", False))
        self._collected: set[str] = set()
        self._passed: set[str] = set()
        self._not_passed: set[str] = set()

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """Remember the cases that -m or -k left out."""
        self._collected.update(item.nodeid for item in items)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember the cases that will run."""
        self._collected.update(item.nodeid for item in session.items)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Send the IDs from a worker process to the main process."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[_COLLECTED] = sorted(self._collected)

    @pytest.hookimpl(optionalhook=True)  # pytest-xdist's
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take over the IDs of a worker process."""
        self._collected.update(getattr(node, "workeroutput", {}).get(_COLLECTED, ()))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember how a case ended; setup and teardown count, too."""
        if report.outcome != "passed":
            self._not_passed.add(report.nodeid)
        elif report.when == "call":
            self._passed.add(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Write the page, and print how many lines have today's date."""
        if self._worker:  # pytest-xdist's workers print a summary, too, and know only their own tests
            return
        terminalreporter.section("evidence")
        if self._incomplete:
            terminalreporter.line("nothing recorded: name whole files, and run without --lf")
            return
        today = datetime.date.today().isoformat()
        passed = self._passed - self._not_passed
        page = record(self._page.read_text(), self._root, today, self._collected, passed)
        self._page.write_text(page)
        dates = [line.last_run for line in parse(page) if line.names()]
        name = self._page.relative_to(self._root)
        terminalreporter.line(f"{name}: {dates.count(today)} of {len(dates)} lines with tests have today's date")
