"""docs/mini_r1.ipynb: its cells run in order, and its first cell builds the environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mini_r1 import load_recipe

from tests.conftest import REPO

NOTEBOOK = REPO / "docs" / "mini_r1.ipynb"
SMALL = (
    "warm_start.traces=300 warm_start.steps=20 warm_start.min_accuracy=0 dataset_rows=200 max_steps=2 warmup_steps=0 "
    "gradient_accumulation_steps=1 per_device_train_batch_size=4 logging_steps=1"
)
SECTIONS = ["1. Environment", "2. Data and prompt", "3. Rewards", "4. Training", "5. Results"]


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def text_of(cell: dict[str, Any]) -> str:
    """The text of all outputs of a cell."""
    texts = []
    for output in cell["outputs"]:
        lines = output.get("text") or output.get("data", {}).get("text/plain", [])
        texts.append("".join(lines))
    return "".join(texts)


def test_its_sections_are_the_original_s() -> None:
    headings = [line for cell in cells("markdown") for line in cell["source"] if line.startswith("## ")]
    assert [heading.removeprefix("## ").strip() for heading in headings] == SECTIONS


def test_its_outputs_are_of_one_run_from_top_to_bottom() -> None:
    code = cells("code")
    outputs = json.dumps([cell["outputs"] for cell in code])
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert "image/png" in outputs
    for printed in ("2442 held out", "step 70/70", "before  success", "after   success", "</answer>"):
        assert printed in outputs
    assert '"output_type": "error"' not in outputs
    for private in ("/tmp/", "/root/", "/home/"):
        assert private not in outputs


def test_the_first_cell_builds_the_environment_if_the_kernel_is_another(tmp_path: Path) -> None:
    """In a checkout whose installer and Python are stand-ins, which write down how they are called."""
    log = tmp_path / "log"
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "install.py").write_text(f"open({str(log)!r}, 'a').write('install\\n')\n")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    python.chmod(0o755)
    (tmp_path / "docs").mkdir()
    code = "".join(cells("code")[0]["source"])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "docs", capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "Installed. Choose the kernel mini-r1 and run all cells again.\n"
    assert log.read_text().splitlines() == ["install", "-m ipykernel install --user --name mini-r1"]


def test_the_line_for_a_gpu_names_a_recipe_that_loads() -> None:
    (line,) = [line for cell in cells("code") for line in cell["source"] if line.startswith("# recipe_name")]
    names: dict[str, Any] = {}
    exec(line.removeprefix("# "), names)
    recipe = load_recipe(names["recipe_name"], names["changes"])
    assert (recipe.model_name_or_path, recipe.load_in_4bit) == ("Qwen/Qwen2.5-0.5B-Instruct", True)
    assert not recipe.use_vllm  # `train` alone assigns no device to vLLM


def run_notebook(folder: Path, monkeypatch: pytest.MonkeyPatch, changes: str) -> list[dict[str, Any]]:
    """Run all cells with this Python and return those with code."""
    nbformat = pytest.importorskip("nbformat", reason="no Jupyter: `make install`")
    nbclient = pytest.importorskip("nbclient", reason="no Jupyter: `make install`")
    pytest.importorskip("ipykernel", reason="no Jupyter: `make install`")
    monkeypatch.setenv("MINI_R1_NOTEBOOK_RUN", str(folder / "run"))
    monkeypatch.setenv("MINI_R1_NOTEBOOK_CHANGES", changes)
    monkeypatch.setenv("MINI_R1_CACHE", str(folder / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    limit_s = 3600  # a busy machine takes a minute to start a kernel
    client = nbclient.NotebookClient(
        notebook,
        timeout=limit_s,
        startup_timeout=limit_s,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )
    client.execute(env={**os.environ, "MINI_R1_ACCELERATOR": "cpu"})
    return [cell for cell in notebook.cells if cell["cell_type"] == "code"]


@pytest.mark.real
def test_every_cell_runs_at_a_small_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = run_notebook(tmp_path, monkeypatch, SMALL)
    text = "".join(map(text_of, code))
    for printed in ("122 problems to train on, 78 held out", "right, thought empty", "step 2/2", "before  success"):
        assert printed in text
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])
    assert (tmp_path / "run" / "snapshots" / "step-2").is_dir()


@pytest.mark.exhaustive
def test_the_notebook_as_it_is_raises_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_notebook(tmp_path, monkeypatch, "")
    evaluations = tmp_path / "run" / "evaluation"
    before, after = (json.loads((evaluations / f"step-{step}.json").read_text()) for step in (0, 70))
    assert before["ci95"][1] < after["ci95"][0]
