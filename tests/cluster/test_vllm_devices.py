"""--vllm-devices: the roles in the plan, the number that `auto` chooses, and what node 0 decides for all nodes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from mini_r1.cli.options import CountOrAuto
from mini_r1.errors import KitError
from mini_r1.launch import launcher
from mini_r1.launch.job import Job, LaunchOptions
from mini_r1.launch.rendezvous import Introduction
from mini_r1.machine.devices import Devices
from mini_r1.machine.nodes import Nodes
from mini_r1.machine.roles import shape
from mini_r1.plan.device_roles import choose_vllm_devices, plan_devices
from mini_r1.plan.planner import Plan
from mini_r1.plan.recipe_plans import Hardware, plan_for
from mini_r1.recipe.fields import Recipe
from mini_r1.run.run_dir import RunDir

Kit = Callable[..., subprocess.CompletedProcess[str]]
RECIPE = Recipe(model_name_or_path="Qwen/Qwen2.5-3B-Instruct", max_steps=10, use_vllm=True, bf16=True)


def plan_on(devices: Sequence[Sequence[str]], number: str, recipe: Recipe = RECIPE) -> Plan:
    return plan_devices(recipe, devices, on_cpu=False, gpu_memory_gib=80, vllm_devices=number)


@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (2, 1), (4, 1), (8, 1), (8, 2)])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_plan_has_the_roles(gpus: int, nodes: int, number: int) -> None:
    found = plan_for(RECIPE, Hardware(shape(gpus, nodes), False, 80, "a test"), vllm_devices=str(number))
    if number >= gpus > 1 or number > gpus:
        assert found.roles is None
        assert f"--vllm-devices {number}, but there" in found.errors[0]
        return
    assert found.roles is not None
    assert found.vllm_devices == tuple(f"cuda:{index}" for index in range(gpus - number, gpus))
    assert found.num_processes == max(1, gpus * nodes - number)
    assert found.to_dict()["vllm_shares_gpu"] == (gpus == 1)


def test_auto_takes_the_number_with_the_least_time_per_completion() -> None:
    plans = [plan_on(shape(8, 1), str(number)) for number in range(1, 8)]
    times = [plan.timing.step_s / plan.completions_per_step for plan in plans if plan.timing]
    chosen = plan_on(shape(8, 1), "auto")
    assert len(times) == 7
    assert len(chosen.vllm_devices) == times.index(min(times)) + 1
    refused = [replace(plan, errors=["no"]) for plan in plans[:-1]]
    assert choose_vllm_devices([*refused, plans[-1]]) is plans[-1]
    assert choose_vllm_devices([*refused]) is refused[0]
    assert choose_vllm_devices([replace(plan, timing=None) for plan in plans]).vllm_devices == ("cuda:7",)


@pytest.mark.parametrize(("gpus", "use_vllm", "expected"), [(1, True, 1), (2, True, 1), (8, False, 0)])
def test_auto_without_a_choice(gpus: int, use_vllm: bool, expected: int) -> None:
    recipe = RECIPE.model_copy(update={"use_vllm": use_vllm})
    assert len(plan_on(shape(gpus, 1), "auto", recipe).vllm_devices) == expected


@pytest.mark.parametrize("number", ["", "x", "1.5", "-1", "²", "9999999"])
def test_no_number_is_refused(number: str) -> None:
    with pytest.raises(KitError, match="must be a whole number, or auto"):
        plan_on(shape(4, 1), number)


@pytest.mark.parametrize("number", ["2", "auto"])
def test_node_0_decides_for_all_nodes(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-in for the meeting: it hands out node 0's decision about other devices than this node's."""
    introduced: list[Introduction] = []

    class StandInMeeting:
        def __init__(self, *_: Any) -> None:
            pass

        def hold(self, me: Introduction, decide: Callable[[Any], Any]) -> tuple[Mapping[int, Any], Any]:
            introduced.append(me)
            return {}, json.loads(json.dumps(decide([["0", "1", "2", "3"], ["0"]])))

    monkeypatch.setattr(launcher, "Meeting", StandInMeeting)
    monkeypatch.setattr(launcher, "check_node", lambda *_: None)
    monkeypatch.setattr(launcher, "refuse_other_workers", lambda *_: None)
    job = Job(
        LaunchOptions("my.yaml", vllm_devices=number), Path("my.yaml"), RECIPE, RunDir(Path("/runs/my")),
        Devices(("0",), False, "a test"), Nodes(2, 1, "n1", 15_000, "a test", "7"), 80.0, {}, lambda _: None,
    )  # fmt: skip
    _, roles, _ = launcher._meet(job, SimpleNamespace(name=None))  # type: ignore[arg-type]
    assert introduced[0].recipe["--vllm-devices"] == number
    chosen = len(plan_on([["0", "1", "2", "3"], ["0"]], number).vllm_devices)
    assert [len(node.vllm_devices) for node in roles.nodes] == [chosen, 0]
    assert roles.num_processes == 5 - chosen


def test_the_commands_take_it(mini_r1: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    dry = mini_r1("launch", "mini-r1-3b", "--gpus", "4", "--vllm-devices", "3", "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    facts = json.loads(dry.stdout)
    assert (facts["num_processes"], facts["vllm_devices"]) == (1, ["cuda:1", "cuda:2", "cuda:3"])
    assert facts["workers"][0]["environment"]["MINI_R1_VLLM_DEVICE"] == "1,2,3"
    for wrong in ("0", "two", "-1"):
        done = mini_r1("plan", "demo-cpu", "--vllm-devices", wrong)
        assert (done.returncode, "--vllm-devices" in done.stderr) == (78, True)


@pytest.mark.parametrize("value", ["none", "0", "-1", "129", "1.5", "", "9" * 5_000])
def test_the_option_takes_a_number_of_gpus_or_auto(value: str) -> None:
    taken = [CountOrAuto().convert(given, None, None) for given in ("auto", "3", "03")]
    assert taken == ["auto", "3", "3"]  # launchers of several nodes compare the text
    with pytest.raises(click.BadParameter, match=f"'{value}' is neither auto nor a number from 1 to 128"):
        CountOrAuto().convert(value, None, None)
