"""`doctor`, `health` and `bundle`: check a node, a running job, and collect what a bug report needs."""

import json
import os
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table
from typer import Argument, BadParameter, Option

from mini_r1.cli.command_tools import file_errors, find_recipe_for_other_node, progress_printer
from mini_r1.cli.options import (
    MOST,
    PATH,
    DeepSpeed,
    GpuMemory,
    Gpus,
    Json,
    RunDirOption,
    RunPath,
    RunType,
    Set,
    VllmDevices,
)
from mini_r1.console import printable
from mini_r1.errors import ExitCode, KitError
from mini_r1.machine.findings import exit_code
from mini_r1.machine.nodes import find_nodes
from mini_r1.machine.writable_home import move_caches
from mini_r1.run.health import check_health
from mini_r1.run.run_dir import RUNS, RunDir


def doctor(
    recipe: Annotated[
        str | None,
        Argument(click_type=PATH, help="Recipe file or shipped name; default: check the node alone."),
    ] = None,
    overrides: Set = None,
    run_dir: RunDirOption = None,
    gpus: Gpus = None,
    deepspeed: DeepSpeed = "auto",
    gpu_memory: GpuMemory = None,
    vllm_devices: VllmDevices = "1",
    smoke: Annotated[bool, Option("--smoke", help="Train a tiny model through the whole path. Takes minutes.")] = False,
    login: Annotated[bool, Option("--login", help="Check a Slurm login node before sbatch. Needs no GPU.")] = False,
    show_all: Annotated[bool, Option("--all", help="Show the checks that were skipped, too.")] = False,
    script: Annotated[Path | None, Option(help="With --login: batch script; default: slurm/train_4xh100.sh.")] = None,
    as_json: Json = False,
) -> ExitCode:
    """Check this node, and what a recipe needs: ok, warn or fail, and the fix.

    The last line counts them. Exits 78 if the recipe or the installation is wrong, 150 if the node is.

    --smoke tests workers, collectives, vLLM's process, weight sync, a save, a
    killed worker and a resume on these devices. On several nodes, start it on
    each of them with a shared --run-dir.

    --login checks Slurm, partition, account, batch script, runtime, image,
    model, data and run directory with the settings of the site file
    (`source slurm/site.env`). Nothing is submitted.

    Examples:
      mini-r1 doctor
      mini-r1 doctor my.yaml --run-dir runs/first
      mini-r1 doctor --smoke
      MINI_R1_ACCELERATOR=cpu mini-r1 doctor --smoke --gpus 3 --vllm-devices 2
      mini-r1 doctor my.yaml --login
    """
    if script is not None and not login:
        raise BadParameter("--script needs --login")
    given = smoke or gpus is not None or gpu_memory is not None or (deepspeed, vllm_devices) != ("auto", "1")
    if login and given:
        raise BadParameter(
            "--login looks at no device: leave out --smoke, --gpus, --gpu-memory, --deepspeed and --vllm-devices (they "
            "are for a node with GPUs)"
        )
    if smoke and show_all:
        raise BadParameter("--smoke shows every part: leave out --all")
    if smoke and (recipe is not None or overrides):
        raise BadParameter("the smoke test has its own recipe: leave out RECIPE and --set")
    if smoke:
        return _smoke(run_dir, gpus, vllm_devices, as_json=as_json)
    if recipe is None and overrides:
        raise KitError("--set changes a recipe: name one")
    if login:
        from mini_r1.doctor.login_checks import examine_login_node

        path = find_recipe_for_other_node(recipe) if recipe else None
        report = examine_login_node(path, overrides or [], script=script, run_dir=run_dir)
    else:
        from mini_r1.doctor.node_checks import examine_node
        from mini_r1.machine.devices import given_devices
        from mini_r1.recipe.recipe_file import find_recipe, load_recipe

        progress = progress_printer()
        try:
            nodes = find_nodes(os.environ)
        except KitError as error:  # in a batch script's own shell, for one: the node can be checked all the same
            progress(f"warning: {error.message}; checking this node alone")
            nodes = None
        path = find_recipe(recipe) if recipe else None
        if path is not None:
            load_recipe(path, overrides or [])  # its errors come before what takes time
            progress("loading torch, the tokenizer and the data: about 20 s")
        report = examine_node(
            path, overrides or [], devices=given_devices(os.environ, gpus), nodes=nodes, run_dir=run_dir,
            deepspeed=deepspeed, gpu_memory_gib=gpu_memory, vllm_devices=vllm_devices,
        )  # fmt: skip
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        console = Console(highlight=False)
        console.print(report.table(with_skipped=show_all))
        console.print(report.summary + ("" if show_all else " (--all shows them)"), soft_wrap=True)
    return report.exit_code


def _smoke(run_dir: Path | None, gpus: int | None, vllm_devices: str, *, as_json: bool) -> ExitCode:
    """Print one line for each part of the smoke test as soon as its result is known."""
    from mini_r1.doctor.smoke import SmokeTest, choose_folder
    from mini_r1.machine.devices import given_devices

    devices, progress = given_devices(os.environ, gpus), progress_printer("dim")
    try:
        nodes = find_nodes(os.environ)
    except KitError as error:
        nodes = find_nodes(os.environ, count=1)
        progress(f"warning: {error.message}; testing this node alone")
    test = SmokeTest(Path(), devices, nodes, gpus, vllm_devices, os.environ, progress)
    test.refuse_roles()
    folder = choose_folder(run_dir, nodes)
    changes, moved = move_caches(os.environ)
    os.environ.update(changes)
    if moved:
        progress(moved)
    findings = []
    for finding in replace(test, folder=folder).findings():
        findings.append(finding)
        if not as_json:
            print(f"{finding.status:4}  {finding.check}: {printable(finding.detail)}", flush=True)
            if finding.fix:
                print(f"      → {printable(finding.fix)}", flush=True)
    code = exit_code(findings)
    if as_json:
        values = {"devices": devices.source, "exit_code": int(code), "findings": [*map(asdict, findings)]}
        print(json.dumps(values))
    if code == ExitCode.FINISHED and run_dir is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        progress_printer()(f"files of the smoke test: {folder}")
    return code


def health(
    path: Annotated[Path, Argument(click_type=RunType(), help="Run, or a folder of runs.")] = RUNS,
    as_json: Json = False,
) -> ExitCode:
    """Check that a run makes progress: exit 0 if it does or is finished, else 1.

    For a container's health check. In a folder, the run with the newest
    heartbeat counts. Needs no torch.

    Examples:
      mini-r1 health
      mini-r1 health runs/first --json
    """
    found = check_health(path, time.time())
    print(json.dumps(found.to_dict()) if as_json else found.sentence)
    return ExitCode.FINISHED if found.healthy else ExitCode.FAILED  # 0 or 1, as Docker wants it


def bundle(
    run: RunPath,
    out: Annotated[Path | None, Option(help="Archive to write; default: <RUN's name>-bundle.tar.gz.")] = None,
    completions: Annotated[int, Option(min=0, max=MOST, help="Number of the last completions to include.")] = 0,
    as_json: Json = False,
) -> None:
    """Make a support bundle: logs, stacks, metrics, versions and node facts.

    It holds no weights, and known secrets are removed.

    Examples:
      mini-r1 bundle runs/first --out first.tar.gz
    """
    from mini_r1.doctor.bundle import bundle as make_bundle

    target, run_directory = out or Path(f"{run.absolute().name}-bundle.tar.gz"), RunDir(run)
    progress = progress_printer()
    if run_directory.is_starting():
        progress(check_health(run, time.time()).sentence)
    with file_errors():
        files = make_bundle(run_directory, target, completions=completions, environment=os.environ)
    written = target.stat().st_size
    if as_json:
        print(json.dumps({"path": str(target), "bytes": written, "files": files}))
        return
    table = Table("file", "bytes", title=f"{target}: {written:,} bytes", title_justify="left")
    for name, size in files.items():
        table.add_row(name, f"{size:,}")
    Console(highlight=False, markup=False).print(table)
    progress("known secrets are removed; host names, users and paths are not: read the bundle before you send it")
