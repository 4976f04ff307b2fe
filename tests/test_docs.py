"""What the documentation points at is there: tests, benches, files."""

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


def test_the_pages_point_at_many_things() -> None:
    assert sum(len(targets(page)) for page in PAGES) > 100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_at_is_there(page: Path) -> None:
    assert [target for target in targets(page) if not target.exists()] == []
