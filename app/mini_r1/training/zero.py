"""DeepSpeed's ZeRO-3 on gloo: a gathered weight is not read before it has arrived."""

from __future__ import annotations

from typing import Any


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
