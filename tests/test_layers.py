"""The import layers of pyproject.toml hold, and light commands stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Seconds and gigabytes that `mini-r1 --help` must not cost.
HEAVY = ["accelerate", "datasets", "deepspeed", "numpy", "peft", "tensorboard", "torch", "transformers", "trl", "vllm"]


def test_import_layers() -> None:
    """The contracts themselves, as `make lint` checks them."""
    lint = [Path(sys.executable).parent / "lint-imports", "--config", ROOT / "pyproject.toml", "--no-cache"]
    done = subprocess.run(lint, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        # pydantic alone takes longer to import than the rest of --help together.
        ("mini_r1.cli.app", [*HEAVY, "pydantic", "pyarrow", "huggingface_hub"]),
        ("mini_r1.tasks.countdown", [*HEAVY, "pydantic"]),
        ("mini_r1.recipe.fields", HEAVY),
        ("mini_r1.recipe.recipe_file", HEAVY),
        ("mini_r1.run.run_dir", HEAVY),
        ("mini_r1.run.health", [*HEAVY, "pydantic", "pyarrow", "huggingface_hub", "yaml"]),
        ("mini_r1.run.completions", [*HEAVY, "pydantic", "pyarrow", "huggingface_hub", "yaml"]),
        ("mini_r1.run.listing", [*HEAVY, "pydantic", "pyarrow", "huggingface_hub", "yaml"]),
        ("mini_r1.tasks.registry", HEAVY),
        ("mini_r1.doctor.node_checks", HEAVY),
        ("mini_r1.doctor.bundle", HEAVY),
        ("mini_r1.hub.prefetch", HEAVY),
        ("mini_r1.console", HEAVY),
        ("mini_r1.hub.publish, mini_r1.hub.push, huggingface_hub.hf_api", HEAVY),
        # numpy comes with matplotlib, which is imported when something is drawn.
        ("mini_r1.report.build", HEAVY),
        ("mini_r1.plan.recipe_plans, mini_r1.plan.plan_tables", HEAVY),
    ],
)
def test_light_modules_load_nothing_heavy(module: str, unwanted: list[str]) -> None:
    """What import-linter cannot see: it counts the command line's imports inside functions, this counts real ones."""
    code = f"import sys, {module}; print(*sorted(set({unwanted!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], f"import {module} loads what a light command must not"


def test_names_of_modules_and_classes_are_unique() -> None:
    """A name that appears once can be searched for."""
    files = [path for path in (ROOT / "app" / "mini_r1").rglob("*.py") if path.name != "__init__.py"]
    names = Counter(path.stem for path in files)
    for path in files:
        names.update(node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []
