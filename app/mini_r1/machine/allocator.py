"""A setting of glibc's malloc for training on a CPU."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3), from glibc's malloc.h
KEPT_BYTES = 1 << 30


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
