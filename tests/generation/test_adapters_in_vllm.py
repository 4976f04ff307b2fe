"""An adapter's run on two real vLLM processes: their weights are those of the trained model, also after a resume.

adapters_session.py makes the runs, with .venv-vllm's Python.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.real_stack import ENVIRONMENT, PYTHON, needs_vllm, random_model, write_recipe

pytestmark = [needs_vllm, pytest.mark.real]
SESSION = Path(__file__).parent / "adapters_session.py"
STEPS, FIRST = 4, 3
ADAPTER = {
    "use_peft": True, "use_rslora": True, "lora_r": 4, "lora_alpha": 16, "lora_target_modules": ["all-linear"],
    "lora_dropout": 0.0,  # it acts in the loss only, and would be in the gap
}  # fmt: skip


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What adapters_session.py found in a run in float32, its second attempt, and one in bfloat16."""
    folder = tmp_path_factory.mktemp("adapters")
    model = random_model(folder / "model")
    changes = {**ADAPTER, "max_steps": STEPS, "gradient_accumulation_steps": 1, "learning_rate": 5e-2}
    write_recipe(folder / "float32.yaml", model, **changes)
    write_recipe(folder / "bfloat16.yaml", model, **changes, bf16=True, torch_dtype="bfloat16")
    environment = {**os.environ, **ENVIRONMENT, "MINI_R1_VLLM_DEVICE": "cpu,cpu"}
    done = subprocess.run(
        [PYTHON, SESSION, folder, str(FIRST)], env=environment, capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_greedy_text_and_log_probabilities_are_the_adapter_s_after_every_step(facts: dict[str, Any]) -> None:
    rows = facts["float32"]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["sync/equal"] for row in rows] == [1.0] * STEPS
    assert all(row["logp_gap"] < 1e-4 for row in rows)
    # Else the adapter is still what it was, and its merged weights are the base's.
    assert any(row["sync/changed"] > 0 for row in rows if "sync/changed" in row)
    assert rows[-1]["kl"] > 1e-3


def test_a_resumed_run_s_vllm_has_the_adapter_of_its_checkpoint(facts: dict[str, Any]) -> None:
    """vLLM starts with the base model; the third step is repeated, and samples the same."""
    assert facts["attempts"] == [FIRST, STEPS]
    first, again = facts["repeated"]
    assert first == again
    assert len(first) == 4


def test_in_sixteen_bits_the_gap_is_that_of_rounding(facts: dict[str, Any]) -> None:
    rows = facts["bfloat16"]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["logp_gap"] < 0.05 for row in rows)
    assert all(row["sync/equal"] >= 0.5 for row in rows)


def test_every_device_has_a_process_and_a_log(facts: dict[str, Any]) -> None:
    assert facts["logs"] == ["vllm-2.log", "vllm.log"]
    assert facts["processes"] == [2, 2, 1]
    assert all(count > 0 for count in facts["prompts"])
