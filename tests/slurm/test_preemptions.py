"""Preemptions in a row of one run: the real vLLM 0.7.0 and three ZeRO-3 workers, by `sbatch slurm/train_4xh100.sh`.

No stand-in: a real Slurm preempts, with and without grace in turn, always in another step. The run that nothing
disturbs is on two nodes, by `sbatch slurm/train_2x8h100.sh`: as many workers, so the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.real_stack import needs_vllm, random_model, sharding_everything, write_recipe
from tests.conftest import REPO, rows
from tests.slurm.cluster import GRACE_S, Job, Slurm
from tests.slurm.conftest import Kit
from tests.slurm.results import freeze, reached, same_result

pytestmark = [needs_vllm, pytest.mark.real]


@pytest.fixture(scope="module")
def kit(make_kit: Callable[[str, Path], Kit], slurm: Slurm) -> Kit:
    kit = make_kit("preemptions", REPO / ".venv-vllm")
    random_model(kit.folder / "model")
    return kit


def start(kit: Kit, run: str, steps: int, *options: str) -> Job:
    """4 GPUs: three workers and vLLM."""
    write_recipe(
        kit.folder / f"{run}.yaml", kit.folder / "model", gradient_accumulation_steps=1, max_steps=steps,
        save_steps=1000,
    )  # fmt: skip
    launch = (f"{run}.yaml", "--run-dir", f"runs/{run}", "--deepspeed", sharding_everything(kit.folder))
    return kit.submit("--partition=gpu", *options, *launch)


@pytest.mark.parametrize(("times", "steps"), [(2, 10), pytest.param(10, 32, marks=pytest.mark.exhaustive)])
def test_preempted_runs_end_with_the_weights_of_an_undisturbed_run(
    kit: Kit, slurm: Slurm, times: int, steps: int
) -> None:
    job = start(kit, f"preempted-{times}", steps, "--nodelist=n1", "slurm/train_4xh100.sh")
    two_nodes = ("--nodelist=n[2-3]", "--gpus-per-node=2", "slurm/train_2x8h100.sh")
    whole = start(kit, f"whole-{times}", steps, *two_nodes)
    run, undisturbed = kit.run(f"preempted-{times}"), kit.run(f"whole-{times}")
    saved = 0
    for count in range(times):
        job.wait_for(lambda count=count: job.restarts == count)  # type: ignore[misc]
        # At least one step further than the last save, so that none is for nothing.
        job.wait_for(reached(run, saved + 1))
        freeze(run)  # until Slurm wakes what it ends, so that there are steps left for the next time
        slurm.run("scontrol", "update", "partitionname=gpu", f"gracetime={GRACE_S if count % 2 else 0}")
        slurm.preempt("n1")
        job.wait_for(lambda count=count: job.restarts == count + 1)  # type: ignore[misc]
        newest = run.complete_checkpoints()[0]
        assert saved < newest.step < steps
        saved = newest.step
    slurm.run("scontrol", "update", "partitionname=gpu", f"gracetime={GRACE_S}")
    assert job.wait() == "COMPLETED", str(job)
    assert (job.exit_code, job.restarts) == (0, times)
    # With grace the script asks for the requeue, without it Slurm does it by itself.
    assert job.said.count("requeued after exit code 143") == times // 2
    assert job.said.count("Slurm ends this job: if it was preempted, Slurm restarts it") == times // 2

    assert whole.wait() == "COMPLETED", str(whole)
    assert whole.restarts == 0
    for one, attempts in ((run, times + 1), (undisturbed, 1)):
        record = one.read_record()["attempts"]
        assert [(attempt["workers"], attempt["vllm_device"]) for attempt in record] == [(3, "cpu")] * attempts
    assert "4 slots on the CPU (MINI_R1_ACCELERATOR=cpu and CUDA_VISIBLE_DEVICES=0,1,2,3)" in job.said
    assert "3 workers on 2 nodes (1 + 2)" in whole.said
    for submitted in (job, whole):
        assert f"Slurm job {submitted.number}" in submitted.said
        assert "training on 4 GPU(s)" in submitted.said
    outputs = sorted(path.name for path in (undisturbed.attempts / "1").glob("*.out"))
    assert outputs == ["rank-0.out", "rank-1.out", "rank-2.out"]
    newest = run.complete_checkpoints()[0]
    assert (newest.step, newest.facts["world_size"], newest.facts["zero_stage"]) == (steps, 3, 3)
    # Nothing was lost: every step was taken once, and each attempt began where the last one had stopped.
    taken = [
        row["step"] for attempt in range(1, times + 2) for row in rows(run.attempts / str(attempt) / "metrics.jsonl")
    ]
    assert taken == list(range(1, steps + 1))
    same_result(run, undisturbed)
