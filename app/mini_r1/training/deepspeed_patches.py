"""DeepSpeed made fit for these workers: what it wants to know before it is configured, and its mend for gloo."""

from __future__ import annotations

import os
from typing import Any


def prepare(*, on_cpu: bool) -> None:
    """Before the first DeepSpeed configuration of a process.

    Its messages, some 170 lines a start, go where all others go: into the rank's log.

    Args:
        on_cpu: the worker computes on the CPU, over gloo. DeepSpeed would compile an all-reduce of its own at the first
            step and count NUMA nodes with the program numactl; neither a compiler nor numactl has to be there.
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
    """Let each all-gather of DeepSpeed end before its call returns; call it once or more, for ranks on the CPU.

    To gather several parameters at once DeepSpeed 0.15.4 starts one all-gather for each and waits for the last alone
    (`Init._allgather_params_coalesced`): on NCCL they are done in order, on gloo a thread pool does them in any. What
    had not arrived was saved as it was in memory, and written back into the weights.
    """
    from deepspeed import comm

    if getattr(comm.all_gather_into_tensor, "waits", False):
        return
    gather = comm.all_gather_into_tensor

    def gathered(*args: Any, **kwargs: Any) -> Any:
        handle = gather(*args, **kwargs)
        if handle is not None:  # None where it was not to be asynchronous
            handle.wait()
        return handle

    gathered.waits = True  # type: ignore[attr-defined]
    comm.all_gather_into_tensor = gathered
