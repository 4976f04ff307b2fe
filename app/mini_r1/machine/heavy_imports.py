"""Imports that take seconds (torch, TRL, DeepSpeed): announced, made faster, and with a clear error if they fail."""

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from rich.console import Console

from mini_r1.console import progress_console
from mini_r1.errors import KitError, first_line
from mini_r1.machine.provenance import versions
from mini_r1.machine.writable_home import move_caches

INSTALL = "install the locked packages: `make install` in the kit's folder, or use the image"
"""For what `make install` brings: everything but vLLM, bitsandbytes and flash-attn."""
INSTALL_GPU = "use the image, or install app/locks/gpu.txt (docs/slurm.md, Without containers): `make install` has none"
INSTALL_VLLM_CPU = "`make vllm-cpu` once, then use .venv-vllm/bin/mini-r1"
DEEPSPEED_FIX = f"if CUDA_HOME or nvcc is missing, install cuda-nvcc-12-4 and set CUDA_HOME; else {INSTALL}"


@contextmanager
def needs_extra(extra: str, *, deepspeed: bool = False, console: Console | None = None) -> Iterator[None]:
    """Import the packages of an extra of pyproject.toml inside this context, announced on the console.

    Raise KitError if a package is missing, or DeepSpeed is used and cannot be imported.
    """
    from mini_r1.machine.nvidia import PCI_ORDER  # late: it imports pynvml, and `--help` imports this module

    changes, moved = move_caches(os.environ)
    os.environ.update(changes | PCI_ORDER)  # CUDA reads it at its first use
    if moved:
        (console or progress_console()).print(moved, style="dim", markup=False)
    if console is not None:
        console.print("loading torch, transformers and TRL", style="dim")
    # TRL imports an installed DeepSpeed, which takes a second; and vLLM, which the kit runs in another process.
    for name in ("vllm",) if deepspeed else ("vllm", "deepspeed"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    try:
        # DeepSpeed logs to standard output, which --json needs.
        with redirect_stdout(sys.stderr), no_garbage_collection():
            if deepspeed:
                _import_deepspeed()
            yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("mini_r1"):
            raise
        raise KitError(f"this command needs {error.name} (the extra {extra} of pyproject.toml): {INSTALL}") from error


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Import without garbage collection, and leave what was imported out of every later one."""
    # An import makes a million objects that stay: a fifth of the time to import TRL, and .2 s in each later collection.
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def find_vllm_problem(on_cpu: bool) -> tuple[str, str] | None:
    """Return why vLLM can't be used, and what to do: it is missing, or built for another kind of device."""
    version = versions(["vllm"])["vllm"]
    fix = f"{INSTALL_VLLM_CPU if on_cpu else INSTALL_GPU}; or set use_vllm: false"
    if version is None:
        return "vLLM is not installed here", fix
    if on_cpu != version.endswith("+cpu"):
        return f"vLLM {version} here is built for {'GPUs' if on_cpu else 'a CPU'}", fix
    return None


def _import_deepspeed() -> None:
    """Import DeepSpeed before TRL does, so that its errors are not taken for TRL's."""
    # DeepSpeed runs `df` on this folder while it is imported, and df complains if it does not exist.
    with contextlib.suppress(OSError, RuntimeError):  # a home that can't be written, or is unknown
        Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "autotune").mkdir(
            parents=True, exist_ok=True
        )
    logging.disable(logging.WARNING)
    try:
        import deepspeed  # noqa: F401
    except ModuleNotFoundError:
        raise
    except Exception as error:  # ImportError mostly; its search for a CUDA compiler raises others
        raise KitError(f"DeepSpeed cannot be imported: {first_line(error)}: {DEEPSPEED_FIX}") from error
    finally:
        logging.disable(logging.NOTSET)
