"""The untrained demo model and a few problems."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from mini_r1.evaluation.evaluate_run import evaluate_run_or_model
from mini_r1.run.files import write_jsonl
from mini_r1.run.manifest import seal
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.countdown.generator import generate
from mini_r1.tasks.countdown.problem import Problem

RECIPE = """\
model_name_or_path: builtin:demo
dataset_id_or_path: generated
dataset_rows: 100
max_completion_length: 8
temperature: 0.7
max_steps: 10
seed: 11
prompt_style: notebook
"""


def evaluate_one(source: str, problems_file: Path | None = None, samples: int | None = None, **rest: Any) -> Any:
    """Evaluate one snapshot or model."""
    return evaluate_run_or_model(source, problems_file, samples=samples, **rest).evaluations[-1]


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
    write_jsonl(path, ({"target": problem.target, "nums": list(problem.nums)} for problem in problems))
    return path


@pytest.fixture
def run(tmp_path: Path, model_directory: Path, problems_file: Path) -> RunDir:
    """A run with complete snapshots of steps 5 and 10 and a half-written one of step 15."""
    directory = RunDir(tmp_path / "run")
    directory.snapshots.mkdir(parents=True)
    directory.recipe_file.write_text(RECIPE)
    shutil.copy(problems_file, directory.held_out_file)
    for step in (5, 10):
        scratch = directory.snapshots / f".step-{step}"
        shutil.copytree(model_directory, scratch)
        seal(scratch, directory.snapshots / f"step-{step}", run_id=directory.run_id)
    shutil.copytree(model_directory, directory.snapshots / "step-15")
    return directory
