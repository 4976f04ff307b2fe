"""What no job should try again, on a real Slurm: it ends with 78, once, and Slurm does not requeue it.

`real` has what depends on what Slurm gives a job; `exhaustive` has every case of refusals.py. test_refusals.py has
them without Slurm.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.slurm.cluster import Job, Slurm
from tests.slurm.conftest import Kit, selected
from tests.slurm.refusals import CASES, FIRST, FOUR, ONE, TWO_NODES, a_prolog_that_hides_gpus, with_windows_lines
from tests.slurm.stand_in_slurm import job as stand_in_job

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def kit(make_kit: Callable[[str, Path], Kit], untrained: Path) -> Kit:
    kit = make_kit("refusals", REPO / ".venv")
    kit.write_recipe("small", model_name_or_path=str(untrained), max_steps=1)
    site = kit.folder / "slurm" / "site.env"
    site.write_text(site.read_text() + "[ -d /nowhere ] && export MINI_R1_RUNS=/nowhere\n")
    if sys.version_info >= (3, 11):  # the first with PYTHONSAFEPATH
        (kit.folder / "random.py").write_text("raise ImportError('this is not the library')\n")
    return kit


@pytest.fixture(scope="module")
def refused(make_kit: Callable[[str, Path], Kit], request: pytest.FixtureRequest) -> dict[str, tuple[Kit, Job]]:
    """Submit a job for each case whose test is in this run, each in a separate checkout; they run side by side."""
    jobs = {}
    for number, (name,) in enumerate(selected(request, "name")):
        case, kit = CASES[name], make_kit(f"refusal{number}", REPO / ".venv")
        case.write(kit)
        wrapped = any(word.startswith("--wrap=") for word in case.options)
        rows = tuple(int(word.removeprefix("--array=")) for word in case.options if word.startswith("--array="))
        line = (*case.options, *(() if wrapped else case.script))
        (job,) = kit.submit_array(*line, rows=rows, **case.exports)
        jobs[name] = (kit, job)
    return jobs


@pytest.fixture(scope="module")
def longer(kit: Kit, slurm: Slurm, refused: object) -> dict[str, Job]:
    """Jobs that pass the checks of the first moment, behind the others in the queue."""
    small = "small.yaml"
    return {
        "exports nothing": kit.submit("--export=NONE", ONE, small),
        "two nodes": kit.submit("--gpus-per-node=1", TWO_NODES, small, "--run-dir", str(slurm.disk / "apart")),
        "moves": kit.submit(
            "--nodelist=n1", ONE, small, "--run-dir", str(slurm.disk / "moves"), "--set", "max_steps=100000"
        ),
    }


@pytest.mark.usefixtures("longer")  # so that they begin meanwhile
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if case.on_slurm else pytest.mark.exhaustive) for name, case in CASES.items()]
)
def test_bad_input_is_refused_once_and_begins_no_run(refused: dict[str, tuple[Kit, Job]], name: str) -> None:
    if CASES[name].needs:
        pytest.skip(CASES[name].needs)
    kit, job = refused[name]
    assert job.wait() == "FAILED", str(job)
    assert job.exit_code == 78, str(job)
    assert job.restarts == 0, str(job)
    assert CASES[name].says in job.said, str(job)
    assert "attempt over: exit code 78" in job.said
    assert not (kit.folder / "runs").exists()


def test_sbatch_itself_refuses_a_gpu_a_task_and_a_script_from_windows(kit: Kit, slurm: Slurm) -> None:
    done = slurm.try_to_run("sbatch", "--gpus-per-task=1", FOUR, cwd=kit.folder)
    assert done.returncode != 0
    assert "--gpus-per-task" in done.stderr
    with_windows_lines(FOUR)(kit)
    done = slurm.try_to_run("sbatch", FOUR, cwd=kit.folder)
    assert done.returncode != 0
    assert "DOS line breaks" in done.stderr


def test_a_job_from_another_folder_needs_the_name_of_the_kit(kit: Kit, slurm: Slurm, tmp_path: Path) -> None:
    def submit(**exports: str) -> Job:
        line = ("sbatch", "--parsable", kit.folder / ONE, kit.folder / "small.yaml")
        number = slurm.run(*line, cwd=tmp_path, **exports).strip()
        return Job(slurm, number, tmp_path / f"mini-r1-{number}.log")

    nameless, named = submit(), submit(MINI_R1_HOME=str(kit.folder))
    assert nameless.wait() == "FAILED"
    assert (nameless.exit_code, nameless.restarts) == (78, 0)
    assert f"no kit in '{tmp_path}': set MINI_R1_HOME" in nameless.said
    named.wait_for(lambda: "training on 1 GPU(s)" in named.said)
    assert (tmp_path / "runs" / "small").is_dir()
    slurm.run("scancel", named.number)


def test_a_requeued_job_is_refused_on_a_node_that_does_not_see_its_run(longer: dict[str, Job], slurm: Slurm) -> None:
    job = longer["moves"]
    job.wait_for(lambda: "training on" in job.said)
    slurm.run("scontrol", "requeuehold", job.number)
    slurm.run("scontrol", "update", f"jobid={job.number}", "reqnodelist=n2")
    slurm.run("scontrol", "release", job.number)
    assert job.wait() == "FAILED", str(job)
    assert (job.exit_code, job.restarts) == (78, 1), str(job)
    assert f"an earlier attempt wrote to {slurm.disk}/moves, which n2 does not see" in job.said
    assert not (slurm.folder / "disk-of-n2" / "moves").exists()


def test_a_run_that_one_of_two_nodes_sees_is_refused(longer: dict[str, Job], slurm: Slurm) -> None:
    job = longer["two nodes"]
    assert job.wait() == "FAILED", str(job)
    assert (job.exit_code, job.restarts) == (78, 0), str(job)
    assert f"node 1 cannot see what node 0 writes to {slurm.disk}/apart" in job.said
    assert "step 1/1" not in job.said


def test_a_job_without_exported_variables_reads_site_env(longer: dict[str, Job], kit: Kit) -> None:
    job = longer["exports nothing"]
    assert job.wait() == "COMPLETED", str(job)
    assert kit.run("small").read_state()["state"] == "finished"


# ---- what the tests without Slurm assume -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def environments(make_kit: Callable[[str, Path], Kit]) -> dict[str, Job]:
    """A job that only prints its environment, with the script's own directives, for each case where that decides."""
    kit, jobs = make_kit("environments", REPO / ".venv"), {}
    for name, case in CASES.items():
        if not case.given or case.given == FIRST["given"] or case.prepare is a_prolog_that_hides_gpus:
            continue
        text = (kit.folder / case.script[0]).read_text()
        directives = [line for line in text.splitlines() if line.startswith("#SBATCH")]
        path = kit.folder / "prints.sh"
        path.write_text("\n".join(["#!/bin/bash", *directives, "env -0"]))
        rows = tuple(int(word.removeprefix("--array=")) for word in case.options if word.startswith("--array="))
        (jobs[name],) = kit.submit_array(*case.options, path, rows=rows, **case.exports)
    return jobs


def test_the_environment_of_the_tests_without_slurm_is_the_one_that_slurm_gives(environments: dict[str, Job]) -> None:
    assert environments
    for name, job in environments.items():
        assert job.wait() == "COMPLETED", str(job)
        found = dict(line.split("=", 1) for line in job.said.split("\0") if "=" in line)
        expected = {**stand_in_job(CASES[name].gpus), **CASES[name].given}
        for variable in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_JOB_NAME", "SLURM_CPUS_PER_TASK"):
            expected.pop(variable, None)  # a number of the test, or irrelevant
        visible = expected.pop("CUDA_VISIBLE_DEVICES")
        assert {variable: found.get(variable) for variable in expected} == expected, name
        # Which ones depends on what else runs on the node.
        assert (found.get("CUDA_VISIBLE_DEVICES") or "").count(",") == (visible or "").count(","), name
