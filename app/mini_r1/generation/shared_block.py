"""Shared memory for tensors, as one process sees it; vLLM's parent and its child both have the block mapped."""

from __future__ import annotations

import logging
import math
import mmap
import os
from collections.abc import Sequence

import torch

logger = logging.getLogger(__name__)


class SharedBlock:
    """A block of shared memory (a descriptor), mapped here, and page-locked where this process uses CUDA.

    A GPU copies page-locked memory directly; other memory goes through a buffer of the driver.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._mapped: mmap.mmap | None = None
        self._locked = 0  # address that CUDA knows; 0: none

    @property
    def size(self) -> int:
        """Bytes that are mapped."""
        return len(self._mapped) if self._mapped is not None else 0

    def reserve(self, size: int) -> None:
        """Map at least `size` bytes; the block grows as needed. Tensors of a smaller mapping stay valid."""
        if size <= self.size:
            return
        self.release()
        if os.fstat(self.descriptor).st_size < size:
            os.ftruncate(self.descriptor, size)
        self._mapped = mmap.mmap(self.descriptor, size)
        if torch.cuda.is_initialized():
            self._lock_pages()

    def tensor(self, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
        """Return a tensor of this shape in the mapped memory, `offset` bytes from its start."""
        count = math.prod(shape)
        if not count:
            return torch.empty(tuple(shape), dtype=dtype)
        return torch.frombuffer(self._mapped, dtype=dtype, count=count, offset=offset).view(tuple(shape))

    def release(self) -> None:
        """Unlock the memory; it is unmapped with the last of its tensors."""
        if self._locked:
            torch.cuda.cudart().cudaHostUnregister(self._locked)
            self._locked = 0
        self._mapped = None

    def _lock_pages(self) -> None:
        """Page-lock the mapped memory. Where the system refuses, the weights are copied all the same, only slower."""
        address = self.tensor(0, torch.uint8, [1]).data_ptr()
        error = int(torch.cuda.cudart().cudaHostRegister(address, self.size, 0))
        if not error:
            self._locked = address
            return
        logger.warning("CUDA can't lock %d bytes of shared memory (error %d): weights go slower", self.size, error)
        try:
            torch.ones(1, device="cuda")  # CUDA keeps the error for the next kernel, which fails
        except RuntimeError:
            logger.debug("CUDA's error is cleared", exc_info=True)
