"""Workers that torchrun or `accelerate launch` started, which uses torchrun: what the launcher decides for its own.

Both set RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Every worker prepares its own
environment before torch is imported, the first worker of each node compares their number with its devices, and rank 0
checks its node and the run directory, as `mini-r1 launch` does. docs/launch.md says what is lost without the launcher.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from mini_r1.console import printable
from mini_r1.errors import KitError
from mini_r1.launch.job import Job, LaunchOptions, Say
from mini_r1.launch.launcher import check_node
from mini_r1.launch.worker_environment import (
    EXPANDABLE_SEGMENTS,
    OVERRIDING,
    TOKENIZERS,
    device_variables,
    vllm_variables,
)
from mini_r1.machine.devices import VISIBLE, Devices, given_devices
from mini_r1.machine.nodes import Nodes
from mini_r1.machine.nvidia import NO_P2P, lacks_p2p, read_driver, smallest_gpu_gib
from mini_r1.machine.roles import Roles, assign
from mini_r1.plan.device_roles import count_vllm_devices
from mini_r1.plan.planner import make_plan
from mini_r1.recipe.deepspeed_file import DeepSpeedFile
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.shipped_files import shipped_files
from mini_r1.run.run_dir import RunDir
from mini_r1.training.schedule import refuse_other_workers

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
ZERO_FILES = {("2", "none", "none"): "zero2", ("3", "none", "none"): "zero3", ("3", "cpu", "cpu"): "zero3-offload"}
"""Shipped DeepSpeed configurations, by accelerate's ZeRO stage and where it offloads optimizer and parameters."""


def accelerate_deepspeed(environment: Mapping[str, str]) -> str | None:
    """Return the DeepSpeed configuration of accelerate 1.3.0's variables: a shipped one's name, a path, or None."""

    def given(name: str, default: str = "none") -> str:
        return environment.get(f"ACCELERATE_{name}", default).lower()

    own = shipped_files("accelerate").get("deepspeed_zero3")
    for name in ("FSDP", "MEGATRON_LM"):
        if given(f"USE_{name}") == "true":
            raise KitError(
                f"accelerate is configured for {name}, and the kit shards with DeepSpeed: use --config_file {own}"
            )
    if given("USE_DEEPSPEED") != "true":
        return None
    if given("DEEPSPEED_CONFIG_FILE") != "none":
        return environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"]
    stage, optimizer, parameters = key = (
        given("DEEPSPEED_ZERO_STAGE", "2"),
        given("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"),
        given("DEEPSPEED_OFFLOAD_PARAM_DEVICE"),
    )
    if key not in ZERO_FILES:
        raise KitError(
            f"accelerate is configured for ZeRO stage {printable(stage)} (optimizer offloaded to "
            f"{printable(optimizer)}, parameters to {printable(parameters)}), which the kit does not ship: use "
            f"--config_file {own}, or give --deepspeed a JSON file"
        )
    return ZERO_FILES[key]


def join_workers(
    options: LaunchOptions,
    recipe: Recipe,
    run: RunDir,
    sharding: DeepSpeedFile | None,
    environment: MutableMapping[str, str],
    say: Say,
) -> None:
    """Prepare this worker's environment, before torch is imported; raise KitError if the run can't start like this."""
    rank, local_rank, world, local_world = _read_workers(environment, recipe)
    devices = given_devices(environment)
    on_first_node = rank == local_rank  # ranks are numbered node by node
    has_agent = "TORCHELASTIC_RUN_ID" in environment  # torchrun, which ends the other workers after an error of one
    number = count_vllm_devices(options.vllm_devices)
    if local_rank == 0 or not has_agent:
        _refuse_number(recipe, devices, local_world, number, on_first_node)
    training = devices.ids[: len(devices.ids) - number] if recipe.use_vllm and on_first_node else devices.ids
    if rank == 0:
        roles = _assign(recipe, devices, world, world - local_world, number)
        training = roles.nodes[0].training_devices
        environment.update({name: value for name, value, _ in vllm_variables(roles, on_cpu=devices.on_cpu)})
    if rank == 0 and has_agent:
        nodes = Nodes(1, 0, "", 0, "torchrun", None)
        memory = None if devices.on_cpu else smallest_gpu_gib(read_driver(devices.ids))
        job = Job(options, Path(options.recipe), recipe, run, devices, nodes, memory, environment, say)
        _check(job, sharding, world, roles)
    for name in [name for name in environment if name.startswith(OVERRIDING)]:
        del environment[name]
    for name, value, _ in device_variables(training, local_world, on_cpu=devices.on_cpu):
        environment[name] = value
    for name in NO_P2P if not devices.on_cpu and lacks_p2p() else ():
        environment.setdefault(name, "1")
    for name, value, _ in (TOKENIZERS, *[EXPANDABLE_SEGMENTS] * (not devices.on_cpu)):
        environment.setdefault(name, value)


def refuse_alone(recipe: Recipe, deepspeed: DeepSpeedFile | None, environment: Mapping[str, str]) -> None:
    """Raise KitError if one worker alone can't train the recipe: it needs vLLM or DeepSpeed, or has several GPUs."""
    if recipe.use_vllm:
        raise KitError(
            "use_vllm: true, and `mini-r1 launch` assigns vLLM's device, on one GPU too: use that instead of "
            "`mini-r1 train`, or set use_vllm: false"
        )
    if deepspeed is not None:
        raise KitError("--deepspeed is for workers: use `mini-r1 launch` in place of `mini-r1 train`")
    devices = given_devices(environment)
    if len(devices.ids) > 1 and not devices.on_cpu:
        raise KitError(
            f"`mini-r1 train` is one worker and sees {len(devices.ids)} GPUs: use `mini-r1 launch`, which starts one "
            f"for each, or set {VISIBLE} to one of them"
        )


def _read_workers(environment: Mapping[str, str], recipe: Recipe) -> tuple[int, int, int, int]:
    """Return the values of VARIABLES; without vLLM the last one may be missing, as if all workers were on one node."""
    values = {name: environment.get(name, "") for name in VARIABLES}
    if not recipe.use_vllm:
        values["LOCAL_WORLD_SIZE"] = values["LOCAL_WORLD_SIZE"] or values["WORLD_SIZE"]
    wrong = [
        f"{name}={printable(value)}" if value else f"no {name}"
        for name, value in values.items()
        if not (value.isascii() and value.isdecimal() and len(value) < 10)
    ]
    if wrong:
        raise KitError(
            f"RANK is set, with {', '.join(wrong)}: torchrun and accelerate launch set {', '.join(VARIABLES)} to whole "
            "numbers. Start the workers with one of these, or use `mini-r1 launch`"
        )
    rank, local_rank, world, local_world = map(int, values.values())
    return rank, local_rank, world, local_world


def _refuse_number(recipe: Recipe, devices: Devices, workers: int, number: int, on_first_node: bool) -> None:
    """Raise KitError if a node has too many workers for its devices, or node 0 not as many as vLLM leaves devices.

    `number` is that of vLLM's devices.
    """
    with_vllm, count = recipe.use_vllm and on_first_node, len(devices.ids)
    wanted = number if on_first_node else 1
    right = assign([devices.ids], use_vllm=with_vllm, on_cpu=devices.on_cpu, vllm_devices=wanted).nodes[0].workers
    if (not devices.ids and not with_vllm) or workers == right or (workers < right and not with_vllm):
        return
    node = "node 0" if on_first_node else "this node"
    kind = "slots" if devices.on_cpu else "GPUs"
    ways = [
        f"start {right} there: torchrun --nproc-per-node {right}, accelerate launch --num_processes {right} (times "
        "the number of machines)"
    ]
    if with_vllm and workers < count:
        ways.append(f"give --vllm-devices {count - workers}")
    if with_vllm and workers + number < count:
        ways.append(f"set {VISIBLE}={','.join(devices.ids[: workers + number])}")
    if with_vllm:
        ways.append("set use_vllm: false")
    last = f"last {number}" if number > 1 else "last one"
    why = f"use_vllm: true takes the {last}, and each of the others needs a worker" if with_vllm else "one for each"
    raise KitError(
        f"{node} has {count} {kind} ({devices.source}) and {workers} worker{'s' * (workers > 1)}; {why}: "
        f"{', or '.join(ways)}"
    )


def _assign(recipe: Recipe, devices: Devices, world: int, elsewhere: int, number: int) -> Roles:
    """Assign roles to node 0's devices and to `elsewhere`, one for each worker on other nodes."""
    own = devices.ids or (() if recipe.use_vllm else tuple(map(str, range(world - elsewhere))))
    others = [list(map(str, range(elsewhere)))] if elsewhere else []
    return assign([own, *others], use_vllm=recipe.use_vllm, on_cpu=devices.on_cpu, vllm_devices=number)


def _check(job: Job, sharding: DeepSpeedFile | None, world: int, roles: Roles) -> None:
    """Check node 0, the plan of all workers and the run directory."""
    recipe, on_cpu = job.recipe, job.devices.on_cpu
    refuse_other_workers(job.run, recipe, world, sharding.stage if sharding else 0)
    memory, deepspeed = job.gpu_memory_gib, job.options.deepspeed
    plan = make_plan(recipe, roles, gpu_memory_gib=memory, on_cpu=on_cpu, deepspeed=deepspeed)
    if plan.errors:
        raise KitError("\n".join(plan.errors))
    error = check_node(job, None)  # torchrun listens on the port already
    if error is not None:
        raise error
    for warning in [*plan.warnings[len(recipe.warnings()) :], *_unused(recipe, job.environment)]:
        job.say(f"warning: {warning}")
    workers = f"{world} worker{'s' * (world > 1)}, started by torchrun, {roles.describe_vllm()}"
    job.say(f"{workers}; DeepSpeed: {deepspeed}; run directory {job.run.path}")


def _unused(recipe: Recipe, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the settings of accelerate that differ from the recipe's, which counts."""
    ours = {
        "MIXED_PRECISION": "bf16" if recipe.bf16 else "fp16" if recipe.fp16 else "no",
        "GRADIENT_ACCUMULATION_STEPS": str(recipe.gradient_accumulation_steps),
        "GRADIENT_CLIPPING": str(recipe.max_grad_norm),
        "DYNAMO_BACKEND": "no",
    }
    for name, value in ours.items():
        theirs = environment.get(f"ACCELERATE_{name}", "auto").lower()
        if theirs not in ("auto", "none", value):
            yield f"accelerate's {name.lower()}, {printable(theirs)}, is not used: by the recipe it is {value}"
