"""DeepSpeed's settings for these workers, and a patch for gloo."""

from __future__ import annotations

import os
from typing import Any


def prepare(*, on_cpu: bool) -> None:
    """Prepare a process before its first DeepSpeed configuration; DeepSpeed's messages go to the rank's log.

    On a CPU, over gloo, DeepSpeed would compile an all-reduce at the first step and count NUMA nodes with numactl:
    neither a compiler nor numactl has to be installed.
    """
    import deepspeed  # late: it is installed on Linux only, and slow to import

    for handler in list(deepspeed.utils.logger.handlers):  # to the standard output
        deepspeed.utils.logger.removeHandler(handler)
    deepspeed.utils.logger.propagate = True
    if not on_cpu:
        return
    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    wait_for_every_gather()


def wait_for_every_gather() -> None:
    """Make each all-gather of DeepSpeed finish before its call returns; for ranks on the CPU.

    To gather several parameters DeepSpeed 0.15.4 starts one all-gather for each and waits for the last one only
    (`Init._allgather_params_coalesced`): NCCL finishes them in order, gloo's thread pool in any. What had not arrived
    was saved as it was in memory, and written back into the weights.
    """
    from deepspeed import comm

    if getattr(comm.all_gather_into_tensor, "waits", False):
        return
    gather = comm.all_gather_into_tensor

    def gathered(*args: Any, **kwargs: Any) -> Any:
        handle = gather(*args, **kwargs)
        if handle is not None:  # None if it was synchronous
            handle.wait()
        return handle

    gathered.waits = True  # type: ignore[attr-defined]
    comm.all_gather_into_tensor = gathered
