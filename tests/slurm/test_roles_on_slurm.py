"""Roles from what Slurm allocates, with the real vLLM 0.7.0: 3 + vLLM of 4 GPUs, 1 + vLLM of a subset, two nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_r1.run.reader import read_metrics

from tests.cluster.real_stack import needs_vllm, random_model, write_recipe
from tests.conftest import REPO
from tests.slurm.cluster import Job, Slurm
from tests.slurm.conftest import Kit

# What test_preemptions.py and test_nodes_and_arrays.py have of this is in the tier `real`.
pytestmark = [needs_vllm, pytest.mark.exhaustive]


@pytest.fixture(scope="module")
def kit(make_kit: Callable[[str, Path], Kit]) -> Kit:
    kit = make_kit("roles", REPO / ".venv-vllm")
    model = random_model(kit.folder / "model")
    write_recipe(kit.folder / "two.yaml", model, gradient_accumulation_steps=1, max_steps=2)
    return kit


def finished(kit: Kit, job: Job, run: str) -> dict[str, Any]:
    """What a finished job's one attempt was started with."""
    assert job.wait() == "COMPLETED", str(job)
    assert [row["step"] for row in read_metrics(kit.run(run))] == [1, 2]
    (attempt,) = kit.run(run).read_record()["attempts"]
    found: dict[str, Any] = attempt
    return found


def test_of_four_gpus_three_train_and_the_last_is_vllms(kit: Kit) -> None:
    job = kit.submit("slurm/train_4xh100.sh", "two.yaml", "--run-dir", "runs/four")
    attempt = finished(kit, job, "four")
    assert (attempt["workers"], attempt["vllm_device"]) == (3, "cpu")
    assert "4 slots on the CPU (MINI_R1_ACCELERATOR=cpu and CUDA_VISIBLE_DEVICES=0,1,2,3)" in job.said
    assert f"Slurm job {job.number}" in job.said
    assert "training on 4 GPU(s)" in job.said


def test_on_a_shared_node_a_job_uses_the_gpus_that_slurm_gives(kit: Kit, slurm: Slurm) -> None:
    other = ("--partition=prio", "--nodelist=n1", "--gpus-per-node=2", "--output=/dev/null", "--wrap=sleep 600")
    holder = slurm.run("sbatch", "--parsable", *other).strip()
    options = ("--gpus-per-node=2", "--nodelist=n1", "slurm/train_4xh100.sh", "two.yaml")
    job = kit.submit(*options, MINI_R1_RUNS=str(kit.folder / "my runs"))
    try:
        assert job.wait() == "COMPLETED", str(job)
    finally:
        slurm.run("scancel", holder)
    assert "2 slots on the CPU (MINI_R1_ACCELERATOR=cpu and CUDA_VISIBLE_DEVICES=2,3)" in job.said
    assert "1 worker, vLLM on node 0's last device (cpu)" in job.said
    assert (kit.folder / "my runs" / "two" / "run.json").is_file()


def test_on_two_nodes_all_gpus_but_the_first_nodes_last_train(kit: Kit) -> None:
    job = kit.submit("--gpus-per-node=2", "slurm/train_2x8h100.sh", "two.yaml", "--run-dir", "runs/nodes")
    attempt = finished(kit, job, "nodes")
    assert (attempt["workers"], attempt["vllm_device"]) == (3, "cpu")
    assert "3 workers on 2 nodes (1 + 2)" in job.said
    assert "training on 4 GPU(s)" in job.said
    outputs = sorted(path.name for path in (kit.run("nodes").attempts / "1").glob("*.out"))
    assert outputs == ["rank-0.out", "rank-1.out", "rank-2.out"]
