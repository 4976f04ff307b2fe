"""Ten preemptions in a row of one run: the real vLLM 0.7.0 and two ZeRO-3 workers, by `sbatch slurm/train_4xh100.sh`.

No stand-in: a real Slurm preempts, with and without grace in turn, always in another step.
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
TIMES, STEPS = 10, 32


@pytest.fixture(scope="module")
def kit(make_kit: Callable[[str, Path], Kit], slurm: Slurm) -> Kit:
    kit = make_kit("ten", REPO / ".venv-vllm")
    model = random_model(kit.folder / "model")
    write_recipe(
        kit.folder / "random.yaml", model, gradient_accumulation_steps=1, max_steps=STEPS, save_steps=1000
    )  # fmt: skip
    return kit


def start(kit: Kit, run: str) -> Job:
    """3 GPUs: two workers and vLLM."""
    options = ("--partition=gpu", "--nodelist=n1", "--gpus-per-node=3")
    launch = ("random.yaml", "--run-dir", f"runs/{run}", "--deepspeed", sharding_everything(kit.folder))
    return kit.submit(*options, "slurm/train_4xh100.sh", *launch)


def test_ten_preemptions_in_a_row_end_with_the_weights_of_the_run_that_nothing_disturbed(
    kit: Kit, slurm: Slurm
) -> None:
    job, run = start(kit, "ten"), kit.run("ten")
    saved = 0
    for count in range(TIMES):
        job.wait_for(lambda count=count: job.restarts == count)  # type: ignore[misc]
        # At least one step further than the last save, so that none is for nothing.
        job.wait_for(reached(run, saved + 1))
        freeze(run)  # until Slurm wakes what it ends, so that there are steps left for the next time
        slurm.run("scontrol", "update", "partitionname=gpu", f"gracetime={GRACE_S if count % 2 else 0}")
        slurm.preempt("n1")
        job.wait_for(lambda count=count: job.restarts == count + 1)  # type: ignore[misc]
        newest = run.complete_checkpoints()[0]
        assert saved < newest.step < STEPS
        saved = newest.step
    slurm.run("scontrol", "update", "partitionname=gpu", f"gracetime={GRACE_S}")
    assert job.wait() == "COMPLETED", str(job)
    assert (job.exit_code, job.restarts) == (0, TIMES)
    # With grace the script asks for the requeue, without it Slurm does it by itself.
    assert job.said.count("requeued after exit code 143") == TIMES // 2
    assert job.said.count("ended by Slurm: if preempted, it starts again by itself") == TIMES // 2

    whole = start(kit, "whole")
    assert whole.wait() == "COMPLETED", str(whole)
    assert whole.restarts == 0
    attempts = run.read_record()["attempts"]
    assert [(one["workers"], one["vllm_device"]) for one in attempts] == [(2, "cpu")] * (TIMES + 1)
    newest = run.complete_checkpoints()[0]
    assert (newest.step, newest.facts["world_size"], newest.facts["zero_stage"]) == (STEPS, 2, 3)
    # Nothing was lost: every step was taken once, and each attempt began where the last one had stopped.
    taken = [
        row["step"] for attempt in range(1, TIMES + 2) for row in rows(run.attempts / str(attempt) / "metrics.jsonl")
    ]
    assert taken == list(range(1, STEPS + 1))
    same_result(run, kit.run("whole"))
