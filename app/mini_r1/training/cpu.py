"""Two settings without which a CPU run takes several times as long."""

from __future__ import annotations

import ctypes
import os

import torch

from mini_r1.machine.control_groups import usable_cores
from mini_r1.recipe.builtin_models import SMALL_MODEL_THREADS

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3), from glibc's malloc.h."""
KEPT_BYTES = 1 << 30


def prepare(small_model: bool) -> None:
    """Tune this process for training on a CPU; a small model gets few threads, unless OMP_NUM_THREADS is set.

    Their number does not depend on the load: two runs on one machine must agree to the last digit.
    """
    if small_model and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(SMALL_MODEL_THREADS, usable_cores()))
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Make malloc reuse blocks of up to 1 GiB instead of returning each to the system. No effect without glibc.

    Every operator allocates its output, and glibc requests blocks above 32 MiB from the system each time: zeroing their
    pages was up to 40 % of a forward and backward pass.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
