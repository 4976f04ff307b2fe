"""`mini-r1 doctor`: this node against a recipe, before anything is started.

report = examine_node(path, [], devices=devices, nodes=nodes, run_dir=run_dir)
report.exit_code  # 0; 78 if the recipe or the installation fails a check, else 150 if the node does
"""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table
from rich.text import Text

from mini_r1 import __version__
from mini_r1.console import printable
from mini_r1.doctor import gpus, host, inputs, local_storage, software
from mini_r1.doctor.case import Case, run_program
from mini_r1.errors import ExitCode, KitError
from mini_r1.machine.devices import Devices
from mini_r1.machine.findings import Finding, as_error, exit_code, fail, from_error, ok, sentence, skip, warn
from mini_r1.machine.heavy_imports import INSTALL
from mini_r1.machine.nodes import Nodes
from mini_r1.machine.nvidia import PCI_ORDER, read_driver, smallest_gpu_gib
from mini_r1.machine.redact import redact
from mini_r1.machine.writable_home import move_caches
from mini_r1.plan.device_roles import count_vllm_devices
from mini_r1.plan.planner import AUTO, Plan
from mini_r1.plan.recipe_plans import Hardware, plan_for
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.named_files import check_code
from mini_r1.recipe.recipe_file import effective_output_dir, load_recipe

Subject = TypeVar("Subject")
CHECKS: dict[str, Callable[[Case], Finding]] = {
    "driver": gpus.driver,
    "compute capability": gpus.compute_capability,
    "GPU kinds": gpus.gpu_kinds,
    "P2P": gpus.p2p,
    "GPU memory": gpus.gpu_memory,
    "ECC": gpus.ecc,
    "Xid": gpus.xid,
    "versions": software.versions,
    "nvcc": software.nvcc,
    "DeepSpeed configuration": software.deepspeed,
    "vLLM engine": software.vllm_engine,
    "shared memory": host.shared_memory,
    "host memory": host.host_memory,
    "InfiniBand": host.infiniband,
    "locked memory": host.locked_memory,
    "open files": host.open_files,
    "processes": host.processes,
    "user": host.user,
    "run directory": local_storage.run_directory,
    "disk": local_storage.disk,
    "caches": local_storage.caches,
    "ports": host.ports,
    "interfaces": host.interfaces,
    "model": inputs.model,
    "data": inputs.data,
    "trackers": software.trackers,
    "hub token": software.hub_token,
}
"""Name and function of each light check, in the order of the table; its docstring says what it looks at. None loads
torch, none leaves anything behind."""
SAME_FAILURE = {"architecture": "model", "tokenizer": "model", "problems": "data", "vLLM": "vLLM engine"}
"""Checks with torch, and the light one that has reported the same failure already."""
TORCH_TIMEOUT_S = 600.0
"""Seconds. Imports take some 20 on a busy machine with cold caches; beyond this a disk or a driver hangs."""
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Taken out of the environment of the checks with torch: their process is alone."""
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


@dataclass(frozen=True, slots=True)
class Report:
    """What the doctor found: one finding for each check, in order."""

    host: str
    devices: str  # their source
    recipe: str | None  # the file
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> ExitCode:
        """0 without a failure, 78 if a recipe causes one, else 150."""
        return exit_code(self.findings)

    @property
    def error(self) -> KitError | None:
        """All failures as one error, with the report's exit code; None without any."""
        return as_error(self.findings) if self.exit_code else None

    @property
    def warnings(self) -> list[str]:
        """A line for each finding that need not stop a run."""
        return [sentence(finding) for finding in self.findings if finding.status == "warn"]

    def to_dict(self) -> dict[str, Any]:
        """Return the object that --json prints."""
        return {**asdict(self), "version": __version__, "exit_code": int(self.exit_code)}

    @property
    def summary(self) -> str:
        """One line: how many checks ended how, and the exit code of a failure."""
        counts = Counter(finding.status for finding in self.findings)
        warnings, failures = _count(counts["warn"], "warning"), _count(counts["fail"], "failure")
        code = f" (exit code {int(self.exit_code)})" if self.exit_code else ""
        checks = _count(len(self.findings), "check")
        return f"{checks}: {counts['ok']} ok, {warnings}, {failures}{code}, {counts['skip']} skipped"

    def table(self, *, with_skipped: bool) -> Table:
        """Return the findings for a terminal, each with its fix below."""
        subject = f"{self.host} and {self.recipe}" if self.recipe else self.host
        table = Table("check", "", "found", title=Text(printable(subject)), title_justify="left")
        for finding in self.findings:
            if finding.status == "skip" and not with_skipped:
                continue
            text = Text(printable(finding.detail))
            if finding.fix:
                text.append(f"\n→ {printable(finding.fix)}", style="bold")
            table.add_row(Text(finding.check), Text(finding.status, style=STYLES[finding.status]), text)
        return table


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def examine_node(
    recipe_path: Path | None,  # None checks the node alone
    overrides: Sequence[str] = (),
    *,
    devices: Devices,  # of this process; the other nodes are assumed to have the same
    nodes: Nodes | None = None,  # of the job; None checks no port
    run_dir: Path | None = None,  # None is the recipe's
    deepspeed: str = AUTO,
    vllm_devices: str = "1",
    gpu_memory_gib: float | None = None,  # of the smallest GPU; None asks the driver
    with_torch: bool = True,  # with a recipe, also run the checks that import torch
    environment: Mapping[str, str] = os.environ,
) -> Report:
    """Check this node, and what a recipe needs of it. A file in the run directory's place is written and removed.

    Raises:
        KitError: the recipe cannot be read, or names code that is forbidden or not here.
    """
    driver = read_driver([] if devices.on_cpu else devices.ids)
    findings: list[Finding] = []
    ports = () if nodes is None or nodes.index else (nodes.port, nodes.control_port)[: nodes.count]
    first_node = nodes is None or nodes.index == 0
    case = Case(environment, devices, driver, ports=ports, first_node=first_node, run_dir=run_dir)
    if recipe_path is not None:
        recipe = load_recipe(recipe_path, overrides)
        check_code(recipe, environment)
        memory = gpu_memory_gib or smallest_gpu_gib(driver)
        plan = _make_plan(recipe, devices, nodes, deepspeed, memory, vllm_devices)
        findings.append(_check_plan(plan).named("plan"))
        case = replace(case, recipe=recipe, run_dir=run_dir or effective_output_dir(recipe, recipe_path))
        if plan.roles:
            case = replace(
                case,
                disk_gib=plan.disk.total if plan.disk else None,
                host_memory_gib=plan.host_memory_gib or 0.0,
                shm_gib=plan.shm_gib or 0.0,
                workers=plan.roles.nodes[nodes.index if nodes else 0].workers,
                deepspeed=plan.deepspeed,
            )
    findings += [run_check(check, case).named(name) for name, check in CHECKS.items()]
    if recipe_path is not None and with_torch:
        failed = {finding.check for finding in findings if finding.status == "fail"}
        for found in run_torch_checks(recipe_path, overrides, case):
            reported = found.status == "fail" and SAME_FAILURE.get(found.check) in failed
            findings.append(skip(f"see {SAME_FAILURE[found.check]}").named(found.check) if reported else found)
    return Report(socket.gethostname(), devices.source, str(recipe_path) if recipe_path else None, tuple(findings))


def run_check(check: Callable[[Subject], Finding], subject: Subject) -> Finding:
    """Return a check's finding; its error as one; a skip if the kernel does not show a file that the check needs."""
    try:
        return check(subject)
    except KitError as error:
        return from_error(error)
    except OSError as error:
        return skip(f"cannot be checked here: {error}")


def _make_plan(
    recipe: Recipe,
    devices: Devices,
    nodes: Nodes | None,
    deepspeed: str,
    gpu_memory_gib: float | None,
    vllm_devices: str,
) -> Plan:
    given = [[*devices.ids] for _ in range(nodes.count if nodes else 1)]
    if nodes and nodes.index > 0 and recipe.use_vllm and devices.ids:
        # Node 0 is another one, and checks by itself whether it has enough.
        needed = 1 + (1 if vllm_devices == AUTO else count_vllm_devices(vllm_devices))
        given[0] += ["vLLM's"] * (needed - len(given[0]))
    return plan_for(recipe, Hardware(given, devices.on_cpu, gpu_memory_gib, devices.source), deepspeed, vllm_devices)


def _check_plan(plan: Plan) -> Finding:
    if plan.errors or plan.roles is None:
        return fail("; ".join(plan.errors), "`mini-r1 plan` shows all of it", "recipe")
    found = f"{plan.roles.describe()}, DeepSpeed: {plan.deepspeed or 'none'}"
    return warn(f"{found}; {'; '.join(plan.warnings)}", "") if plan.warnings else ok(found)


def run_torch_checks(recipe: Path, overrides: Sequence[str], case: Case) -> list[Finding]:
    """Return what a process with torch, `mini_r1.training.probe`, finds out about devices and recipe."""
    command = [sys.executable, "-m", "mini_r1.training.probe", str(recipe), "--deepspeed", case.deepspeed or "none"]
    for override in overrides:
        command += ["--set", override]
    variables = {name: value for name, value in case.environment.items() if name not in LAUNCHER_VARIABLES}
    variables |= move_caches(case.environment)[0]
    if case.uses_gpus:
        variables |= {"CUDA_VISIBLE_DEVICES": ",".join(case.devices.ids), **PCI_ORDER}
    else:
        variables |= {"MINI_R1_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    try:
        done = run_program(command, variables, TORCH_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        detail = f"importing torch and loading the data took more than {TORCH_TIMEOUT_S:.0f} s"
        fix = "check the disk of the installation, and the driver with `nvidia-smi`"
        return [fail(detail, fix, "node").named("probe")]
    with suppress(ValueError, KeyError, TypeError):
        return [Finding(**finding) for finding in json.loads(done.stdout)["findings"]]
    last = " / ".join(line.strip() for line in done.stderr.strip().splitlines()[-3:])
    output = f"its last output: {redact(last, case.environment) or 'none'}"
    if done.returncode < 0:  # the kernel is short of memory, or native code crashed
        detail = f"the process that imports torch was killed by signal {-done.returncode}; {output}"
        finding = fail(detail, f"see the kernel's log (`dmesg`) for lack of memory; else {INSTALL}", "node")
    else:
        detail = f"the process that imports torch ended with exit code {done.returncode}; {output}"
        finding = fail(detail, INSTALL, "recipe")
    return [finding.named("probe")]
