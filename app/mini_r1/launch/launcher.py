"""`mini-r1 launch`: from a recipe and this node's devices to running workers, and to one exit code."""

import hashlib
import json
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import mini_r1
from mini_r1.console import printable
from mini_r1.doctor.node_checks import examine_node
from mini_r1.errors import ExitCode, KitError
from mini_r1.launch.attempt_limits import AttemptLimits, LimitReached
from mini_r1.launch.channel import Channel
from mini_r1.launch.job import Job, LaunchOptions, Say, read_job
from mini_r1.launch.peers import Ending, Peers
from mini_r1.launch.rendezvous import MEET_TIMEOUT_S, Introduction, Meeting
from mini_r1.launch.stop_order import StopOrder
from mini_r1.launch.supervise import Supervision
from mini_r1.launch.worker_environment import describe_starts, starts_to_dict, worker_starts
from mini_r1.launch.workers import Worker, start_workers
from mini_r1.machine.devices import Devices
from mini_r1.machine.nodes import Nodes
from mini_r1.machine.provenance import versions
from mini_r1.machine.roles import Roles, assign
from mini_r1.machine.schedulers import Patience
from mini_r1.plan.device_roles import plan_devices
from mini_r1.plan.planner import Plan
from mini_r1.plan.timing import grace_warning
from mini_r1.recipe.deepspeed_file import find_deepspeed
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.named_files import digests, with_copies
from mini_r1.run.finished import finished_step_before_loading
from mini_r1.run.run_dir import RunDir
from mini_r1.training.schedule import refuse_other_workers

TOGETHER = ("mini-r1", "torch", "transformers", "trl", "accelerate", "deepspeed", "peft", "datasets", "tokenizers")
"""Packages that must be the same on all nodes; vLLM runs on node 0 only."""
LIMIT_MEET_S = 60.0  # seconds for the other nodes to come and hear that a limit is reached


def dry_run(
    options: LaunchOptions, environment: Mapping[str, str], say: Say, *, print_run_dir: bool, as_json: bool
) -> str:
    """Return how every node's workers would be started, or the run directory alone; raise KitError if none can be.

    The other nodes are assumed to have the same devices as this one.
    """
    AttemptLimits(environment)  # its settings are checked too
    runs: list[RunDir] = []
    try:
        job = read_job(options, environment, say, lambda run, nodes: runs.append(run), as_if=True)
    except KitError as error:
        if print_run_dir and runs and error.exit_code == ExitCode.RETRY:
            return str(runs[0].path)  # an error of the node: the launch itself reports and counts it
        raise
    plan, roles = _plan(job, [job.devices.ids] * job.nodes.count)
    if print_run_dir:
        return str(job.run.path)
    folder = Path(tempfile.gettempdir()) / "mini-r1-XXXXXXXX"
    starts = [start for node in roles.nodes for start in worker_starts(job, roles, node.index, plan.deepspeed, folder)]
    if as_json:
        facts = {
            "num_processes": roles.num_processes,
            "vllm_devices": roles.vllm_devices,
            "deepspeed": plan.deepspeed,
            "devices": job.devices.source,
            "nodes": job.nodes.source,
            "run_dir": str(job.run.path),
            **starts_to_dict(starts, environment),
        }
        return json.dumps(facts, indent=2, ensure_ascii=False)
    others = "; the other nodes are assumed to have the same" if job.nodes.count > 1 else ""
    return (
        f"{_describe_devices(job.devices)}; {job.nodes.source}{others}\n"
        f"{printable(_describe_roles(job, roles, plan.deepspeed))}\n\n{describe_starts(starts, environment)}"
    )


def launch(options: LaunchOptions, environment: Mapping[str, str], say: Say) -> Ending:
    """Train a recipe, with the other nodes' launchers; return how the job ended, or raise KitError before its start."""
    limits = AttemptLimits(environment)
    try:
        with StopOrder() as stop:
            ending = _launch(options, environment, say, stop, limits)
    except KitError as error:
        ending = limits.end(Ending(error.exit_code, error.message))
        raise KitError(ending.text, ending.code) from error
    return limits.end(ending)


def _launch(
    options: LaunchOptions, environment: Mapping[str, str], say: Say, stop: StopOrder, limits: AttemptLimits
) -> Ending:
    try:
        job = read_job(options, environment, say, lambda run, nodes: limits.begin(run, nodes.index, stop))
    except KitError as error:
        nodes = options.find_nodes(environment)
        if nodes.count > 1:  # the other nodes hear that this one cannot take part: all raise the error
            say(f"error: {error.message}")
            me = Introduction(nodes.index, socket.gethostname(), error=error.message, error_code=error.exit_code)
            is_limit = isinstance(error, LimitReached)  # then nodes that do not come are no reason for a retry
            meeting = Meeting(nodes, Path(), environment, say, stop, LIMIT_MEET_S if is_limit else MEET_TIMEOUT_S)
            with suppress(*(KitError,) * is_limit):
                meeting.hold(me, lambda devices: {})
        raise
    for warning in job.recipe.warnings():
        say(f"warning: {warning}")
    say(f"{job.node}: {_describe_devices(job.devices)}; {job.nodes.source}")
    channels, roles, deepspeed = _meet(job, stop)
    say(_describe_roles(job, roles, deepspeed))
    return _run(job, roles, deepspeed, channels, stop, limits)


def _meet(job: Job, stop: StopOrder) -> tuple[dict[int, Channel], Roles, str | None]:
    """Check this node, and agree with the other nodes on roles and DeepSpeed."""

    def stopped() -> bool:
        return stop.name is not None

    def decide(devices: list[Sequence[str]]) -> dict[str, Any]:
        plan, roles = _plan(job, devices)
        stage = find_deepspeed(plan.deepspeed).stage if plan.deepspeed else 0
        refuse_other_workers(job.run, job.recipe, roles.num_processes, stage)
        for warning in [*plan.warnings, grace_warning(plan.timing, job.environment)]:
            if warning is not None:
                job.say(f"warning: {warning}")
        number = max(1, len(roles.vllm_devices))
        return {"devices": [list(ids) for ids in devices], "deepspeed": plan.deepspeed, "vllm_devices": number}

    if job.nodes.count == 1:
        decision = decide([job.devices.ids])
        error = check_node(job, job.nodes, stopped)
        if stop.name:  # first: a scheduler that signals every process may have ended a check
            raise KitError("stopped before anything was started", ExitCode.INTERRUPTED)
        if error is not None:
            raise error
        channels: dict[int, Channel] = {}
    else:
        error = check_node(job, job.nodes, stopped)
        if stop.name:  # as above; the meeting then reports the stop
            error = None
        me = Introduction(
            index=job.nodes.index,
            host=socket.gethostname(),
            devices=job.devices.ids,
            on_cpu=job.devices.on_cpu,
            recipe=shared_settings(job.recipe, job.options),
            versions={**versions(TOGETHER), "kit's code": _hash_code(), "python": "{}.{}".format(*sys.version_info)},
            error=error.message if error else None,
            error_code=error.exit_code if error else 0,
        )
        channels, decision = Meeting(job.nodes, job.run.path, job.environment, job.say, stop).hold(me, decide)
    roles = assign(
        decision["devices"],
        use_vllm=job.recipe.use_vllm,
        on_cpu=job.devices.on_cpu,
        vllm_devices=decision["vllm_devices"],
    )
    return channels, roles, decision["deepspeed"]


def shared_settings(recipe: Recipe, options: LaunchOptions) -> dict[str, Any]:
    """Return what must be the same on all nodes: recipe, digests of the files that it names, options."""
    files = {name: f"sha256 {digest}" for name, digest in digests(recipe).items()}
    chosen = {"--deepspeed": options.deepspeed, "--vllm-devices": options.vllm_devices}
    return {**with_copies(recipe).model_dump(mode="json"), **files, **chosen}


def check_node(job: Job, nodes: Nodes | None, stopped: Callable[[], bool] = lambda: False) -> KitError | None:
    """Return what is wrong with this node or the run directory, if anything; without `nodes` no port is checked."""
    report = examine_node(
        job.path,
        job.options.overrides,
        devices=job.devices,
        nodes=nodes,
        run_dir=job.run.path,
        deepspeed=job.options.deepspeed,
        vllm_devices=job.options.vllm_devices,
        gpu_memory_gib=job.gpu_memory_gib,
        with_torch=False,  # the workers check the same with torch, before they train
        environment=job.environment,
    )
    # The doctor assumes that all nodes are alike; the plan is made from what they really have.
    report = replace(report, findings=tuple(finding for finding in report.findings if finding.check != "plan"))
    for warning in report.warnings:
        job.say(f"warning: {warning}")
    if report.error is None and job.nodes.index == 0:
        try:
            patience = Patience(job.environment, job.say, stopped)
            finished_step_before_loading(job.run, job.recipe, patience)
        except KitError as error:
            return error
    return report.error


def _plan(job: Job, devices: Sequence[Sequence[str]]) -> tuple[Plan, Roles]:
    """Return the plan and roles of all nodes' devices, or raise KitError with the plan's errors."""
    plan = plan_devices(
        job.recipe,
        devices,
        on_cpu=job.devices.on_cpu,
        gpu_memory_gib=job.gpu_memory_gib,
        deepspeed=job.options.deepspeed,
        vllm_devices=job.options.vllm_devices,
    )
    if plan.errors or plan.roles is None:
        raise KitError("\n".join(plan.errors))
    return plan, plan.roles


def _run(
    job: Job,
    roles: Roles,
    deepspeed: str | None,
    channels: Mapping[int, Channel],
    stop: StopOrder,
    limits: AttemptLimits,
) -> Ending:
    index = job.nodes.index
    peers = Peers(index, channels)
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory(prefix="mini-r1-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        interface = next((channel.interface for channel in channels.values()), None)
        starts = worker_starts(job, roles, index, deepspeed, folder, interface)
        try:
            workers = start_workers(starts, job.environment, job.say)
        except OSError as error:
            ending = Ending(ExitCode.RETRY, f"{job.node} cannot start a worker: {error.strerror}")
        peers.start()
        supervision = Supervision(workers, folder, job.run, peers, stop, job.node, job.recipe.hang_timeout_s, job.say)
        try:
            if workers:
                ending = limits.explain(supervision.watch())
            peers.report_end(ending)
            ending = supervision.wait_for_peers()
        finally:
            for worker in workers:
                worker.kill()
            peers.close()
    if index == 0:
        _record(job, ending, supervision.heartbeats.step)
    return ending


def _record(job: Job, ending: Ending, step: int) -> None:
    """Write how the run ended if no worker could."""
    state = job.run.read_state()
    if state.get("state") != "running" or ending.code == ExitCode.FINISHED:
        return
    job.run.write_last_state(
        "interrupted" if ending.code == ExitCode.INTERRUPTED else "failed",
        step=max(step, int(state.get("step", 0))),
        exit_code=int(ending.code),
        reason=ending.text.partition("\n")[0] or "the workers exited without output",
        attempt=state.get("attempt"),
    )


def _describe_devices(devices: Devices) -> str:
    if not devices.ids:
        return f"no GPU ({devices.source}): the CPU"
    count, s = len(devices.ids), "s" * (len(devices.ids) > 1)
    return f"{count} slot{s} on the CPU ({devices.source})" if devices.on_cpu else f"{count} GPU{s} ({devices.source})"


def _describe_roles(job: Job, roles: Roles, deepspeed: str | None) -> str:
    return f"{roles.describe()}; DeepSpeed: {deepspeed or 'none'}; run directory {job.run.path}"


def _hash_code() -> str:
    """Return a digest of the kit's source: two checkouts of one version may differ, and a node may have no git."""
    folder, digest = Path(mini_r1.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
