"""How much memory tensors take: PyTorch's CUDA allocator, and a stand-in for it on a CPU."""

from __future__ import annotations

import os
import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CudaMeter:
    """The allocator's own figures, in bytes; none of them waits for the GPU."""

    name = "PyTorch's CUDA allocator"

    def allocated(self) -> int:
        """Now."""
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """Most since `reset`."""
        return torch.cuda.max_memory_allocated()

    def reset(self) -> None:
        """The peak begins anew. `max_memory_reserved` would too: it is read and kept before."""
        self._reserved = max(getattr(self, "_reserved", 0), torch.cuda.max_memory_reserved())
        torch.cuda.reset_peak_memory_stats()

    def reserved(self) -> int:
        """Most that the allocator ever took from the driver."""
        self.reset()
        return self._reserved

    def context(self) -> int | None:
        """What this process holds besides: the CUDA context, libraries' own memory. None if unknown."""
        import pynvml

        pynvml.nvmlInit()
        seen = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(0))
        used = next((each.usedGpuMemory for each in seen if each.pid == os.getpid()), None)
        if used is None and len(seen) < 2:  # in a container pids are others: this process is alone
            free, total = torch.cuda.mem_get_info()
            used = total - free
        return None if used is None else used - torch.cuda.memory_reserved()


class StandIn(TorchDispatchMode):
    """Storages that some operation has seen and that are still there. Memory inside an operation is not seen.

    A stand-in: it shows on a CPU that the bench works. Used as a context manager.
    """

    name = "a stand-in that counts tensors on the CPU"

    def __init__(self) -> None:
        super().__init__()
        self._now = self._peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, result)):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = weakref.finalize(storage, self._gone, key, storage.nbytes())
        self._now += storage.nbytes()
        self._peak = max(self._peak, self._now)

    def _gone(self, key: int, size: int) -> None:
        del self._known[key]
        self._now -= size

    def allocated(self) -> int:
        """Now."""
        return self._now

    def peak(self) -> int:
        """Most since `reset`."""
        return self._peak

    def reset(self) -> None:
        """The peak begins anew."""
        self._peak = self._now

    def reserved(self) -> int:
        """Nothing is reserved."""
        return 0

    def context(self) -> int | None:
        """There is none."""
        return 0
