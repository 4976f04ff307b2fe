"""How a job finds the kit on its nodes: a virtual environment, or an image for apptainer or pyxis.

Nothing is pulled, built or started in a container here.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Final

from mini_r1 import __version__
from mini_r1.console import shown_bytes
from mini_r1.doctor.shared_storage import shared
from mini_r1.doctor.site_file import RUNTIMES, Site
from mini_r1.findings import Finding, fail, ok, skip, warn, worst
from mini_r1.recipe.keys import did_you_mean

START_S: Final = 60.0
"""Seconds for an interpreter to start from a filesystem that is busy or has not been read for long."""
TORCH: Final = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
SQUASHFS: Final = b"hsqs"
"""How a squashfs image begins (the kernel's Documentation/filesystems/squashfs.rst), which enroot and pyxis take."""
SIF: Final = b"SIF_MAGIC"
SIF_AT: Final = 32
"""Bytes of the line that lets a SIF file be executed, before its magic (sylabs/sif, pkg/sif, the global header)."""
_NOT_LOADED: Final = 127
"""Of the dynamic loader, where a shared library is missing, and of shells, where a program is."""


def runtime(site: Site) -> Finding:
    """What MINI_R1_RUNTIME names is here and can start the kit."""
    name = site.environment.get("MINI_R1_RUNTIME", "")
    if not name:
        return skip("see site file")
    checks = {"venv": _venv, "apptainer": _apptainer, "pyxis": _pyxis}
    if name not in checks:
        return fail(
            f"MINI_R1_RUNTIME={name}{did_you_mean(name, RUNTIMES)}",
            f"set it in the site file to one of {', '.join(RUNTIMES)}",
            "recipe",
        )
    found = checks[name](site)
    if found.status == "fail" or not (site.folder / site.script).is_file():
        return found
    folders = dict.fromkeys((site.kit, site.folder))
    return worst([found, *(shared(site, folder, "the folder") for folder in folders)])


def _venv(site: Site) -> Finding:
    default = Path(".venv") if site.kit == site.folder else site.kit / ".venv"
    folder = Path(site.environment.get("MINI_R1_VENV") or default)
    python = site.folder / folder / "bin" / "python"
    there = python.exists()
    if not there or not os.access(python, os.X_OK):
        gone = f": it points to {os.readlink(python)}, which is not here" if python.is_symlink() and not there else ""
        return fail(
            f"no interpreter at {folder}/bin/python{gone}",
            "make install in the kit's folder, or set MINI_R1_VENV in the site file",
            "recipe",
        )
    answer = site.ask(str(python), "-m", "mini_r1", "version", timeout_s=START_S)
    modules = site.environment.get("MINI_R1_MODULES")
    if answer.code == _NOT_LOADED and modules:
        return warn(
            f"{folder} does not start here ({answer.words}), where the modules that jobs load need not be loaded",
            f"module load {modules}, and ask again",
        )
    if answer.code is None:
        return fail(f"{folder}: {answer.words}", "is its filesystem in order?", "node")
    if answer.code != 0:
        return fail(
            f"the kit does not start from {folder}: {answer.words}", "make install in the kit's folder", "recipe"
        )  # fmt: skip
    if site.ask(str(python), "-c", TORCH, timeout_s=START_S).code == 1:
        return fail(
            f"{folder} has the kit's core only, without torch",
            "make install in the kit's folder, or pip install 'mini-r1[gpu]' there",
            "recipe",
        )
    found = shared(site, folder, "virtual environment")
    version = answer.out.strip()
    if version != __version__ and found.status != "fail":
        return warn(
            f"jobs run version {version} from {folder}, and this is {__version__}",
            f"{shlex.quote(f'{folder}/bin/mini-r1')} doctor --login, or update one of them",
        )
    base = os.path.realpath(python)
    return worst([found, ok(f"version {version}, with {base}, which every node must have")])


def _apptainer(site: Site) -> Finding:
    for name in ("apptainer", "singularity"):
        if site.program(name):
            answer = site.ask(name, "--version")
            if answer.code == 0:
                return ok(answer.words)
            return fail(f"{name} is here and does not start: {answer.words}", "ask the administrator", "node")
    modules = site.environment.get("MINI_R1_MODULES")
    if modules:
        return warn(
            f"neither apptainer nor singularity is on the PATH here; jobs load {modules}, which may bring it",
            f"module load {modules}, and ask again",
        )
    return fail(
        "neither apptainer nor singularity is on the PATH",
        "name its module in MINI_R1_MODULES, or set MINI_R1_RUNTIME to pyxis or venv",
        "recipe",
    )


def _pyxis(site: Site) -> Finding:
    if site.program("srun") is None:
        return skip("see scheduler")
    answer = site.ask("srun", "--help")
    if "--container-image" in answer.out:
        return ok("srun knows --container-image")
    if answer.code != 0:
        return fail(f"srun --help: {answer.words}", "ask the cluster's administrator", "node")
    return fail(
        "pyxis is not installed in this Slurm: srun does not know --container-image",
        "set MINI_R1_RUNTIME to apptainer or venv, or ask the administrator for pyxis",
        "recipe",
    )


def image(site: Site) -> Finding:
    """The image is here and of the runtime's kind; or it is a name in a registry, which each job asks."""
    if site.runtime is None:
        return skip("see runtime")
    if site.runtime == "venv":
        return skip("a virtual environment needs none")
    name = site.environment.get("MINI_R1_IMAGE", "")
    if not name:
        return fail(f"{site.runtime} needs MINI_R1_IMAGE", f"set it in the site file: {_make(site)}", "recipe")
    if site.runtime == "apptainer":
        return _from_registry(site, name) if "://" in name else _file(site, name)
    # what the batch scripts take for a file gets its full path: pyxis looks for one without a slash in a registry
    if name.startswith(("/", "./")) or not re.search("[#:]", name):
        return _file(site, name)
    reference = name.removeprefix("docker://")
    registry = re.match(r"[^/#]*[.:][^/#]*/", reference)
    if registry and "#" not in reference:
        better = reference.replace("/", "#", 1)
        return fail(
            f"{name}: enroot would look for it at Docker Hub, because no # parts registry and name",
            f"MINI_R1_IMAGE={better}",
            "recipe",
        )
    return _from_registry(site, name)


def _make(site: Site, name: str = "") -> str:
    """The command that makes a file of an image in a registry."""
    if site.runtime == "apptainer":
        return f"apptainer build mini-r1.sif {shlex.quote(name or 'docker://REGISTRY/NAME:TAG')}"
    reference = name if name.startswith(("docker://", "dockerd://")) else f"docker://{name or 'REGISTRY#NAME:TAG'}"
    return f"enroot import -o mini-r1.sqsh {shlex.quote(reference)}"


def _from_registry(site: Site, name: str) -> Finding:
    return warn(
        f"every job pulls {name}, and compute nodes often have no network",
        f"once, in a shared folder: {_make(site, name)}; then MINI_R1_IMAGE is that file",
    )


def _file(site: Site, name: str) -> Finding:
    path = site.folder / name
    if path.is_dir():
        return _sandbox(site, name)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(SIF_AT + len(SIF))
    except OSError as error:
        return fail(f"image {name}: {error.strerror}", f"correct MINI_R1_IMAGE, or make it: {_make(site)}", "recipe")
    kind = "apptainer" if head[SIF_AT:] == SIF else "pyxis" if head.startswith(SQUASHFS) else None
    if kind is None:
        what = "is empty" if size == 0 else "is neither a SIF file nor a squashfs image"
        return fail(f"image {name} {what}", f"make it again: {_make(site)}", "recipe")
    if kind != site.runtime:
        return fail(
            f"image {name} is of {kind}'s kind, and MINI_R1_RUNTIME is {site.runtime}",
            f"set MINI_R1_RUNTIME={kind}, or make one: {_make(site)}",
            "recipe",
        )
    return worst([shared(site, Path(name), f"image of {shown_bytes(size)}")])


def _sandbox(site: Site, name: str) -> Finding:
    """A container's root as a folder, which apptainer takes as well."""
    if site.runtime == "pyxis":
        return fail(f"image {name} is a folder, and pyxis takes a squashfs file", f"make one: {_make(site)}", "recipe")
    if not any((site.folder / name / folder).is_dir() for folder in (".singularity.d", "usr", "bin")):
        return fail(f"image {name} is a folder without a container's root", f"make one: {_make(site)}", "recipe")
    return shared(site, Path(name), "sandbox")
