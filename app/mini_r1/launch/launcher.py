"""`mini-r1 launch`: from a recipe and what this node was given to running workers, and to one exit code.

find devices and nodes - look at this node - meet the other launchers - start the workers - watch them
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mini_r1
from mini_r1.console import printable
from mini_r1.doctor.node_checks import examine_node
from mini_r1.errors import ExitCode, KitError
from mini_r1.launch.channel import Channel
from mini_r1.launch.hang import Heartbeats
from mini_r1.launch.job import Job, LaunchOptions, Say, read_job
from mini_r1.launch.network_interface import interface_of
from mini_r1.launch.peers import Ending, Peers
from mini_r1.launch.rendezvous import Introduction, Meeting
from mini_r1.launch.stop_order import StopOrder
from mini_r1.launch.supervise import Supervision
from mini_r1.launch.worker_environment import Start, starts_as_json, starts_as_text, starts_of, train_command
from mini_r1.launch.workers import start_all
from mini_r1.machine.control_groups import usable_cores
from mini_r1.machine.devices import Devices
from mini_r1.machine.nodes import find_nodes
from mini_r1.machine.nvidia import device_index
from mini_r1.machine.provenance import versions
from mini_r1.machine.roles import Roles, assign
from mini_r1.plan.planner import make_plan
from mini_r1.plan.timing import given_grace, grace_warning
from mini_r1.recipe.builtin_models import SMALL_MODEL_THREADS
from mini_r1.run.finished import finished_step_before_loading
from mini_r1.run.run_dir import RunDir

TOGETHER = ("mini-r1", "torch", "transformers", "trl", "accelerate", "deepspeed", "peft", "datasets", "tokenizers")
"""Packages that must be the same on all nodes; vLLM runs on node 0 only."""


def dry_run(
    order: LaunchOptions, environment: Mapping[str, str], say: Say, *, print_run_dir: bool, as_json: bool
) -> str:
    """Return how every node's workers would be started, or the run directory alone.

    The other nodes are assumed to have the same devices as this one.

    Raises:
        KitError: the launch cannot work.
    """
    job = read_job(order, environment, say)
    roles = _roles(job, [job.devices.ids] * job.nodes.count)
    deepspeed = _deepspeed(job, roles)
    if print_run_dir:
        return str(job.run.path)
    folder = Path(tempfile.gettempdir()) / "mini-r1-XXXXXXXX"
    starts = [start for node in roles.nodes for start in _starts(job, roles, node.index, deepspeed, folder)]
    if as_json:
        facts = {
            "num_processes": roles.num_processes,
            "vllm_device": roles.vllm_device,
            "deepspeed": deepspeed,
            "devices": job.devices.source,
            "nodes": job.nodes.source,
            "run_dir": str(job.run.path),
        }
        # Shell scripts read a path in it: as it is written, not as \u00e9.
        return json.dumps({**facts, **starts_as_json(starts, environment)}, indent=2, ensure_ascii=False)
    others = "; the other nodes are taken to have what this one has" if job.nodes.count > 1 else ""
    head = [
        f"{_devices_in_words(job.devices)}; {job.nodes.source}{others}",
        f"{roles.describe()}; DeepSpeed: {deepspeed or 'none'}; run directory {printable(str(job.run.path))}",
    ]
    return "\n".join([*head, "", starts_as_text(starts, environment)])


def launch(order: LaunchOptions, environment: Mapping[str, str], say: Say) -> Ending:
    """Train a recipe on this node, and together with the launchers of the others.

    Args:
        order: the command line.
        environment: of this process.
        say: takes a line for the user.

    Returns:
        How the job ended, the same on all nodes as far as they could be heard.

    Raises:
        KitError: nothing was started.
    """
    with StopOrder() as stop:
        try:
            job = read_job(order, environment, say)
        except KitError as error:
            _excuse(order, environment, error, say, stop)
            raise
        for warning in job.recipe.warnings():
            say(f"warning: {warning}")
        say(f"{job.words}: {_devices_in_words(job.devices)}; {job.nodes.source}")
        channels, roles, deepspeed = _meet(job, say, stop)
        say(f"{roles.describe()}; DeepSpeed: {deepspeed or 'none'}; run directory {job.run.path}")
        return _run(job, roles, deepspeed, channels, stop, say)


# --- before the workers ---


def _excuse(order: LaunchOptions, environment: Mapping[str, str], error: KitError, say: Say, stop: StopOrder) -> None:
    """Tell the other nodes that this one cannot take part: they would wait for it.

    Raises:
        KitError: what all nodes end with; returns where there is no other node.
    """
    nodes = find_nodes(
        environment, count=order.nodes, index=order.node_index, address=order.address, port=order.port
    )  # fmt: skip
    if nodes.count == 1:
        return
    say(f"error: {error.message}")
    me = Introduction(
        nodes.index, socket.gethostname(), (), False, {}, {}, {}, error.message, int(error.exit_code)
    )  # fmt: skip
    Meeting(nodes, Path(), environment, say, lambda: stop.asked).hold(me, lambda introductions: {})


def _meet(job: Job, say: Say, stop: StopOrder) -> tuple[dict[int, Channel], Roles, str | None]:
    """Agree with the other nodes; a node alone agrees with itself."""

    def decide(introductions: Sequence[Introduction]) -> dict[str, Any]:
        roles = _roles(job, [node.devices for node in introductions])
        return {"devices": [list(node.devices) for node in introductions], "deepspeed": _deepspeed(job, roles, say)}

    if job.nodes.count == 1:
        channels: dict[int, Channel] = {}
        roles = _roles(job, [job.devices.ids])
        decision: dict[str, Any] = {"devices": [job.devices.ids], "deepspeed": _deepspeed(job, roles, say)}
        problem = _preflight(job, say)
        if stop.asked:  # first: a scheduler that signals every process may have ended a check
            raise KitError("stopped before anything was started", ExitCode.INTERRUPTED)
        if problem is not None:
            raise problem
    else:
        me = _introduction(job, say, stop)
        meeting = Meeting(job.nodes, job.run.path, job.environment, say, lambda: stop.asked)
        channels, decision = meeting.hold(me, decide)
    return channels, _roles(job, decision["devices"]), decision["deepspeed"]


def _introduction(job: Job, say: Say, stop: StopOrder) -> Introduction:
    problem = _preflight(job, say)
    if stop.asked:  # a scheduler that signals every process may have ended a check; the meeting says that it was asked
        problem = None
    installed: dict[str, str | None] = {**versions(TOGETHER), "kit's code": _code(), "python": _python()}
    return Introduction(
        index=job.nodes.index,
        host=socket.gethostname(),
        devices=job.devices.ids,
        on_cpu=job.devices.on_cpu,
        recipe=job.recipe.model_dump(mode="json"),
        options={"--deepspeed": job.order.deepspeed},
        versions=installed,
        problem=None if problem is None else problem.message,
        problem_code=0 if problem is None else int(problem.exit_code),
    )


def _preflight(job: Job, say: Say) -> KitError | None:
    """What is wrong with this node, if anything."""
    report = examine_node(
        job.path,
        job.order.overrides,
        devices=job.devices,
        nodes=job.nodes,
        run_dir=job.run.path,
        deepspeed=job.order.deepspeed,
        gpu_memory_gib=job.gpu_memory_gib,
        with_torch=False,  # the workers look at the same with torch, before they train
        environment=job.environment,
    )
    # The doctor takes all nodes to be alike; the plan is made of what they really have.
    report = replace(report, findings=tuple(finding for finding in report.findings if finding.check != "plan"))
    for warning in report.warnings:
        say(f"warning: {warning}")
    if report.error is None and job.nodes.index == 0:
        try:
            finished_step_before_loading(job.run, job.recipe)
        except KitError as error:
            return error
    return report.error


def _roles(job: Job, devices: Sequence[Sequence[str]]) -> Roles:
    return assign(devices, use_vllm=job.recipe.use_vllm, on_cpu=job.devices.on_cpu)


def _deepspeed(job: Job, roles: Roles, say: Say | None = None) -> str | None:
    """The plan's choice of DeepSpeed.

    Raises:
        KitError: the plan cannot work.
    """
    plan = make_plan(
        job.recipe,
        roles,
        gpu_memory_gib=job.gpu_memory_gib,
        deepspeed=job.order.deepspeed,
        on_cpu=job.devices.on_cpu,
    )
    if plan.errors:
        raise KitError("\n".join(plan.errors))
    if say is not None:
        short = grace_warning(plan.timing, given_grace(job.environment))
        for warning in [*plan.warnings, *([short] if short else [])]:
            say(f"warning: {warning}")
    return plan.deepspeed


# --- workers ---


def _run(
    job: Job, roles: Roles, deepspeed: str | None, channels: Mapping[int, Channel], stop: StopOrder, say: Say
) -> Ending:
    node = roles.nodes[job.nodes.index]
    peers = Peers(node.index, channels)
    with _scratch() as folder:
        starts = _starts(job, roles, node.index, deepspeed, folder, _interface(channels))
        try:
            workers = start_all(starts, job.environment, say)
        except OSError as error:
            ending = Ending(ExitCode.RETRY, f"{job.words} cannot start a worker: {error.strerror}")
            workers = []
        peers.start()
        try:
            heartbeats = Heartbeats(folder, node.ranks)
            supervision = Supervision(
                workers, heartbeats, folder, job.run, peers, stop, job.words, job.recipe.hang_timeout_s, say
            )
            if workers:
                ending = supervision.watch()
            peers.tell_end(ending)
            ending = supervision.wait_for_others()
        finally:
            for worker in workers:
                worker.kill()
            peers.close()
    if node.index == 0:
        _record(job.run, ending, heartbeats.step)
    return ending


def _starts(
    job: Job, roles: Roles, index: int, deepspeed: str | None, folder: Path, interface: str | None = None
) -> list[Start]:
    node = roles.nodes[index]
    here = index == job.nodes.index
    vllm = device_index(node.vllm_device) if here and node.vllm_device and not job.devices.on_cpu else None
    return starts_of(
        node,
        roles,
        job.nodes,
        train_command(job.path, job.order.overrides, job.run.path, deepspeed),
        on_cpu=job.devices.on_cpu,
        supervisor=folder,
        launchers=job.environment,
        vllm_device=vllm,
        cores=min(usable_cores(), SMALL_MODEL_THREADS * node.workers) if job.recipe.built_in else usable_cores(),
        interface=interface,
    )


def _interface(channels: Mapping[int, Channel]) -> str | None:
    """Over which this node reaches the others; None for a node alone."""
    return next((interface_of(channel.local_address) for channel in channels.values()), None)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A directory on this node's own disk, for this user only."""
    folder = Path(tempfile.mkdtemp(prefix="mini-r1-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _record(run: RunDir, ending: Ending, step: int) -> None:
    """Say how the run ended where no worker could."""
    state = run.read_state()
    if state.get("state") != "running" or ending.code == ExitCode.FINISHED:
        return
    how = "interrupted" if ending.code == ExitCode.INTERRUPTED else "failed"
    reason = ending.text.partition("\n")[0] or "the workers ended without a word"
    facts = {"step": max(step, int(state.get("step", 0))), "exit_code": int(ending.code), "reason": reason}
    run.write_last_state(how, **facts, attempt=state.get("attempt"))


def _devices_in_words(devices: Devices) -> str:
    if not devices.ids:
        return f"no GPU ({devices.source}): the CPU"
    count, s = len(devices.ids), "s" * (len(devices.ids) > 1)
    return f"{count} slot{s} on the CPU ({devices.source})" if devices.on_cpu else f"{count} GPU{s} ({devices.source})"


def _code() -> str:
    """Digest of the kit's own source: two checkouts of one version may differ, and a node may have no git."""
    folder, digest = Path(mini_r1.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _python() -> str:
    import platform

    return ".".join(platform.python_version_tuple()[:2])
