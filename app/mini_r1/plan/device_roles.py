"""The plan of a recipe on devices by node: roles are assigned first, and `auto` chooses how many devices vLLM gets."""

from collections.abc import Sequence

from mini_r1.errors import KitError
from mini_r1.machine.roles import assign
from mini_r1.plan.planner import AUTO, Plan, make_plan
from mini_r1.recipe.fields import Recipe


def plan_devices(
    recipe: Recipe,
    devices: Sequence[Sequence[str]],
    *,
    on_cpu: bool,
    gpu_memory_gib: float | None,
    deepspeed: str = AUTO,
    vllm_devices: str = "1",
) -> Plan:
    """Assign roles to the devices of all nodes and plan them; the plan has roles, and errors if it can't work.

    `vllm_devices` is the number of devices for vLLM, or `auto`: see `choose_vllm_devices`. Raises KitError if roles
    can't be assigned.
    """

    def plan_with(number: int) -> Plan:
        roles = assign(devices, use_vllm=recipe.use_vllm, on_cpu=on_cpu, vllm_devices=number)
        return make_plan(recipe, roles, gpu_memory_gib=gpu_memory_gib, on_cpu=on_cpu, deepspeed=deepspeed)

    if vllm_devices != AUTO:
        return plan_with(count_vllm_devices(vllm_devices))
    return choose_vllm_devices([plan_with(number) for number in _possible_numbers(recipe, devices)])


def choose_vllm_devices(plans: Sequence[Plan]) -> Plan:
    """Return the plan with the least time per completion, of equal ones the first; the first if no time is planned.

    The time of a step alone would choose one worker, whose step has the fewest completions.
    """
    timed = [plan for plan in plans if not plan.errors and plan.timing is not None and plan.timing.step_s > 0]
    return min(timed, key=_completion_s, default=plans[0])


def describe_more_devices(plan: Plan) -> str | None:
    """Return what `--vllm-devices auto` gives by plan, compared with this plan; None if there is nothing to choose."""
    roles = plan.roles
    if roles is None or not roles.vllm_devices or len(roles.nodes[0].devices) < 3 or plan.timing is None:
        return None
    devices, memory = [node.devices for node in roles.nodes], plan.gpu_memory_gib
    best = plan_devices(plan.recipe, devices, on_cpu=plan.on_cpu, gpu_memory_gib=memory, vllm_devices=AUTO)
    number = len(best.vllm_devices)
    if number <= len(roles.vllm_devices):
        return "more vLLM devices: fewer completions an hour"
    return f"--vllm-devices {number}: {_completion_s(plan) / _completion_s(best) - 1:.0%} more completions an hour"


def _completion_s(plan: Plan) -> float:
    return plan.timing.step_s / plan.completions_per_step if plan.timing else 0.0


def _possible_numbers(recipe: Recipe, devices: Sequence[Sequence[str]]) -> range:
    most = len(devices[0]) - 1 if devices and recipe.use_vllm else 1
    return range(1, max(1, most) + 1)


def count_vllm_devices(text: str) -> int:
    """Return the number that --vllm-devices names; raise KitError if it is none."""
    if text.isascii() and text.isdecimal() and len(text) < 6:
        return int(text)
    raise KitError(f"--vllm-devices {text}: must be a whole number, or auto")
