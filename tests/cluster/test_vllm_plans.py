"""Plans with 1 to 4 devices for vLLM on every usual number of GPUs, one of them shared."""

from __future__ import annotations

import pytest
from mini_r1.machine.roles import shape
from mini_r1.plan.device_roles import plan_devices
from mini_r1.plan.planner import Plan
from mini_r1.plan.recipe_plans import declared_hardware, plan_for
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.recipe.shipped_files import shipped_files

from tests.conftest import ASSETS

SHIPPED = shipped_files("recipes")
PUBLISHED = load_recipe(ASSETS / "recipes" / "published-3b.yaml")
GOLDEN = ASSETS / "plans" / "vllm_devices.txt"
"""`python -m tests.cluster.test_vllm_plans` prints it."""


def planned(gpus: int, nodes: int, number: str, recipe: Recipe = PUBLISHED, gib: float = 80) -> Plan:
    found = plan_devices(recipe, shape(gpus, nodes), on_cpu=False, gpu_memory_gib=gib, vllm_devices=number)
    assert found is not None
    return found


def describe(gpus: int, nodes: int, number: int) -> str:
    """Return one line of the golden file."""
    from mini_r1.errors import KitError

    place = f"{nodes} x {gpus} GPUs, {number} for vLLM: "
    try:
        plan = planned(gpus, nodes, str(number))
    except KitError as error:
        return place + error.message
    if plan.errors:
        return place + "; ".join(plan.errors)
    assert plan.memory is not None
    assert plan.vllm is not None
    assert plan.timing is not None
    return (
        f"{place}{plan.num_processes} train ({plan.deepspeed}, {plan.memory.total_gib:.1f} GiB), vLLM "
        f"{plan.vllm.total_gib:.1f} GiB for {plan.vllm.sequences} sequences; {plan.completions_per_step} completions "
        f"in {plan.timing.step_s:.1f} s, rollout {plan.timing.rollout:.1f} s"
    )


def lines() -> list[str]:
    places = ((1, 1), (2, 1), (4, 1), (8, 1), (8, 2))
    return [describe(gpus, nodes, number) for gpus, nodes in places for number in range(1, 5)]


def test_memory_and_time_of_every_number_of_devices() -> None:
    assert lines() == GOLDEN.read_text().splitlines()


def pace(plan: Plan) -> float:
    """Seconds of a completion."""
    assert plan.timing is not None
    return plan.timing.step_s / plan.completions_per_step


def test_auto_has_the_least_time_for_a_completion_and_a_shorter_step_on_eight_gpus() -> None:
    one, best = planned(8, 1, "1"), planned(8, 1, "auto")
    assert pace(best) == min(pace(planned(8, 1, str(number))) for number in range(1, 8))
    assert len(best.vllm_devices) > 1
    assert one.timing is not None
    assert best.timing is not None
    assert best.timing.step_s < one.timing.step_s
    assert pace(best) < pace(one)


def test_auto_on_one_gpu_and_without_vllm_is_one_plan() -> None:
    adapter = load_recipe(SHIPPED["lora-1.5b"])
    assert len(planned(1, 1, "auto", adapter, 24).vllm_devices) == 1
    assert planned(4, 1, "auto", PUBLISHED.model_copy(update={"use_vllm": False})).vllm_devices == ()


@pytest.mark.parametrize("name", ["lora-1.5b", "qlora-notebook"])
def test_adapters_on_one_gpu_generate_with_vllm(name: str) -> None:
    place = declared_hardware(SHIPPED[name])
    assert place is not None
    plan = plan_for(load_recipe(SHIPPED[name]), place)
    assert plan.errors == []
    assert plan.roles is not None
    assert plan.roles.shared
    assert plan.setup is not None
    assert plan.vllm is not None
    assert plan.vllm.sequences is not None
    assert plan.vllm.sequences >= plan.completions_per_step


def test_lora_with_vllm_on_one_gpu_takes_at_most_a_third_of_the_hours_without() -> None:
    recipe = load_recipe(SHIPPED["lora-1.5b"])
    with_it, without = (planned(1, 1, "1", recipe.model_copy(update={"use_vllm": on}), 24) for on in (True, False))
    assert with_it.timing is not None
    assert without.timing is not None
    assert with_it.timing.hours is not None
    assert without.timing.hours is not None
    assert with_it.timing.hours <= without.timing.hours / 3


@pytest.mark.parametrize(
    ("changes", "gib", "said"),
    [
        ({}, 12, "(largest: vLLM on the same GPU"),
        ({}, 12, "it fits with"),
        ({"vllm_gpu_memory_utilization": 0.9}, 24, "vllm_gpu_memory_utilization: null"),
        ({"vllm_gpu_memory_utilization": 0.9}, 24, "use_vllm: false"),
        ({"vllm_gpu_memory_utilization": 0.22}, 24, "and a rollout runs 64 at once: take it out"),
    ],
)
def test_one_gpu_that_cannot_hold_both_is_refused_with_numbers(
    changes: dict[str, float], gib: float, said: str
) -> None:
    recipe = load_recipe(SHIPPED["lora-1.5b"]).model_copy(update=changes)
    plan = planned(1, 1, "1", recipe, gib)
    assert any(said in error for error in plan.errors), plan.errors


def test_a_model_of_unknown_shape_on_one_gpu_needs_the_share() -> None:
    unknown = load_recipe(SHIPPED["lora-1.5b"]).model_copy(update={"model_name_or_path": "owner/model"})
    (error,) = planned(1, 1, "1", unknown, 24).errors
    assert "set vllm_gpu_memory_utilization" in error
    assert planned(1, 1, "1", unknown.model_copy(update={"vllm_gpu_memory_utilization": 0.4}), 24).errors == []


if __name__ == "__main__":
    print("\n".join(lines()))
