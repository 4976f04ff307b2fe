"""The time that a run needs to stop and what a scheduler gives it: in the plan, at the launch, on a login node.

Slurm's programs are stand-ins here (login_node.py); a real Slurm answers in tests/slurm/test_time_to_save.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_r1.errors import KitError
from mini_r1.machine.roles import assign, shape
from mini_r1.plan.planner import make_plan
from mini_r1.plan.timing import GRACE_VARIABLE, grace_warning
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.recipe.shipped_files import shipped_files

from tests.cluster.login_node import SCRIPT, Cluster

Kit = Callable[..., subprocess.CompletedProcess[str]]
RECIPE = shipped_files("recipes")["mini-r1-3b"]


def planned() -> tuple[float, float, float]:
    """Return the seconds of an update, of a save and of both, on the hardware that the recipe was made for."""
    roles = assign(shape(4, 1), use_vllm=True, on_cpu=False)
    timing = make_plan(load_recipe(RECIPE), roles, gpu_memory_gib=80, on_cpu=False).timing
    assert timing is not None
    return timing.update, timing.whole_save, timing.stop_s


# --- the plan ---


def test_a_stop_takes_an_update_and_a_whole_save(mini_r1: Kit) -> None:
    update, save, stop = planned()
    assert stop == update + save
    plan = json.loads(mini_r1("plan", "mini-r1-3b", "--gpus", "4", "--json").stdout)
    disk, time = plan["disk_gib"], plan["time"]
    written = (disk["checkpoint"] + disk["snapshot"]) * 2**30
    assert time["whole_save"] == pytest.approx(written / 1e9, rel=0.01)
    assert time["save"] == pytest.approx(time["whole_save"] / 25, abs=0.01)
    assert plan["warnings"] == []


@pytest.mark.parametrize(("option", "variable"), [("30", None), (None, "30")])
def test_less_time_than_that_is_a_warning_with_the_numbers(
    mini_r1: Kit, monkeypatch: pytest.MonkeyPatch, option: str | None, variable: str | None
) -> None:
    if variable:
        monkeypatch.setenv("MINI_R1_GRACE_S", variable)
    done = mini_r1("plan", "mini-r1-3b", "--gpus", "4", *(["--grace", option] if option else []))
    assert done.returncode == 0
    update, save, stop = planned()
    assert f"the run needs up to {stop:.0f} s (update {update:.0f}, save {save:.0f})" in done.stdout
    what = "the grace period (--grace)" if option else "terminationGracePeriodSeconds (MINI_R1_GRACE_S)"
    assert f"and {what} is 30 s" in done.stdout
    assert f"set {what} to 60 s or more, or bound the loss with save_minutes" in done.stdout


def test_enough_time_is_no_warning() -> None:
    roles = assign(shape(4, 1), use_vllm=True, on_cpu=False)
    timing = make_plan(load_recipe(RECIPE), roles, gpu_memory_gib=80, on_cpu=False).timing
    assert grace_warning(timing, {GRACE_VARIABLE: "900"}) is None
    assert grace_warning(timing, {GRACE_VARIABLE: ""}) is grace_warning(timing, {}) is None
    assert grace_warning(None, {GRACE_VARIABLE: "0"}) is None


@pytest.mark.parametrize("text", ["five minutes", "-1", "nan", "inf"])
def test_a_grace_that_is_not_a_time_is_refused(text: str) -> None:
    with pytest.raises(KitError, match="must be a number of seconds, 0 or more"):
        grace_warning(None, {GRACE_VARIABLE: text})


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_an_option_that_is_not_a_time_is_refused(seconds: float) -> None:
    with pytest.raises(KitError, match=r"the grace period \(--grace\) is"):
        grace_warning(None, {}, seconds)


# --- a login node ---

CONFIG = """Configuration data as of 2026-11-29T21:40:31
JobRequeue              = 1
KillWait                = {kill_wait} sec
PreemptMode             = REQUEUE
PreemptType             = {preempt_type}
"""
PARTITION = "PartitionName={name} AllowGroups=ALL GraceTime={grace} Hidden=NO PreemptMode={mode} State=UP\n"
BY_PARTITION = "preempt/partition_prio"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path, monkeypatch)


def slurm(cluster: Cluster, *, kill_wait: int = 30, preempt_type: str = "preempt/none", **partitions: str) -> None:
    """Write a stand-in for `scontrol`, with each partition's GraceTime and PreemptMode."""
    answers = {"show config": CONFIG.format(kill_wait=kill_wait, preempt_type=preempt_type)}
    for name, value in partitions.items():
        grace, mode = value.split()
        answers[f"show partition {name} --oneliner"] = PARTITION.format(name=name, grace=grace, mode=mode)
    cases = "".join(f"'{asked}') cat <<'END'\n{said}END\n;;\n" for asked, said in answers.items())
    program = cluster.bin / "scontrol"
    program.write_text(f'#!/bin/sh\nPATH={os.defpath}\ncase "$*" in\n{cases}*) exit 1;;\nesac\n')


@pytest.mark.parametrize(
    ("settings", "script", "status", "said", "fix"),
    [
        ({"kill_wait": 300}, SCRIPT, "ok", ["KillWait is 300 s", "600 s before the time limit"], []),
        (
            {},
            SCRIPT,
            "warn",
            ["KillWait is 30 s, all the time that a scancel leaves"],
            ["save_minutes=10", "a KillWait of 60 s"],
        ),
        (
            {"kill_wait": 300, "preempt_type": BY_PARTITION, "gpu": "30 REQUEUE"},
            SCRIPT,
            "warn",
            ["jobs in gpu may be preempted (REQUEUE), and its GraceTime is 30 s"],
            ["a GraceTime of 60 s in gpu"],
        ),
        (
            {"kill_wait": 300, "preempt_type": BY_PARTITION, "gpu": "120 REQUEUE"},
            SCRIPT,
            "ok",
            ["its GraceTime is 120 s"],
            [],
        ),
        (
            {"preempt_type": BY_PARTITION, "gpu": "0 CANCEL"},
            SCRIPT,
            "warn",
            ["jobs in gpu may be preempted (CANCEL), and it has no GraceTime"],
            ["a GraceTime of 60 s in gpu"],
        ),
        (
            {"kill_wait": 300, "preempt_type": BY_PARTITION, "gpu": "0 OFF"},
            SCRIPT,
            "ok",
            ["jobs in gpu are not preempted"],
            [],
        ),
        ({"kill_wait": 300, "gpu": "0 REQUEUE"}, SCRIPT, "ok", ["KillWait is 300 s"], []),
        (
            {"kill_wait": 300},
            SCRIPT.replace("USR1@600", "USR1@20"),
            "warn",
            ["the notice comes 20 s before the time limit (--signal=B:USR1@20)"],
            ["#SBATCH --signal=B:USR1@600"],
        ),
        (
            {"kill_wait": 30},
            SCRIPT.replace("#SBATCH --signal=B:USR1@600", ""),
            "warn",
            ["slurm/train_4xh100.sh asks for no notice before its time limit"],
            ["#SBATCH --signal=B:USR1@600"],
        ),
    ],
)
def test_slurms_times_are_compared_with_the_planned_stop(
    cluster: Cluster, settings: dict[str, str], script: str, status: str, said: list[str], fix: list[str]
) -> None:
    cluster.script.write_text(script)
    slurm(cluster, **settings)  # type: ignore[arg-type]
    finding = cluster.found("time to save", RECIPE)
    assert finding.status == status, finding
    update, save, stop = planned()
    assert finding.detail.startswith(
        f"asked to stop, the run needs up to {stop:.0f} s (update {update:.0f}, save {save:.0f})"
    )
    for part in said:
        assert part in finding.detail
    for part in fix:
        assert part in finding.fix
    if status == "ok":
        assert finding.fix == ""


def test_unknown_times_are_skipped(cluster: Cluster) -> None:
    slurm(cluster)
    assert cluster.found("time to save").status == "skip"
    cluster.program("scontrol")
    finding = cluster.found("time to save", RECIPE)
    assert finding.status == "skip"
    assert "KillWait is not known" in finding.detail
