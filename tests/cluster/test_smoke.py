"""`mini-r1 doctor --smoke` on this machine's CPU, with the real vLLM and DeepSpeed: it passes, and it can fail."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_r1.doctor.smoke import SmokeFailure, check_sync

from tests.cluster.real_stack import ENVIRONMENT, PYTHON, needs_vllm

PARTS = ["model", "training", "one worker killed", "workers", "vLLM weight sync", "save", "resume"]


def smoke(*args: str | Path, **variables: str) -> tuple[int, dict[str, Any], str]:
    """Return the exit code, the JSON on standard output, and the text on standard error."""
    done = subprocess.run(
        [PYTHON, "-m", "mini_r1", "doctor", "--smoke", "--json", *map(str, args)],
        env={**os.environ, **ENVIRONMENT, **variables}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout), done.stderr


@needs_vllm
@pytest.mark.real
@pytest.mark.parametrize(
    ("options", "workers"),
    [
        pytest.param(("--gpus", "1"), 1, id="one device", marks=pytest.mark.exhaustive),
        pytest.param(("--gpus", "4", "--vllm-devices", "2"), 2, id="two vLLM processes"),
        pytest.param(("--gpus", "3"), 2, id="one vLLM process", marks=pytest.mark.exhaustive),
    ],
)
def test_the_whole_path_passes_and_leaves_nothing(tmp_path: Path, options: tuple[str, ...], workers: int) -> None:
    code, printed, errors = smoke(*options, TMPDIR=str(tmp_path))
    assert code == 0, errors + json.dumps(printed, indent=2)
    found = {finding["check"]: finding for finding in printed["findings"]}
    assert list(found) == PARTS
    assert {finding["status"] for finding in found.values()} == {"ok"}
    assert "exit code 150, no process left" in found["one worker killed"]["detail"]
    assert found["workers"]["detail"].startswith(f"{workers} on cpu")
    assert "greedy text equal at all" in found["vLLM weight sync"]["detail"]
    assert f"ZeRO-3, {workers} shards" in found["save"]["detail"]
    assert not list(tmp_path.glob("mini-r1-smoke-*"))


@needs_vllm
@pytest.mark.real
@pytest.mark.exhaustive
def test_weights_that_do_not_arrive_are_found(tmp_path: Path) -> None:
    # Python runs this file in every process: the client loses the weights and does not notice.
    (tmp_path / "sitecustomize.py").write_text(
        """
import sys, threading, time

def lose():
    while "mini_r1.training.train" not in sys.modules:
        time.sleep(0.001)
    client = None
    while not hasattr(client, "VllmEngine"):
        client = sys.modules.get("mini_r1.generation.vllm_client")
        time.sleep(0.001)
    client.VllmEngine.load_weights = lambda self, tensors: sum(1 for _ in tensors)

threading.Thread(target=lose, daemon=True).start()
"""
    )
    code, printed, _ = smoke("--gpus", "3", "--run-dir", tmp_path / "smoke", PYTHONPATH=str(tmp_path))
    assert code == 150
    last = printed["findings"][-1]
    assert (last["check"], last["status"]) == ("vLLM weight sync", "fail")
    assert "greedy text differs from the trainer's" in last["detail"]
    assert (tmp_path / "smoke" / "launches-node-0.txt").is_file()


@pytest.mark.parametrize(
    ("logged", "message"),
    [
        ([{"sync/equal": 1.0}, {"sync/equal": 0.5, "sync/changed": 1.0}], "differs from the trainer's at 1 of 2 steps"),
        ([{"loss": 0.0}], "differs from the trainer's at 0 of 0 steps"),
        ([{"sync/equal": 1.0}, {"sync/equal": 1.0, "sync/changed": 0.0}], "the greedy text never changed"),
    ],
)
def test_a_sync_that_proves_nothing_fails(logged: list[dict[str, float]], message: str) -> None:
    with pytest.raises(SmokeFailure, match=message) as failed:
        check_sync(logged)
    assert (failed.value.finding.check, failed.value.finding.status) == ("vLLM weight sync", "fail")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("my.yaml",), "the smoke test has its own recipe"),
        (("--set", "seed=1"), "the smoke test has its own recipe"),
        (("--run-dir", "."), "is not empty: give --smoke a new --run-dir"),
        (("--gpus", "2", "--vllm-devices", "2"), "--vllm-devices 2, but there are 2 GPUs"),
    ],
)
def test_other_options_are_refused(
    mini_r1: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setenv("MINI_R1_ACCELERATOR", "cpu")
    (tmp_path / "thesis.tex").touch()
    done = mini_r1("doctor", "--smoke", *args, cwd=tmp_path)
    assert done.returncode == 78
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
