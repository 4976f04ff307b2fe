"""The evidence page names tests that exist, with their tiers, and a run dates the lines that it proved, no others."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.conftest import REPO
from tests.evidence import EvidenceRecorder, Line, parse, record, tier_column, tiers_of
from tests.tiers import COMMANDS

LINES = parse((REPO / "docs" / "verified.md").read_text())


def test_the_whole_table_is_read() -> None:
    assert len(LINES) > 60
    assert sum(bool(line.names()) for line in LINES) > 50


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.feature[:40])
def test_a_line_names_tests_that_exist_and_their_tiers(line: Line) -> None:
    for name in line.names():
        assert tiers_of(name, REPO), f"{name}: no test"
    # Nothing that looks like a test is passed over.
    assert line.tests.count("test_") <= sum(name.count("test_") for name in line.names())
    assert line.tier == tier_column(line, REPO)
    if line.last_run != "-":
        assert line.names()
        assert datetime.date.fromisoformat(line.last_run) <= datetime.date.today()


# ---- tiers, read from the source -------------------------------------------------------------------------------------

MODULE = """
import pytest
few = pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.exhaustive)])
missing = pytest.mark.skipif(True, reason="real")

def test_plain(): ...

@missing
@pytest.mark.parametrize("real", ["exhaustive"])
def test_no_mark(): ...

@pytest.mark.real
def test_marked(): ...

@few
def test_few(): ...

@pytest.mark.real
@pytest.mark.parametrize("n", [pytest.param(n, marks=pytest.mark.exhaustive if n > 1 else ()) for n in range(3)])
def test_both(): ...

def helper(): ...
"""


def test_the_tiers_of_a_test_are_those_of_its_cases(tmp_path: Path) -> None:
    (tmp_path / "test_plain.py").write_text(MODULE)
    assert {test: tiers for (_, test), tiers in tiers_of("test_plain.py", tmp_path).items()} == {
        "test_plain": {"quick"},
        "test_no_mark": {"quick"},
        "test_marked": {"real"},
        "test_few": {"quick", "exhaustive"},
        "test_both": {"real", "exhaustive"},
    }


def test_a_modules_mark_is_each_tests(tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_marked.py").write_text(MODULE + "pytestmark = [missing, pytest.mark.real]\n")
    tiers = tiers_of("tests", tmp_path)
    assert tiers["tests/test_marked.py", "test_plain"] == {"real"}
    assert tiers["tests/test_marked.py", "test_few"] == {"real", "exhaustive"}
    line = Line(0, "", "", "", "`tests/test_marked.py`, by hand", "", "-")
    assert tier_column(line, tmp_path) == "real, exhaustive"
    assert tier_column(Line(0, "", "", "", "by hand", "", "-"), tmp_path) == "-"


def test_a_name_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("def test_a(): ...\n")
    with pytest.raises(FileNotFoundError):
        tiers_of("test_other.py", tmp_path)
    with pytest.raises(KeyError):
        tiers_of("test_one.py::test_b", tmp_path)


# ---- dates -----------------------------------------------------------------------------------------------------------

HEADER = "# A title\n\n| feature | CPU | GPU | tests | tier | last run |\n|---|---|---|---|---|---|\n"
ROW = "| a | yes | | {tests} | quick | 2025-01-02 |\n"
CASES = {"tests/test_a.py::test_one", "tests/test_a.py::test_two[1]", "tests/test_a.py::test_two[x[2]::y]"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with three files of tests and a page."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = exhaustive\n")
    (tmp_path / "tests" / "test_a.py").write_text(
        "import pytest\n\ndef test_one(): ...\n\n"
        "@pytest.mark.parametrize('n', ['1', pytest.param('x[2]::y', marks=pytest.mark.exhaustive)])\n"
        "def test_two(n): ...\n"
    )
    (tmp_path / "tests" / "test_b.py").write_text(
        "import pytest\n\n@pytest.fixture\ndef broken():\n    yield\n    raise OSError\n\n"
        "def test_fails(): assert 0\n\ndef test_skips(): pytest.skip()\n\ndef test_breaks(broken): ...\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("tests", "missing", "dated"),
    [
        ("`tests/test_a.py`", None, True),
        ("`tests/test_a.py::test_one`", None, True),
        ("by hand; `tests/test_a.py::test_two`", None, True),
        ("`tests/test_a.py`", "tests/test_a.py::test_two[1]", False),
        ("`tests/test_a.py::test_one`", "tests/test_a.py::test_two[1]", True),
        ("`tests/test_a.py`, `tests/test_b.py::test_fails`", None, False),
        ("`tests`", None, False),
        ("by hand: `make lock`", None, False),
        ("-", None, False),
    ],
)
def test_a_line_is_dated_when_all_its_cases_passed(
    checkout: Path, tests: str, missing: str | None, dated: bool
) -> None:
    page = HEADER + ROW.format(tests=tests) + "\nText.\n"
    after = record(page, checkout, "2026-03-04", CASES, CASES - {missing or ""})
    assert after == (page.replace("2025-01-02", "2026-03-04") if dated else page)


def test_a_test_that_was_not_collected_proves_nothing(checkout: Path) -> None:
    page = HEADER + ROW.format(tests="`tests/test_a.py`")
    seen = {"tests/test_a.py::test_one"}
    assert record(page, checkout, "2026-03-04", seen, seen) == page


NAMES = ["a.py", "a.py::test_one", "b.py", "b.py::test_fails", "b.py::test_skips", "b.py::test_breaks"]


@pytest.mark.parametrize(
    ("options", "dated"),
    [
        ([], {"a.py", "a.py::test_one"}),
        (["-p", "xdist", "-n", "2"], {"a.py", "a.py::test_one"}),
        (["-p", "xdist", "-n", "2", "-m", "not exhaustive"], {"a.py::test_one"}),
        (["-m", "not exhaustive", "tests/test_a.py"], {"a.py::test_one"}),
        (["-k", "test_two"], set()),
        (["tests/test_a.py::test_one"], set()),  # the plugin cannot know what else the file has
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_run_dates_the_lines_that_it_proved(checkout: Path, options: list[str], dated: set[str]) -> None:
    if "xdist" in options:
        pytest.importorskip("xdist")
    (checkout / "conftest.py").write_text(
        "from tests.evidence import EvidenceRecorder\n\n"
        "def pytest_configure(config): config.pluginmanager.register(EvidenceRecorder(config))\n"
    )
    page = checkout / "docs" / "verified.md"
    page.write_text(HEADER + "".join(ROW.format(tests=f"`tests/test_{name}`") for name in NAMES))
    plain = {"PYTHONPATH": str(REPO), "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=checkout, env={**os.environ, **plain}, capture_output=True,
        text=True, timeout=600, check=False,
    )  # fmt: skip
    assert " passed" in done.stdout, done.stdout + done.stderr
    today = datetime.date.today().isoformat()
    found = [line.tests for line in parse(page.read_text()) if line.last_run == today]
    assert found == [f"`tests/test_{name}`" for name in NAMES if name in dated], done.stdout


def test_a_worker_process_leaves_the_page_alone(checkout: Path, pytestconfig: pytest.Config) -> None:
    """Workers that wrote at the same time as the main process left an empty page."""
    config = SimpleNamespace(rootpath=checkout, args=[], getoption=pytestconfig.getoption, workerinput={})
    lines: list[str] = []
    recorder = EvidenceRecorder(cast(pytest.Config, config))
    recorder.pytest_terminal_summary(SimpleNamespace(section=lines.append, line=lines.append))
    assert not lines
    assert not (checkout / "docs" / "verified.md").exists()


def test_make_test_all_records_and_the_other_targets_do_not() -> None:
    recipes = (REPO / "Makefile").read_text().split("\n\n")
    (recording,) = [text for text in recipes if "--record-evidence" in text]
    assert recording.startswith(f"{COMMANDS['exhaustive'].removeprefix('make ')}:")
