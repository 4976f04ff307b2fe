"""A node that goes down under a job, failures that are retried until it is enough, and an array of four runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPO
from tests.slurm.cluster import Slurm
from tests.slurm.conftest import Kit, a_program
from tests.slurm.results import processes_with, reached, same_result

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def kit(make_kit: Callable[[str, Path], Kit], untrained: Path) -> Kit:
    kit = make_kit("nodes", REPO / ".venv")
    kit.write_recipe("small", model_name_or_path=str(untrained), save_steps=5, max_steps=60)
    kit.write_recipe("row", model_name_or_path=str(untrained), max_steps=2)
    return kit


def test_a_job_whose_node_goes_down_starts_again_from_its_last_checkpoint(kit: Kit, slurm: Slurm) -> None:
    # Two workers each: of the undisturbed run on one node, of the other on two.
    on_one = kit.submit("--gpus-per-node=2", "slurm/train_1gpu.sh", "small.yaml", "--run-dir", "runs/whole")
    on_two = ("--gpus-per-node=1", "slurm/train_2x8h100.sh", "small.yaml")
    job, run = kit.submit(*on_two, "--run-dir", "runs/down"), kit.run("down")
    job.wait_for(lambda: bool(run.complete_checkpoints()) and reached(run, 6)())
    slurm.crash_node("n1")  # where the batch shell is
    job.wait_for(lambda: job.restarts == 1)
    slurm.start_node("n1")
    assert job.wait() == "COMPLETED", str(job)
    second = job.said.partition("attempt 2:")[2]
    assert "goes on from step" in second
    rows = [line.split("\t") for line in (run.path / "slurm" / "attempts.tsv").read_text().splitlines()]
    assert [row[6] for row in rows] == ["killed", "0"]
    assert int(rows[0][5]) > 0  # until its last sign of life
    assert on_one.wait() == "COMPLETED", str(on_one)
    same_result(run, kit.run("whole"))


def test_a_job_that_fails_every_time_is_started_again_three_times_and_no_more(kit: Kit) -> None:
    job = kit.submit("slurm/train_1gpu.sh", "small.yaml", "--run-dir", "runs/broken", "--set", "seed=4")
    while job.state not in ("FAILED", "COMPLETED", "CANCELLED"):
        # The doctor's process that imports torch: one that is killed is the node's fault, exit code 150.
        for process in processes_with("mini_r1.training.probe", "seed=4"):
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.2)
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", 1, 3), str(job)
    assert job.said.count("requeued after exit code 150") == 3
    assert "3 attempts in a row failed without a new checkpoint: enough" in job.said


def test_starts_that_fail_before_there_is_a_run_directory_are_bounded_too(kit: Kit) -> None:
    jobs = {}
    for code in (150, 255):
        # Stand-in for a launcher that ends so: a driver that does not answer, an image that does not open.
        python = kit.folder / f"ends-{code}" / "bin" / "python"
        a_program(python, f'[ "$2" = "import mini_r1" ] || exit {code}')
        kit.site(MINI_R1_RUNTIME="venv", MINI_R1_VENV=str(python.parents[1]))
        jobs[code] = kit.submit("slurm/train_1gpu.sh")
        assert jobs[code].wait() == "FAILED"
    kit.site(MINI_R1_RUNTIME="venv", MINI_R1_VENV=str(REPO / ".venv"))
    assert (jobs[150].exit_code, jobs[150].restarts) == (1, 2), str(jobs[150])
    assert "3 starts in a row failed: enough" in jobs[150].said
    assert (jobs[255].exit_code, jobs[255].restarts) == (78, 0), str(jobs[255])
    assert "the kit does not start in the runtime venv on every node" in jobs[255].said


def test_an_array_trains_a_run_for_each_row_of_its_table(kit: Kit) -> None:
    (kit.folder / "table.txt").write_text(
        "# name and overrides\n\nslow  learning_rate=1e-4  beta=0.01\nfast  learning_rate=1e-2  beta=0.01\n"
        "tight  learning_rate=1e-3  beta=0.1\nloose  learning_rate=1e-3  beta=0\n"
    )
    options = ("--array=0-3", "--gpus-per-node=1", "slurm/sweep.sh", "table.txt", "row.yaml")
    jobs = kit.submit_array(*options, rows=(0, 1, 2, 3))
    expected = {"slow": (1e-4, 0.01), "fast": (1e-2, 0.01), "tight": (1e-3, 0.1), "loose": (1e-3, 0.0)}
    for job, (name, (learning_rate, beta)) in zip(jobs, expected.items(), strict=True):
        assert job.wait() == "COMPLETED", str(job)
        run = kit.run(f"table/{name}")
        assert run.read_state()["state"] == "finished"
        recipe = run.recipe_file.read_text()
        assert f"learning_rate: {learning_rate}" in recipe
        assert f"beta: {beta}" in recipe
        assert f"{name}  learning_rate" in job.said
