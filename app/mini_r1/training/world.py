"""The workers of a run, one process for each training device, and how they agree.

RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT make a process one of several; without them it is the only
one. Rank 0 reads and writes the run directory.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.distributed import distributed_c10d

from mini_r1.errors import ExitCode, KitError, Stopped
from mini_r1.generation.model import device

T = TypeVar("T")

_LEFT: list[Any] = []
"""Process groups that this process has left; see `World.leave`."""


class World:
    """This process among the workers; a collective gives up after `timeout_s` seconds, in every process group.

    As a context it leaves the other workers at the end, and after an error without any communication.
    """

    def __init__(self, timeout_s: int, on_done: Callable[[], None] = lambda: None) -> None:
        on_cpu = device().type == "cpu"
        if on_cpu:
            # Otherwise accelerate names the device of one of several workers cpu:0, to which torch 2.5.1 loads no
            # tensor: transformers could not read AdamW's state back.
            os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        timeout = timedelta(seconds=timeout_s)
        # DeepSpeed makes groups without a timeout. By default NCCL's give up after 600 s: before the launcher finds out
        # which rank hangs (hang_timeout_s), and the rank that waits would be blamed.
        vars(distributed_c10d).update(default_pg_nccl_timeout=timeout, default_pg_timeout=timeout)
        self.rank, self.size = 0, 1
        self._state: PartialState | None = None  # alone, transformers makes it: it would reserve memory of the GPU
        if os.environ.get("WORLD_SIZE", "1") != "1":
            self._state = PartialState(cpu=on_cpu, timeout=timeout)
            self.rank, self.size = self._state.process_index, self._state.num_processes
        self.main = self.rank == 0
        self._on_done = on_done
        # Rank 0 serves it in a thread, also while it computes.
        self._store: Any = distributed_c10d._get_default_store() if self.size > 1 else None

    def __enter__(self) -> "World":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # Destroying a group aborts NCCL's communicators, which hangs while other workers are inside their kernels. The
        # launcher would notice only after hang_timeout_s; it ends them 10 s after this process has exited.
        if kind is None:
            self.leave()

    def from_main(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0 and return its result everywhere; a KitError is raised everywhere too."""
        outcome: list[Any] = [None, None]
        if self.main:
            try:
                outcome[0] = function()
            except KitError as error:
                outcome[1] = error
        if self.size > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]  # type: ignore[no-any-return]

    def main_first(self, function: Callable[[], T]) -> T:
        """Call `function` on every rank, rank 0 before the others: it fills the caches that they read."""
        own: list[T] = []
        self.from_main(lambda: own.append(function()))
        return own[0] if self.main else function()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        if self._state is None or self.size == 1:
            return flag
        votes = torch.tensor([int(flag)], device=self._state.device)
        torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
        return bool(votes.item())

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def unless_stopped(self, function: Callable[[], T]) -> T:
        """Call `function` on every rank and return this rank's result; raise Stopped on every rank if any raised it.

        `on_done` is called when this rank's part is done, before it waits for the others.
        """
        results: list[T] = []
        with suppress(Stopped):
            results.append(function())
        self._on_done()
        if self.any(not results):
            raise Stopped
        return results[0]

    def post(self, notice: str) -> None:
        """Leave a notice for the other ranks, which `is_posted` finds; not a collective."""
        if self._store is not None:
            self._store.set(notice, "1")

    def is_posted(self, notice: str) -> bool:
        """Return whether a rank has left this notice; not a collective."""
        return self._store is not None and bool(self._store.check([notice]))

    @contextmanager
    def peer_errors(self) -> Iterator[None]:
        """Turn the error of a collective, raised because another worker died or hangs, into a retryable KitError."""
        try:
            yield
        except RuntimeError as error:
            # NCCL and the store raise DistError; gloo a bare RuntimeError that names its source file.
            if self.size == 1 or not (isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)):
                raise
            raise KitError(
                f"another worker is gone or does not answer ({str(error).splitlines()[0]}). Its log has the reason. "
                "Run the same command again: it resumes from the last complete checkpoint.",
                ExitCode.RETRY,
            ) from error

    def leave(self) -> None:
        """Leave the other workers; a process may train again afterwards, alone.

        The groups are kept until the interpreter exits. torch 2.5.1's gloo waits in its destructor for its threads with
        the GIL held, while one of them may want the GIL to free the last collective's tensor: runs hung here at their
        end. The call shuts NCCL down all the same.
        """
        if torch.distributed.is_initialized():
            _LEFT.extend(distributed_c10d._world.pg_map)
            torch.distributed.destroy_process_group()
