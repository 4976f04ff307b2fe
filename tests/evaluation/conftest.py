"""The untrained demo model and a few problems."""

from __future__ import annotations

from pathlib import Path

import pytest
from mini_r1.countdown.data import write_jsonl
from mini_r1.countdown.generator import generate
from mini_r1.countdown.problem import Problem


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Every test of this folder."""


@pytest.fixture(scope="session")
def model_directory(untrained: Path) -> Path:
    return untrained


@pytest.fixture(scope="session")
def problems() -> list[Problem]:
    """Eight of the hub set's distribution, one of them twice with its numbers in another order."""
    rows = list(generate(8, 1))
    return [*rows, Problem(rows[0].nums[::-1], rows[0].target)]


@pytest.fixture(scope="session")
def problems_file(tmp_path_factory: pytest.TempPathFactory, problems: list[Problem]) -> Path:
    path = tmp_path_factory.mktemp("problems") / "some.jsonl"
    write_jsonl(problems, path)
    return path
