"""`mini-r1 doctor --login`: what a Slurm login node can tell before a job waits in the queue for hours.

report = examine(path, [], script=Path("slurm/train_4xh100.sh"), environment=os.environ)

No GPU, no torch, nothing submitted. What only a compute node knows (driver, GPUs, shared memory) the launcher looks at
in the job.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from mini_r1.doctor import container_runtime, grace_times, shared_storage, site_file, slurm
from mini_r1.doctor.case import Case
from mini_r1.doctor.node_checks import Report, looked
from mini_r1.doctor.site_file import Site
from mini_r1.findings import Finding, skip
from mini_r1.machine.devices import Devices
from mini_r1.plan.planner import Plan
from mini_r1.plan.recipe_plans import find_hardware, plan_for
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import effective_output_dir, load_recipe

SCRIPT: Final = Path("slurm/train_4xh100.sh")
"""In the kit's folder."""
CHECKS: Final[dict[str, Callable[[Site], Finding]]] = {
    "site file": site_file.site_file,
    "scheduler": slurm.scheduler,
    "partition": slurm.partition,
    "submission": slurm.submission,
    "time to save": grace_times.time_to_save,
    "runtime": container_runtime.runtime,
    "image": container_runtime.image,
    "mounts": site_file.mounts,
    "model": shared_storage.model,
    "data": shared_storage.data,
    "cache": shared_storage.cache,
    "run directory": shared_storage.run_directory,
}
"""In the order of the table. docs/doctor.md says of each what it looks at."""
TOLD_BY: Final = {
    "partition": ("scheduler",),
    "submission": ("scheduler", "partition"),
    "time to save": ("scheduler", "partition"),
}
"""One fault is told, and a silent controller waited for, once: what is not looked at after another check's failure."""


def examine(
    recipe_path: Path | None,
    overrides: Sequence[str] = (),
    *,
    script: Path | None = None,
    run_dir: Path | None = None,
    environment: Mapping[str, str] | None = None,
    root: Path = Path("/"),
) -> Report:
    """Look at a login node from the folder that jobs are submitted from, the kit's own unless MINI_R1_HOME names that.

    Args:
        recipe_path: what is to be trained; None leaves out what depends on it.
        overrides: of --set.
        script: the batch script that is to be queued; None is the kit's for one node of four GPUs.
        run_dir: None is below MINI_R1_RUNS, else the recipe's own.
        environment: of the shell, the site file read; None is `os.environ`.
        root: of /proc: another one in tests.

    Raises:
        KitError: the recipe cannot be read.
    """
    raw = os.environ if environment is None else environment
    given = site_file.mended(raw)
    recipe = load_recipe(recipe_path, overrides) if recipe_path else None
    case = Case(given, Devices((), True, "a login node"), None, recipe=recipe, root=root)
    case = replace(case, run_dir=run_dir or _run_dir(given, recipe, recipe_path))
    folder = Path.cwd()
    kit = Path(given.get("MINI_R1_HOME") or folder).absolute()
    login = Site(given, folder, kit, script or (SCRIPT if kit == folder else kit / SCRIPT), case, raw)
    if recipe is not None and recipe_path is not None:
        login = replace(login, plan=_plan(login, recipe, recipe_path))
    findings: dict[str, Finding] = {}
    for name, check in CHECKS.items():
        cause = next((other for other in TOLD_BY.get(name, ()) if findings[other].status == "fail"), None)
        findings[name] = (skip(f"see {cause}") if cause else looked(check, login)).named(name)
    return Report(
        socket.gethostname(), "a login node", None if recipe_path is None else str(recipe_path), (*findings.values(),)
    )


def _plan(site: Site, recipe: Recipe, recipe_path: Path) -> Plan:
    """The recipe on the nodes and GPUs that the batch script asks for."""
    nodes, gpus = slurm.wanted(site)
    return plan_for(
        recipe, find_hardware(site.environment, gpus=gpus, nodes=nodes, gpu_memory_gib=None, recipe=recipe_path)
    )


def _run_dir(environment: Mapping[str, str], recipe: Recipe | None, recipe_path: Path | None) -> Path | None:
    """Where the batch scripts put the run, or any run where there is no recipe."""
    runs = environment.get("MINI_R1_RUNS")
    if recipe is None or recipe_path is None:
        return Path(runs) / "RUN" if runs else None
    return Path(runs) / recipe_path.stem if runs else effective_output_dir(recipe, recipe_path)
