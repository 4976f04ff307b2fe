"""Checks of the installation: versions against the pins, and settings that the pinned versions do not support."""

import importlib.metadata
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mini_r1.console import printable
from mini_r1.doctor.case import Case
from mini_r1.errors import KitError
from mini_r1.hub.upload import require_token
from mini_r1.machine.findings import Finding, fail, ok, skip, warn, worst
from mini_r1.machine.heavy_imports import INSTALL, INSTALL_GPU, find_vllm_problem
from mini_r1.machine.provenance import versions as installed_versions
from mini_r1.machine.trackers import check_trackers
from mini_r1.recipe.deepspeed_file import find_deepspeed

PATCHED = ("trl", "transformers", "vllm", "deepspeed")
"""Packages that the kit patches in exactly the pinned version; of others a later one may work."""
_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;,]+) *(?:;(?P<marker>.*))?$")


def versions(case: Case) -> Finding:
    """The installed packages are the pinned versions."""
    needed = _needed_packages(case)
    missing, other = [], {}
    for name, pinned in read_pins().items():
        installed = _installed(name)
        if installed is None:
            missing += [name] if name in needed and name != "vllm" else []  # vLLM has its own check
        elif installed != pinned and (name in needed or not case.recipe):
            other[name] = f"{name} {installed} instead of {pinned}"
    if missing:
        fix = INSTALL_GPU if "bitsandbytes" in missing else INSTALL
        return fail(f"not installed: {', '.join(missing)}", fix, "recipe")
    found = ", ".join(other.values())
    if other.keys() & set(PATCHED):
        fix = "install the locked packages: the trainer patches exactly the pinned versions"
        return fail(found, fix, "recipe")
    if other:
        return warn(found, "install the locked packages, unless you know that these work together")
    return ok(f"{len(needed)} packages as pinned" if needed else "every installed package that is pinned is as pinned")


def read_pins() -> dict[str, str]:
    """Return the exact pins of training and of GPU nodes, from the installed package's metadata."""
    found: dict[str, str] = {}
    for requirement in importlib.metadata.requires("mini-r1") or []:
        match = _PIN.match(requirement)
        if match and re.search(r"""extra == ["'](?:train|gpu)["']""", match["marker"] or ""):
            found[match["name"].lower()] = match["version"]
    return found


def _needed_packages(case: Case) -> set[str]:
    """Return the pinned packages that the recipe needs here."""
    if case.recipe is None:
        return set()
    optional = {
        "vllm": case.recipe.use_vllm,
        "bitsandbytes": case.recipe.load_in_4bit or case.recipe.load_in_8bit,
        "deepspeed": case.deepspeed,
    }
    names = {"torch", "transformers", "trl", "accelerate", "datasets", "peft"}
    return names | {name for name, needed in optional.items() if needed}


def _installed(name: str) -> str | None:
    """Return an installed version without its local label: 2.5.1+cu124 is 2.5.1."""
    version = installed_versions([name])[name]
    return version and version.partition("+")[0]


def vllm_engine(case: Case) -> Finding:
    """vLLM is there and built for this node's devices; and not its V1 engine, which in 0.7.0 takes no weights."""
    if not case.recipe or not case.recipe.use_vllm:
        return skip("no vLLM in this recipe" if case.recipe else "no recipe")
    problem = find_vllm_problem(case.devices.on_cpu)
    if problem is not None:
        return fail(*problem, "recipe")
    value = case.environment.get("VLLM_USE_V1", "")
    if value not in ("", "0"):
        detail = f"VLLM_USE_V1={printable(value)}: the kit needs vLLM 0.7.0's V0 engine and unsets this"
        return warn(detail, "unset VLLM_USE_V1")
    return ok("V0")


def nvcc(case: Case) -> Finding:
    """CUDA's compiler is where DeepSpeed looks for it: on a GPU node it runs nvcc when it is imported."""
    if not case.uses_gpus or _installed("deepspeed") is None:
        return skip("not needed: " + ("DeepSpeed is not installed" if case.uses_gpus else "no GPU in use"))
    place = f"{_cuda_home(case.environment)}/bin/nvcc"
    if Path(place).is_file():
        return ok(place)
    found = f"no {place}: DeepSpeed 0.15.4 runs it when it is imported on a node with GPUs"
    fix = "install cuda-nvcc-12-4, set CUDA_HOME to a CUDA toolkit, or use the image"
    return fail(found, fix, "recipe") if case.deepspeed else warn(found, fix)


def _cuda_home(environment: Mapping[str, str]) -> str:
    """Return the folder of the CUDA toolkit as torch 2.5.1 finds it (`utils.cpp_extension._find_cuda_home`)."""
    home = environment.get("CUDA_HOME") or environment.get("CUDA_PATH")
    on_path = shutil.which("nvcc", path=environment.get("PATH"))
    return home or (str(Path(on_path).parent.parent) if on_path else "/usr/local/cuda")


def deepspeed(case: Case) -> Finding:
    """The DeepSpeed configuration is there and one that the trainer can use."""
    if case.deepspeed is None:
        return skip("none is used")
    found = find_deepspeed(case.deepspeed)
    offloaded = found.offloads("optimizer") or found.offloads("param")
    return ok(f"{found.name}: ZeRO stage {found.stage}{', offloaded' if offloaded else ''}")


def trackers(case: Case) -> Finding:
    """Every tracker of report_to is installed and, where it reports from this node, has a key and a mode."""
    if case.recipe is None:
        return skip("no recipe")
    found = check_trackers(case.recipe.report_to, case.environment, needs_key=case.first_node)
    return worst([replace(one, detail=f"{one.check}: {one.detail}") for one in found] or [ok("TensorBoard alone")])


def hub_token(case: Case) -> Finding:
    """Check for a token and a network if the recipe publishes. The token is never shown."""
    if not case.recipe or not case.recipe.push_to_hub:
        return skip("nothing is published")
    try:
        require_token()
    except KitError as error:
        fix = "or set push_to_hub: false, and `mini-r1 publish` the run afterwards"
        return fail(f"push_to_hub is true, and {error.message}", fix, "recipe")
    return ok("there is one")
