"""The documentation is short, and what it names exists: tests, benches, files, functions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import REPO

FIXES = REPO / "docs" / "trl-fixes.md"
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", REPO / "SECURITY.md", *sorted((REPO / "docs").glob("*.md"))]
TEST = re.compile(r"`(?P<file>test_\w+\.py)(?:::(?P<name>test_\w+))?`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
IN_CODE = re.compile(r"`((?:tests|bench|configs|docs|app)/[\w./-]+)`")


def fix_rows() -> list[str]:
    return [line for line in FIXES.read_text().splitlines() if re.match(r"\| (?:\d+|-) \|", line)]


def test_no_numbered_row_is_missing() -> None:
    numbers = {row.split("|")[1].strip() for row in fix_rows()}
    assert numbers - {"-"} == {str(n) for n in range(1, 24)}


@pytest.mark.parametrize("row", fix_rows(), ids=lambda row: row[2:40])
def test_every_fix_names_an_existing_test(row: str) -> None:
    column = row.rstrip(" |").rsplit("|", 1)[1]
    found = list(TEST.finditer(column))
    assert found, "its last column names no test"
    for match in found:
        (file,) = (REPO / "tests").rglob(match["file"])
        assert match["name"], f"{match['file']} without the name of a test"
        assert f"def {match['name']}(" in file.read_text()


def targets(page: Path) -> list[Path]:
    text = page.read_text()
    return [page.parent / link for link in LINK.findall(text)] + [REPO / name for name in IN_CODE.findall(text)]


def test_the_pages_name_many_files() -> None:
    assert sum(len(targets(page)) for page in PAGES) > 100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    assert [target for target in targets(page) if not target.exists()] == []


ARCHITECTURE = (REPO / "docs" / "architecture.md").read_text()
PACKAGE = REPO / "app" / "mini_r1"


def test_the_readme_and_the_pages_are_short() -> None:
    assert len((REPO / "README.md").read_text().splitlines()) <= 150
    assert sum(len(page.read_text().splitlines()) for page in (REPO / "docs").glob("*.md")) <= 3500


def test_the_index_has_every_page() -> None:
    index = (REPO / "docs" / "README.md").read_text()
    assert set(LINK.findall(index)) >= {page.name for page in (REPO / "docs").glob("*.md")} - {"README.md"}


def test_files_of_the_architecture_page_exist() -> None:
    named = set(re.findall(r"(?<![\w/])[\w/-]+\.py\b", ARCHITECTURE))
    assert len(named) > 40
    # A diagram leaves out the folder of a file that follows another one.
    assert [name for name in named if not (REPO / name).exists() and not list(PACKAGE.rglob(name))] == []


def test_packages_of_the_architecture_page_are_all_there_are() -> None:
    table = ARCHITECTURE.partition("| package | job |")[2].partition("\n\n")[0]
    named = {
        name.partition("/")[0]
        for line in table.splitlines()
        for name in re.findall(r"`(\w+/)", line.partition(" | ")[0])
    }
    assert named == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


@pytest.mark.parametrize(
    ("change", "file", "name"),
    [
        ("add a reward", "tasks/countdown/rewards.py", "def reward("),
        ("how many checkpoints are kept", "run/run_dir.py", "KEEP_CHECKPOINTS ="),
        ("give vLLM other devices", "machine/roles.py", "def assign("),
        ("add a `min_p` key", "recipe/fields.py", "class Recipe"),
        ("add a `min_p` key", "generation/sampler.py", "class SamplingConfig"),
        ("the pass@k formula", "evaluation/statistics.py", "def pass_at_k("),
        ("the hang limit", "recipe/fields.py", "hang_timeout_s:"),
        ("the exit code of a hub failure at start", "hub/hub_errors.py", "def hub_error("),
    ],
)  # fmt: skip
def test_the_architecture_page_says_where_to_change_what(change: str, file: str, name: str) -> None:
    (row,) = (line for line in ARCHITECTURE.splitlines() if line.startswith(f"| {change} |"))
    assert f"`app/mini_r1/{file}`" in row
    assert name in (PACKAGE / file).read_text()
