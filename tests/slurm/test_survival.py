"""What a cluster does to a job: preempted, out of time, cancelled, its node lost. The run resumes, or not.

One worker and the sampler of transformers, without vLLM: what is tried is between Slurm, slurm/lib.sh and the launcher.
tests/slurm/test_preemptions.py has the whole stack. The jobs run side by side, each until it is disturbed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.slurm.cluster import Job, Slurm
from tests.slurm.conftest import Kit
from tests.slurm.results import freeze, freeze_each_at, same_result, thaw

pytestmark = pytest.mark.real
LONG = "20"
NOTICE = "USR1: the time limit is near"


@pytest.fixture(scope="module")
def kit(make_kit: Callable[[str, Path], Kit], untrained: Path) -> Kit:
    kit = make_kit("survival", REPO / ".venv")
    kit.write_recipe("small", model_name_or_path=str(untrained), max_steps=int(LONG))
    return kit


@pytest.fixture(scope="module")
def jobs(kit: Kit, slurm: Slurm) -> dict[str, Job]:
    """One undisturbed job, and one for each of the ways to end an attempt. All are over."""
    jobs = {
        "whole": start(kit, "whole", "--nodelist=n2"),
        # USR1 comes when fewer than 50 min are left.
        "notice": start(kit, "notice", "--nodelist=n2", "--time=120", "--signal=B:USR1@3000"),
        # No notice that anyone could see: the limit itself.
        "limit": start(kit, "limit", "--nodelist=n2", "--time=60", "--signal=B:CONT@1"),
        "cancelled": start(kit, "cancelled", "--nodelist=n2"),
    }
    # Slurm looks at its limits every 30 s. What is to be disturbed waits for that; Slurm wakes what it ends.
    freeze_each_at(2, {name: kit.run(name) for name in ("notice", "limit", "cancelled")})
    slurm.run("scontrol", "update", f"jobid={jobs['notice'].number}", "timelimit=50")
    slurm.run("scontrol", "update", f"jobid={jobs['limit'].number}", "timelimit=1")
    with_limits = {"MINI_R1_WAIT_MINUTES": "0", "MINI_R1_MAX_FAILURES": "1"}
    jobs["second job"] = start(kit, "cancelled", "--nodelist=n3", **with_limits)
    jobs["second job"].wait()
    slurm.run("scancel", jobs["cancelled"].number)
    notice, limit = jobs["notice"], jobs["limit"]
    notice.wait_for(lambda: NOTICE in notice.said)
    slurm.run("scontrol", "update", f"jobid={notice.number}", "timelimit=120")  # no second one
    thaw(kit.run("notice"))
    limit.wait_for(lambda: limit.restarts >= 1)
    slurm.run("scontrol", "update", f"jobid={limit.number}", "timelimit=60")
    for job in jobs.values():
        job.wait()
    return jobs


@pytest.fixture(scope="module")
def more_jobs(kit: Kit, slurm: Slurm, jobs: dict[str, Job]) -> dict[str, Job]:
    """Further ways, once the others are over."""
    more = {
        "with grace": start(kit, "with-grace", "--nodelist=n1", "--partition=gpu"),
        "without grace": start(kit, "without-grace", "--nodelist=n1", "--partition=abrupt"),
        "early notice": start(kit, "early-notice", "--nodelist=n2", "--time=120", "--signal=B:USR1@3000"),
    }
    freeze_each_at(2, {name: kit.run(name.replace(" ", "-")) for name in more})
    notice, run = more["early notice"], kit.run("early-notice")
    slurm.run("scontrol", "update", f"jobid={notice.number}", "timelimit=50")
    slurm.preempt("n1")
    notice.wait_for(lambda: NOTICE in notice.said)
    # From here on nothing else is waited for: its second attempt must be seen before it is over.
    thaw(run)
    # The second attempt has 50 min again, so its notice comes before any worker could hear it.
    notice.wait_for(lambda: notice.restarts >= 1 and (freeze(run) or notice.restarts >= 2))
    notice.wait_for(lambda: notice.said.count(NOTICE) >= 2)
    thaw(run)
    notice.wait_for(lambda: notice.restarts >= 2)
    slurm.run("scontrol", "update", f"jobid={notice.number}", "timelimit=120")
    for job in more.values():
        job.wait()
    return more


def start(kit: Kit, run: str, *options: str, **environment: str) -> Job:
    return kit.submit(*options, "slurm/train_1gpu.sh", "small.yaml", "--run-dir", f"runs/{run}", **environment)


@pytest.mark.exhaustive
def test_a_job_preempted_with_grace_time_saves_and_resumes_to_the_same_result(
    kit: Kit, more_jobs: dict[str, Job]
) -> None:
    job, run = more_jobs["with grace"], kit.run("with-grace")
    assert (job.state, job.exit_code, job.restarts) == ("COMPLETED", 0, 1), str(job)
    assert "requeued after exit code 143" in job.said  # Slurm would only do it at the end of the grace
    assert "resuming from step" in job.said
    same_result(run, kit.run("whole"))


@pytest.mark.exhaustive
def test_a_job_preempted_without_grace_time_saves_and_resumes_to_the_same_result(
    kit: Kit, more_jobs: dict[str, Job]
) -> None:
    job, run = more_jobs["without grace"], kit.run("without-grace")
    assert (job.state, job.exit_code, job.restarts) == ("COMPLETED", 0, 1), str(job)
    assert "Slurm ends this job: if it was preempted, Slurm restarts it" in job.said
    assert "resuming from step" in job.said
    same_result(run, kit.run("whole"))


def test_ahead_of_its_time_limit_a_job_saves_and_resumes_to_the_same_result(kit: Kit, jobs: dict[str, Job]) -> None:
    job, run = jobs["notice"], kit.run("notice")
    assert (job.state, job.exit_code, job.restarts) == ("COMPLETED", 0, 1), str(job)
    assert NOTICE in job.said
    assert "requeued after exit code 143" in job.said
    assert "resuming from step" in job.said
    assert run.read_record()["attempts"][0]["attempt"] == 1
    same_result(run, kit.run("whole"))


@pytest.mark.exhaustive
def test_a_notice_before_the_launcher_listens_costs_only_the_attempt(kit: Kit, more_jobs: dict[str, Job]) -> None:
    job, run = more_jobs["early notice"], kit.run("early-notice")
    second = job.said.partition("attempt 2:")[2].partition("attempt 3:")[0]
    assert NOTICE in second
    assert "exit code 143" in second
    assert "step 1" not in second.partition("training on")[2].partition("interrupted")[0]
    assert (job.state, job.exit_code, job.restarts) == ("COMPLETED", 0, 2), str(job)
    same_result(run, kit.run("whole"))


def test_a_job_without_a_notice_is_requeued_at_its_time_limit(kit: Kit, jobs: dict[str, Job]) -> None:
    job, run = jobs["limit"], kit.run("limit")
    assert (job.state, job.exit_code) == ("COMPLETED", 0), str(job)
    assert "DUE TO TIME LIMIT" in job.said
    assert "requeued at the time limit" in job.said
    assert job.restarts == 1
    same_result(run, kit.run("whole"))


def test_a_cancelled_job_saves_and_stays_cancelled(kit: Kit, jobs: dict[str, Job]) -> None:
    job, run = jobs["cancelled"], kit.run("cancelled")
    assert (job.state, job.restarts) == ("CANCELLED", 0), str(job)
    assert "requeued" not in job.said
    state = run.read_state()
    assert (state["state"], state["exit_code"]) == ("interrupted", 143)
    assert run.complete_checkpoints()[0].step == state["step"]


def test_a_second_job_in_one_run_directory_retries_until_its_limit_and_disturbs_nothing(
    kit: Kit, jobs: dict[str, Job]
) -> None:
    job, other = jobs["second job"], jobs["cancelled"]
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", 78, 1), str(job)
    assert f"job {other.number} is training in {kit.run('cancelled').path}" in job.said
    assert "requeued after exit code 150" in job.said
    assert "1 attempts in a row failed without a new checkpoint (MINI_R1_MAX_FAILURES)" in job.said
    rows = [
        line.split("\t") for line in (kit.run("cancelled").path / "slurm" / "attempts.tsv").read_text().splitlines()
    ]
    assert [row[6] for row in rows if row[0] == job.number] == ["150", "78"]
    assert [row[6] for row in rows if row[0] == other.number] == ["143"]


def test_each_attempt_has_a_separate_log_and_a_line_with_its_hours(kit: Kit, jobs: dict[str, Job]) -> None:
    job, run = jobs["notice"], kit.run("notice")
    folder = run.path / "slurm"
    first, second = ((folder / f"{job.number}-{attempt}.log").read_text() for attempt in (1, 2))
    assert "interrupted after step" in first
    assert f"step {LONG}/{LONG}" in second
    assert f"step {LONG}/{LONG}" not in first
    rows = [line.split("\t") for line in (folder / "attempts.tsv").read_text().splitlines()]
    assert [row[:2] + row[3:4] + row[6:] for row in rows] == [
        [job.number, "1", "1", "143"],
        [job.number, "2", "1", "0"],
    ]
    assert int(rows[0][4]) == 0 < int(rows[1][4])  # the checkpoint that each began with
    assert all(0 < int(row[5]) < 3_600 for row in rows)
    assert "this run so far: 2 attempt(s)" in job.said


@pytest.fixture(scope="module")
def evaluated(kit: Kit, jobs: dict[str, Job]) -> Job:
    """The job that evaluates the cancelled run once it has been resumed and is done."""
    again = start(kit, "cancelled")
    options = (f"--dependency=afterok:{again.number}", "slurm/evaluate.sh", "runs/cancelled")
    evaluation = kit.submit(*options, "--samples", "1")
    assert evaluation.show("Dependency").startswith("afterok:")
    assert again.wait() == "COMPLETED", str(again)
    assert evaluation.wait() == "COMPLETED", str(evaluation)
    return evaluation


@pytest.mark.exhaustive
def test_a_cancelled_run_that_is_submitted_again_resumes_and_is_evaluated(kit: Kit, evaluated: Job) -> None:
    same_result(kit.run("cancelled"), kit.run("whole"))
    assert evaluated.said.startswith("[")  # its output was appended to the log, not written over it
    assert [path.name for path in kit.run("cancelled").evaluation.glob("*.json")] == [f"step-{LONG}.json"]


@pytest.mark.exhaustive
def test_snapshots_without_a_result_are_evaluated(kit: Kit, evaluated: Job) -> None:
    every = kit.submit("slurm/evaluate.sh", "runs/cancelled", "all", "--samples", "1")
    assert every.wait() == "COMPLETED", str(every)
    run = kit.run("cancelled")
    steps = {int(path.name.removeprefix("step-")) for path in run.snapshots.iterdir()}
    assert len(steps) == 2  # where it was cancelled, and the end
    assert {path.name for path in run.evaluation.glob("*.json")} == {f"step-{step}.json" for step in {0, *steps}}
    assert f"same settings: steps {max(steps)}; 2 to do" in every.said
    assert f"step {min(steps)} (2 of 2): completions" in every.said


@pytest.mark.exhaustive
def test_a_finished_run_exits_at_once(kit: Kit, jobs: dict[str, Job]) -> None:
    job = start(kit, "whole")
    assert (job.wait(), job.exit_code) == ("COMPLETED", 0)
    assert "finished" in job.said.partition("training on")[2]
