"""`mini-r1 doctor`: this node against a recipe, before anything is started.

report = examine(path, [], devices=devices, nodes=nodes, run_dir=run_dir)
report.exit_code  # 0; 78 where the recipe or the installation is at fault, else 150 where the node is
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table
from rich.text import Text

from mini_r1 import __version__
from mini_r1.console import printable
from mini_r1.doctor.case import Case, Needs
from mini_r1.doctor.checks import CHECKS
from mini_r1.doctor.torch_checks import probe as run_probe
from mini_r1.errors import ExitCode, KitError
from mini_r1.findings import Finding, as_error, exit_code, fail, from_error, ok, sentence, skip, warn
from mini_r1.machine.devices import Devices
from mini_r1.machine.nodes import Nodes
from mini_r1.machine.nvidia import read_driver, smallest_gpu_gib
from mini_r1.machine.roles import Roles, assign
from mini_r1.plan.planner import AUTO, Plan, make_plan
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import effective_output_dir, load_recipe

Subject = TypeVar("Subject")
CAUSES = {"architecture": "model", "tokenizer": "model", "problems": "data"}
"""Checks of the probe, and the light one that has told the same failure already."""
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


@dataclass(frozen=True, slots=True)
class Report:
    """What the doctor found.

    Args:
        host: name of the node.
        devices: of this process, in words.
        recipe: the file; None for the node alone.
        findings: one for each check, in order.
    """

    host: str
    devices: str
    recipe: str | None
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> ExitCode:
        """0 without a failure, 78 if any is the recipe's, else 150."""
        return exit_code(self.findings)

    @property
    def error(self) -> KitError | None:
        """All failures as one error, with the report's exit code; None without any."""
        return as_error(self.findings) if any(finding.status == "fail" for finding in self.findings) else None

    @property
    def warnings(self) -> list[str]:
        """A line for each finding that need not stop a run."""
        return [sentence(finding) for finding in self.findings if finding.status == "warn"]

    def to_dict(self) -> dict[str, Any]:
        """The --json."""
        return {
            "host": self.host,
            "devices": self.devices,
            "recipe": self.recipe,
            "version": __version__,
            "exit_code": int(self.exit_code),
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def table(self) -> Table:
        """For a terminal: what was found, and the fix below it."""
        subject = f"{self.host} and {self.recipe}" if self.recipe else self.host
        table = Table("check", "", "found", title=Text(printable(subject)), title_justify="left")
        for finding in self.findings:
            text = Text(printable(finding.detail))
            if finding.fix:
                text.append(f"\n→ {printable(finding.fix)}", style="bold")
            table.add_row(Text(finding.check), Text(finding.status, style=STYLES[finding.status]), text)
        return table


def examine(
    recipe_path: Path | None,
    overrides: Sequence[str] = (),
    *,
    devices: Devices,
    nodes: Nodes | None = None,
    run_dir: Path | None = None,
    deepspeed: str = AUTO,
    gpu_memory_gib: float | None = None,
    probe: bool = True,
    environment: Mapping[str, str] | None = None,
) -> Report:
    """Look at this node, and at what a recipe needs of it. A file in the run directory's place is written and removed.

    Args:
        recipe_path: what is to be trained; None looks at the node alone.
        overrides: of --set.
        devices: that this process was given.
        nodes: of the job, where there is one; node 0's ports are looked at. The others are taken to have what this has.
        run_dir: None is the recipe's own.
        deepspeed: as for `make_plan`.
        gpu_memory_gib: of the smallest GPU; None asks the driver.
        probe: also run the heavy checks, in a process of their own that imports torch; they need a recipe.
        environment: of this process; None is `os.environ`.

    Raises:
        KitError: the recipe cannot be read.
    """
    environment = os.environ if environment is None else environment
    recipe = load_recipe(recipe_path, overrides) if recipe_path else None
    driver = read_driver([] if devices.on_cpu else devices.ids)
    findings: list[Finding] = []
    case = Case(environment, devices, driver, nodes=nodes, ports=_ports(nodes), run_dir=run_dir)
    if recipe is not None and recipe_path is not None:
        planned, plan = _plan(recipe, devices, nodes, deepspeed, gpu_memory_gib or smallest_gpu_gib(driver))
        findings.append(planned.named("plan"))
        case = replace(
            case,
            recipe=recipe,
            run_dir=run_dir or effective_output_dir(recipe, recipe_path),
            needs=_needs(plan),
            workers=plan.roles.nodes[nodes.index if nodes else 0].workers if plan and plan.roles else 1,
            deepspeed=plan.deepspeed if plan else None,
        )
    findings += light(case)
    if recipe_path is not None and probe:
        heavy = run_probe(
            recipe_path, overrides, deepspeed=case.deepspeed, devices=devices, environment=environment
        )  # fmt: skip
        findings += _told_once(heavy, findings)
    name = None if recipe_path is None else str(recipe_path)
    return Report(socket.gethostname(), devices.source, name, tuple(findings))


def light(case: Case) -> list[Finding]:
    """Every light check's result. A file that the kernel does not show here stops none of them."""
    return [looked(check, case).named(name) for name, check in CHECKS.items()]


def looked(check: Callable[[Subject], Finding], subject: Subject) -> Finding:
    """A check's result; a skip where the kernel does not show a file that it needs."""
    try:
        return check(subject)
    except OSError as error:
        return skip(f"cannot be looked at here: {error}")


def _ports(nodes: Nodes | None) -> tuple[int, ...]:
    if nodes is None or nodes.index > 0:
        return ()
    return (nodes.port, nodes.control_port) if nodes.count > 1 else (nodes.port,)


def _plan(
    recipe: Recipe, devices: Devices, nodes: Nodes | None, deepspeed: str, gpu_memory_gib: float | None
) -> tuple[Finding, Plan | None]:
    """The plan's errors as a finding, and the plan where roles can be given."""
    try:
        roles = _roles(recipe, devices, nodes)
    except KitError as error:
        return from_error(error), None
    plan = make_plan(recipe, roles, gpu_memory_gib=gpu_memory_gib, deepspeed=deepspeed, on_cpu=devices.on_cpu)
    if plan.errors:
        return fail("; ".join(plan.errors), "mini-r1 plan shows all of it", "recipe"), plan
    words = f"{roles.describe()}, DeepSpeed: {plan.deepspeed or 'none'}"
    if plan.warnings:
        return warn(f"{words}; {'; '.join(plan.warnings)}", ""), plan
    return ok(words), plan


def _roles(recipe: Recipe, devices: Devices, nodes: Nodes | None) -> Roles:
    given = [devices.ids] * (nodes.count if nodes else 1)
    if nodes and nodes.index > 0 and recipe.use_vllm and len(devices.ids) == 1:
        given[0] = (*devices.ids, "vLLM's")  # node 0 is another one: whether it has two is looked at there
    return assign(given, use_vllm=recipe.use_vllm, on_cpu=devices.on_cpu)


def _needs(plan: Plan | None) -> Needs | None:
    if plan is None or plan.disk is None:
        return None
    return Needs(plan.disk.total, plan.host_memory_gib or 0.0, plan.shm_gib or 0.0)


def _told_once(heavy: Sequence[Finding], light: Sequence[Finding]) -> list[Finding]:
    """One failure in three checks is still one: what the light check has told is not told again."""
    failed = {finding.check for finding in light if finding.status == "fail"}
    return [
        skip(f"see {CAUSES[finding.check]}").named(finding.check)
        if finding.status == "fail" and CAUSES.get(finding.check) in failed
        else finding
        for finding in heavy
    ]
