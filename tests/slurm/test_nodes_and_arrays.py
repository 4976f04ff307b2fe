"""A node that goes down under a job, failures that are retried until it is enough, and an array of four runs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPO
from tests.kubernetes.test_roles_in_pods import NVML
from tests.slurm.cluster import Job, Slurm
from tests.slurm.conftest import Kit, a_program
from tests.slurm.results import freeze, processes_with, reached, same_result, thaw

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def kit(make_kit: Callable[[str, Path], Kit], untrained: Path) -> Kit:
    kit = make_kit("nodes", REPO / ".venv")
    kit.write_recipe("small", model_name_or_path=str(untrained), save_steps=5, max_steps=20)
    kit.write_recipe("row", model_name_or_path=str(untrained), max_steps=2)
    return kit


@pytest.mark.usefixtures("failing")  # so that they wait meanwhile
def test_a_job_whose_node_fails_resumes_from_its_last_checkpoint(kit: Kit, slurm: Slurm) -> None:
    # Two workers each: of the undisturbed run on one node, of the other on two.
    on_one = ("--nodelist=n3", "--gpus-per-node=2", "slurm/train_1gpu.sh", "small.yaml")
    on_two = ("--nodelist=n[1-2]", "--gpus-per-node=1", "slurm/train_2x8h100.sh", "small.yaml")
    whole = kit.submit(*on_one, "--run-dir", "runs/whole")
    job, run = kit.submit(*on_two, "--run-dir", "runs/down"), kit.run("down")
    job.wait_for(lambda: bool(run.complete_checkpoints()) and reached(run, 6)())
    assert freeze(run)  # so that steps are left
    slurm.crash_node("n1")  # where the batch shell is
    thaw(run)
    job.wait_for(lambda: job.restarts == 1)
    slurm.start_node("n1")
    assert job.wait() == "COMPLETED", str(job)
    second = job.said.partition("attempt 2:")[2]
    assert "resuming from step" in second
    rows = [line.split("\t") for line in (run.path / "slurm" / "attempts.tsv").read_text().splitlines()]
    assert [row[6] for row in rows] == ["killed", "0"]
    assert int(rows[0][5]) > 0  # until its last sign of life
    assert whole.wait() == "COMPLETED", str(whole)
    same_result(run, kit.run("whole"))


@pytest.mark.exhaustive  # its four starts import torch
def test_a_job_whose_worker_dies_every_time_is_requeued_three_times(kit: Kit) -> None:
    job = kit.submit("slurm/train_1gpu.sh", "small.yaml", "--run-dir", "runs/broken", "--set", "seed=4")
    while job.state not in ("FAILED", "COMPLETED", "CANCELLED"):
        # A killed worker is an error of the node, exit code 150.
        for process in processes_with("mini_r1", "train", "seed=4"):
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.2)
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", 78, 3), str(job)
    assert job.said.count("requeued after exit code 150") == 3
    assert "3 attempts in a row failed without a new checkpoint (MINI_R1_MAX_FAILURES)" in job.said


def a_launcher(kit: Kit, ends: str, *, dry_run: bool = True) -> None:
    """Give a checkout a stand-in for `mini-r1 launch` that ends so; with its run directory first, if asked for that."""
    answer = '*" --dry-run "*) echo "$PWD/runs/stand-in-${SLURM_ARRAY_TASK_ID:-0}" && exit ;;'
    lines = ['[ "$2" != "import mini_r1" ] || exit 0', *([f'case " $* " in {answer} esac'] if dry_run else []), ends]
    a_program(kit.folder / "venv" / "bin" / "python", "\n".join(lines))
    kit.site(MINI_R1_RUNTIME="venv", MINI_R1_VENV=str(kit.folder / "venv"))


@pytest.fixture(scope="module")
def failing(make_kit: Callable[[str, Path], Kit], untrained: Path) -> dict[str, Job]:
    """Jobs whose launcher fails at every start: a GPU that the driver does not have, or an image that does not open."""
    driver, image = make_kit("driver", REPO / ".venv"), make_kit("image", REPO / ".venv")
    (driver.folder / "stand-in").mkdir()
    (driver.folder / "stand-in" / "pynvml.py").write_text(NVML)
    no_gpus = {"PYTHONPATH": str(driver.folder / "stand-in"), "STAND_IN_GPUS": "0"}
    driver.write_recipe("small", model_name_or_path=str(untrained))
    driver.site(MINI_R1_RUNTIME="venv", MINI_R1_VENV=str(REPO / ".venv"), MINI_R1_ACCELERATOR="", **no_gpus)
    a_launcher(image, "exit 255", dry_run=False)
    on_n3 = ("--nodelist=n3", "slurm/train_1gpu.sh")  # no other goes down
    return {"driver": driver.submit(*on_n3, "small.yaml"), "image": image.submit(*on_n3)}


def test_a_job_that_fails_every_time_is_requeued_three_times(failing: dict[str, Job]) -> None:
    """The error comes before anything is started, and the launcher counts it all the same."""
    job = failing["driver"]
    assert job.wait() == "FAILED", str(job)
    assert (job.exit_code, job.restarts) == (78, 3), str(job)
    assert job.said.count("requeued after exit code 150") == 3
    assert "but the driver has no" in job.said
    assert "3 attempts in a row failed without a new checkpoint (MINI_R1_MAX_FAILURES)" in job.said


def test_an_image_that_does_not_open_is_refused_once(failing: dict[str, Job]) -> None:
    image = failing["image"]
    assert image.wait() == "FAILED", str(image)
    assert (image.exit_code, image.restarts) == (78, 0), str(image)
    assert "the kit does not start in the runtime venv on every node" in image.said


TABLE = (
    "# name and overrides\n\nslow  learning_rate=1e-4  beta=0.01\nfast  learning_rate=1e-2  beta=0.01\n"
    "tight  learning_rate=1e-3  beta=0.1\nloose  learning_rate=1e-3  beta=0\n"
)
ARRAY = ("--array=0-3", "--nodelist=n3", "--gpus-per-node=1", "slurm/sweep.sh", "table.txt", "row.yaml")


def test_an_array_starts_a_run_for_each_row_of_its_table_on_the_gpus_that_slurm_has_left(
    make_kit: Callable[[str, Path], Kit],
) -> None:
    kit = make_kit("array", REPO / ".venv")
    (kit.folder / "table.txt").write_text(TABLE)
    # Until all four have begun, so that no GPU is given twice.
    begun = 'touch "begun-$SLURM_ARRAY_TASK_ID"; until [ "$(ls -d begun-* | wc -l)" = 4 ]; do sleep 0.2; done'
    a_launcher(kit, f'{begun}\necho "GPU $CUDA_VISIBLE_DEVICES:" "$@"')
    jobs = kit.submit_array(*ARRAY, rows=(0, 1, 2, 3))
    devices = set()
    for job, row in zip(jobs, TABLE.splitlines()[2:], strict=True):
        assert job.wait() == "COMPLETED", str(job)
        name, *overrides = row.split()
        sets = " ".join(f"--set {override}" for override in overrides)
        started = re.search(r"^GPU (\d): -m mini_r1 launch (.*)$", job.said, re.MULTILINE)
        assert started is not None, str(job)
        assert started[2] == f"row.yaml --run-dir runs/table/{name} {sets}"
        devices.add(started[1])
    assert devices == {"0", "1", "2", "3"}


@pytest.mark.exhaustive
def test_an_array_trains_a_run_for_each_row_of_its_table(kit: Kit) -> None:
    (kit.folder / "table.txt").write_text(TABLE)
    jobs = kit.submit_array(*ARRAY, rows=(0, 1, 2, 3))
    expected = {"slow": (1e-4, 0.01), "fast": (1e-2, 0.01), "tight": (1e-3, 0.1), "loose": (1e-3, 0.0)}
    for job, (name, (learning_rate, beta)) in zip(jobs, expected.items(), strict=True):
        assert job.wait() == "COMPLETED", str(job)
        run = kit.run(f"table/{name}")
        assert run.read_state()["state"] == "finished"
        recipe = run.recipe_file.read_text()
        assert f"learning_rate: {learning_rate}" in recipe
        assert f"beta: {beta}" in recipe
        assert f"{name}  learning_rate" in job.said


def test_a_heterogeneous_job_meets_on_the_node_of_its_first_component(slurm: Slurm, tmp_path: Path) -> None:
    """Slurm sorts the list of the nodes, but numbers them by component."""
    components = ("-N1", "-n1", "-w", "n3", "--gpus-per-node=2", ":", "-N2", "-n2", "-w", "n1,n2", "--gpus-per-node=2")
    launch = f"{REPO}/.venv/bin/mini-r1 launch mini-r1-3b --dry-run --json > $SLURM_NODEID.json"
    step = ("srun", "--het-group=0,1", "bash", "-c", launch)
    slurm.run("salloc", *components, *step, cwd=tmp_path)
    plans = [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(3)]
    for plan in plans:
        assert plan["num_processes"] == 5
        assert {worker["environment"]["MASTER_ADDR"] for worker in plan["workers"]} == {"n3"}
    assert len({worker["environment"]["MASTER_PORT"] for plan in plans for worker in plan["workers"]}) == 1
