"""`mini-r1 doctor --login`: what to know on a Slurm login node before a job waits in the queue for hours.

report = examine_login_node(path, [], script=Path("slurm/train_4xh100.sh"))

No GPU, no torch, nothing submitted. The launcher checks driver, GPUs and shared memory in the job.
"""

import os
import re
import shlex
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from mini_r1.doctor import inputs, local_storage, slurm
from mini_r1.doctor.case import Case
from mini_r1.doctor.node_checks import Report, run_check
from mini_r1.doctor.slurm import LoginNode
from mini_r1.hub.hub_access import DATA, MODEL
from mini_r1.machine.devices import Devices
from mini_r1.machine.findings import Finding, fail, ok, skip, warn, worst
from mini_r1.machine.paths import expand_user, hub_cache
from mini_r1.plan.recipe_plans import find_hardware, plan_for
from mini_r1.recipe.builtin_models import BUILTIN_MODELS
from mini_r1.recipe.fields import GENERATED
from mini_r1.recipe.keys import did_you_mean
from mini_r1.recipe.recipe_file import effective_output_dir, load_recipe

SCRIPT: Final = Path("slurm/train_4xh100.sh")
SITE_FILE: Final = "slurm/site.env"
"""Both in the kit's folder."""
RUNTIMES: Final = ("venv", "apptainer", "pyxis")
"""Values of MINI_R1_RUNTIME: how a job finds the kit on its nodes."""
PREFIXES: Final = ("SBATCH_", "MINI_R1_", "HF_")
"""Prefixes of the variables that a site file sets."""
IMAGES: Final = {"pyxis": (0, b"hsqs"), "apptainer": (32, b"SIF_MAGIC")}
"""Offset and magic of each runtime's images: squashfs (the kernel's squashfs.rst), SIF (sylabs/sif, after the line that
makes the file executable)."""
FLEETING: Final = frozenset(
    {"tmpfs", "ramfs", "devtmpfs", "overlay", "aufs", "squashfs", "fuse.fuse-overlayfs", "fuse.squashfuse"}
)
"""Filesystem types that only this machine or container has."""


def examine_login_node(
    recipe_path: Path | None,  # None leaves out what depends on a recipe
    overrides: Sequence[str] = (),
    *,
    script: Path | None = None,  # None is the kit's, for one node of four GPUs
    run_dir: Path | None = None,  # None is below MINI_R1_RUNS, else the recipe's
    environment: Mapping[str, str] = os.environ,  # with the site file's exports
    root: Path = Path("/"),  # of /proc: another one in tests
) -> Report:
    """Check a login node from the folder that jobs are submitted from: the kit's, unless MINI_R1_HOME names that.

    Raises:
        KitError: the recipe cannot be read.
    """
    # Without what `site_file` reports, so that no other check reports it again.
    given = {name: value.rstrip("\r") if name.startswith(PREFIXES) else value for name, value in environment.items()}
    if not given.get("SBATCH_PARTITION"):
        given.pop("SBATCH_PARTITION", None)
    recipe = load_recipe(recipe_path, overrides) if recipe_path else None
    if run_dir is None and given.get("MINI_R1_RUNS"):
        run_dir = Path(given["MINI_R1_RUNS"]) / (recipe_path.stem if recipe_path else "RUN")
    elif run_dir is None and recipe and recipe_path:
        run_dir = effective_output_dir(recipe, recipe_path)
    case = Case(given, Devices((), True, "a login node"), None, recipe=recipe, run_dir=run_dir, root=root)
    folder = Path.cwd()
    kit = Path(given.get("MINI_R1_HOME") or folder).absolute()
    login = LoginNode(environment, folder, kit, script or (SCRIPT if kit == folder else kit / SCRIPT), case)
    if recipe is not None:
        nodes, gpus = login.requested
        hardware = find_hardware(given, gpus=gpus, nodes=nodes, gpu_memory_gib=None, recipe=recipe_path)
        login.plan = plan_for(recipe, hardware)
    findings: dict[str, Finding] = {}
    for name, check in CHECKS.items():
        skipped = name in NEED_PARTITION and findings["partition"].status == "fail"
        findings[name] = (skip("see partition") if skipped else run_check(check, login)).named(name)
    subject = str(recipe_path) if recipe_path else None
    return Report(socket.gethostname(), case.devices.source, subject, tuple(findings.values()))


# --- the site file ---


def site_file(login: LoginNode) -> Finding:
    """The site file was read into this shell, and what it set can be used."""
    file = login.kit / SITE_FILE
    name = SITE_FILE if login.kit == login.folder else str(file)
    problems = list(_site_problems(login, file, name))
    if problems:
        return worst(problems)
    names = sorted(variable for variable in login.environment if variable.startswith(PREFIXES))
    return ok(f"{name}{'' if file.is_file() else ' is not here'}; set in this shell: {', '.join(names)}")


def _site_problems(login: LoginNode, file: Path, name: str) -> Iterator[Finding]:
    ending = [variable for variable, value in login.shell.items() if variable.startswith(PREFIXES) and "\r" in value]
    if ending or (file.is_file() and b"\r" in file.read_bytes()):
        in_shell = f", and {', '.join(sorted(ending))} in this shell end in one" if ending else ""
        fix = f"`sed -i 's/\\r$//' {name}`, then `source {name}`"
        yield fail(f"{name} has Windows line ends (CRLF){in_shell}", fix, "recipe")
    if login.shell.get("SBATCH_PARTITION", "any").rstrip("\r") == "":
        fix = "`unset SBATCH_PARTITION`, and take its line out of the site file"
        yield fail("SBATCH_PARTITION is set and empty: sbatch takes that for a partition without a name", fix, "recipe")
    for variable, value in sorted(login.environment.items()):
        if variable.startswith(PREFIXES) and any(part.startswith("~") for part in value.split()):
            yield fail(f"{variable}: the shell does not expand a ~ within quotes", 'write "$HOME/..."', "recipe")
    runtime = login.environment.get("MINI_R1_RUNTIME", "")
    if runtime in RUNTIMES:
        return
    detail, fix = f"MINI_R1_RUNTIME={runtime}{did_you_mean(runtime, RUNTIMES)}", f"set it to {', '.join(RUNTIMES)}"
    if not runtime and file.is_file():
        detail = f"MINI_R1_RUNTIME is not set: {name} was not read in this shell, or does not set it"
    elif not runtime:
        detail, fix = "MINI_R1_RUNTIME is not set: there is no site file yet", f"`cp {name}.example {name}`, edit it"
    yield fail(detail, f"{fix}, then `source {name}`", "recipe")


# --- what jobs run in ---


def image(login: LoginNode) -> Finding:
    """The image is here, of the runtime's kind and on a shared filesystem; or the virtual environment is here."""
    runtime, name = login.environment.get("MINI_R1_RUNTIME", ""), login.environment.get("MINI_R1_IMAGE", "")
    if runtime not in RUNTIMES:
        return skip("see site file")
    if runtime == "venv":
        return _check_venv(login)
    if not name:
        return fail(f"{runtime} needs MINI_R1_IMAGE", f"set it in the site file; {_make(runtime)} makes one", "recipe")
    is_file = name.startswith(("/", "./")) or not re.search("[#:]", name)
    if is_file or (runtime == "apptainer" and "://" not in name):
        return _check_image_file(login, runtime, name)
    reference = name.removeprefix("docker://")
    if runtime == "pyxis" and "#" not in reference and re.match(r"[^/]*[.:][^/]*/", reference):
        better = f"MINI_R1_IMAGE={reference.replace('/', '#', 1)}"
        detail = f"{name}: enroot would look for it at Docker Hub, because no # separates registry and name"
        return fail(detail, better, "recipe")
    fix = f"{_make(runtime, name)} once, in a shared folder, and set MINI_R1_IMAGE to that file"
    return warn(f"every job pulls {name}, and compute nodes often have no network", fix)


def _check_venv(login: LoginNode) -> Finding:
    folder = Path(login.environment.get("MINI_R1_VENV") or login.kit / ".venv")
    python = login.folder / folder / "bin/python"
    if not os.access(python, os.X_OK):
        target = f": it links to {os.readlink(python)}, which is not here" if python.is_symlink() else ""
        fix = "`make install` in the kit's folder, or set MINI_R1_VENV in the site file"
        return fail(f"no interpreter at {folder}/bin/python{target}", fix, "recipe")
    return check_shared(login, folder, "virtual environment")


def _check_image_file(login: LoginNode, runtime: str, name: str) -> Finding:
    path = login.folder / name
    if path.is_dir() and runtime == "apptainer":
        return check_shared(login, Path(name), "sandbox")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        fix = f"correct MINI_R1_IMAGE; {_make(runtime)} makes one"
        return fail(f"image {name}: {error.strerror}", fix, "recipe")
    kinds = [kind for kind, (offset, magic) in IMAGES.items() if head[offset:].startswith(magic)]
    if kinds != [runtime]:
        found = f"an image for {kinds[0]}" if kinds else "neither a SIF file nor a squashfs image"
        fix = f"make it again: {_make(runtime)}"
        return fail(f"image {name} is {found}, and MINI_R1_RUNTIME is {runtime}", fix, "recipe")
    return check_shared(login, Path(name), "image")


def _make(runtime: str, name: str = "") -> str:
    """Return the command that makes a file of an image in a registry."""
    if runtime == "apptainer":
        return f"`apptainer build mini-r1.sif {shlex.quote(name or 'docker://REGISTRY/NAME:TAG')}`"
    reference = name if name.startswith(("docker://", "dockerd://")) else f"docker://{name or 'REGISTRY#NAME:TAG'}"
    return f"`enroot import -o mini-r1.sqsh {shlex.quote(reference)}`"


# --- what the compute nodes must see as well ---


def check_shared(login: LoginNode, path: Path, what: str) -> Finding:
    """Check by the filesystem's type whether the compute nodes can see the same path."""
    kind = local_storage.filesystem(login.case, login.folder / path)
    if kind in FLEETING:
        fix = "use a folder that the compute nodes share (often $HOME, /scratch or /work)"
        return fail(f"{what} {path} is on {kind}, which no other node sees", fix, "recipe")
    if local_storage.is_network(kind):
        return ok(f"{what} {path} ({kind})")
    fix = "make sure that the compute nodes see the same folder: `srun ls -d FOLDER`"
    return warn(f"{what} {path} is on {kind}, a local disk", fix)


def model(login: LoginNode) -> Finding:
    """The model is whole in its folder or in a shared cache, where a job without a network finds it."""
    return _check_input(login, inputs.model, MODEL.key)


def data(login: LoginNode) -> Finding:
    """The data is in its file or in a shared cache, where a job without a network finds it."""
    return _check_input(login, inputs.data, DATA.key)


def _check_input(login: LoginNode, check: Callable[[Case], Finding], key: str) -> Finding:
    """Check as if offline, unless the site file sets HF_HUB_OFFLINE."""
    chosen = login.environment.get("HF_HUB_OFFLINE")
    found = check(replace(login.case, environment={**login.environment, "HF_HUB_OFFLINE": chosen or "1"}))
    if found.status == "fail" and not chosen and "HF_HUB_OFFLINE" in found.detail:
        detail = f"{found.detail} for this check, because compute nodes often have no network"
        fix = f"{found.fix}; if they have one: `export HF_HUB_OFFLINE=0` in the site file"
        return replace(found, detail=detail, fix=fix)
    name = getattr(login.case.recipe, key, GENERATED)
    if found.status != "ok" or name in (GENERATED, *BUILTIN_MODELS):
        return found
    path = expand_user(name, login.environment)
    place = path if path.exists() else hub_cache(login.environment)
    return worst([found, check_shared(login, place, "path" if place is path else "the hub's cache")])


def run_directory(login: LoginNode) -> Finding:
    """The run directory can be written, and the compute nodes see the same."""
    path = login.case.run_dir
    if path is None:
        return skip("no recipe, no MINI_R1_RUNS and no --run-dir")
    written = local_storage.run_directory(login.case)
    return written if written.status == "fail" else worst([written, check_shared(login, path, "run directory")])


CHECKS: Final[dict[str, Callable[[LoginNode], Finding]]] = {
    "site file": site_file,
    "partition": slurm.partition,
    "submission": slurm.submission,
    "time to save": slurm.time_to_save,
    "image": image,
    "model": model,
    "data": data,
    "run directory": run_directory,
}
"""Name and function of each check, in the order of the table; its docstring says what it looks at."""
NEED_PARTITION: Final = ("submission", "time to save")
"""Checks that say nothing new where the check of the partition failed."""
