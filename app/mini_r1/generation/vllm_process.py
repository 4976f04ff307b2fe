"""One child process that runs vLLM, seen from its parent: its start, its messages and its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from mini_r1.console import printable
from mini_r1.errors import ExitCode, KitError
from mini_r1.machine.heavy_imports import find_vllm_problem
from mini_r1.machine.lifeline import SUPERVISOR
from mini_r1.machine.nvidia import ALLOCATOR, PCI_ORDER

SCHEDULER_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""Signals that the child ignores."""
END_S: Final = 1.0
"""Time in which the exit status of a child that closed its socket is there."""
LOG_TAIL_BYTES: Final = 16_384
LOG_TAIL_LINES: Final = 12


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Configuration of vLLM, by its names."""

    model: str  # hub id or local directory, in safetensors
    revision: str | None
    dtype: str
    max_model_len: int
    """Tokens of the longest prompt and completion together; the KV cache must hold at least one."""
    gpu_memory_utilization: float
    seed: int  # random seed of the engine's start; every `generate` has its own
    device: str
    """`cpu`, or the child's CUDA_VISIBLE_DEVICES (an index: vLLM 0.7.0 knows no UUIDs). Several, separated by commas,
    are for one process each."""
    tokenizer: str | None = None
    """Directory of the tokenizer, which stop strings need; see `saved_tokenizer`."""
    num_scheduler_steps: int = 1  # tokens of a sequence between two turns of the scheduler; above 1 on a GPU only


class VllmProcess:
    """A child process with one device, which has been sent its configuration. It reads weights from `block`.

    The kernel ends the child when the thread that started it ends: use one that lasts, e.g. the main one. Raises
    KitError RETRY, from every method, if the child has died.
    """

    def __init__(self, config: EngineConfig, log: Path, block: int) -> None:
        self._config = config
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = log.stat().st_size if log.exists() else 0
        self._block = block
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        try:
            with theirs:
                self.popen = self._start(theirs.fileno())
        except BaseException:
            self.connection.close()
            raise
        self.post(asdict(config), "starting")

    def _start(self, descriptor: int) -> subprocess.Popen[bytes]:
        """Start the child with the signals blocked until it ignores them: it inherits this thread's mask."""
        command = [sys.executable, "-m", "mini_r1.generation.vllm_child", str(descriptor), str(self._block)]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SCHEDULER_SIGNALS)
        try:
            with self._log.open("ab") as output:
                return subprocess.Popen(  # noqa: S603
                    [*command, str(os.getpid())],
                    env=child_environment(os.environ, self._config),
                    pass_fds=(descriptor, self._block),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @property
    def has_ended(self) -> bool:
        """Whether the child has ended; a process that it forked may hold its end of the socket open."""
        return self.popen.poll() is not None

    def post(self, message: dict[str, Any], doing: str) -> None:
        """Send a message; each gets one answer."""
        try:
            self.connection.send_bytes(json.dumps(message).encode())
        except ConnectionError as error:
            raise self.died(doing) from error

    def receive(self, doing: str) -> dict[str, Any]:
        """Return the answer to the oldest message, when `connection` is ready."""
        try:
            answer: dict[str, Any] = json.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionError) as error:
            raise self.died(doing) from error
        return answer

    def close(self) -> None:
        """Kill the child, which has nothing to save; a second call does nothing."""
        if not self.connection.closed:
            self.popen.kill()
            self.popen.wait()
            self.connection.close()

    def died(self, doing: str) -> KitError:
        """Return the error for a child that has ended, and kill it if it still runs."""
        try:
            status = self.popen.wait(END_S)
        except subprocess.TimeoutExpired:
            status = 0
        how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
        if status == -signal.SIGKILL:
            how += ", as the kernel sends when memory is short"
        self.close()
        return KitError(f"vLLM's process ended while {doing} ({how}); {self.log_tail()}", ExitCode.RETRY)

    def log_tail(self) -> str:
        """Return the end of this child's log."""
        log = self._log.read_bytes()[self._log_start :][-LOG_TAIL_BYTES:]
        lines = log.decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        tail = "\n".join(f"  {printable(line)}" for line in lines) or "  nothing"
        return f"the last lines of its log, {self._log}:\n{tail}"


def child_environment(environment: Mapping[str, str], config: EngineConfig) -> dict[str, str]:
    """Return the trainer's environment without what makes it a worker and with vLLM's settings.

    The hub's token stays only if the model is on the hub. The workers' allocator setting, which vLLM 0.7.0 was not made
    for, does not stay; another one of the user's does.
    """
    worker = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", SUPERVISOR}
    secrets = {"WANDB_API_KEY"}
    if Path(config.model).exists():
        secrets |= {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}
    # vLLM's variable would let a model run beyond the length it was trained for.
    unwanted = worker | secrets | {"VLLM_ALLOW_LONG_MAX_MODEL_LEN"}
    kept = {
        name: value
        for name, value in environment.items()
        if name not in unwanted and not name.startswith(("MASTER_", "TORCHELASTIC_")) and (name, value) != ALLOCATOR
    }
    on_cpu = config.device == "cpu"
    if on_cpu:
        kept.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, all of it written at the start
    return {
        **kept,
        "CUDA_VISIBLE_DEVICES": "" if on_cpu else config.device,
        **PCI_ORDER,  # vLLM takes the index for NVML's
        "VLLM_USE_V1": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Its process group has one member, which needs no network and no lookup of this host's name.
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def refuse_environment(config: EngineConfig) -> None:
    """Raise a KitError for a vLLM that can't be used."""
    problem = find_vllm_problem("cpu" in config.device)
    if problem is not None:
        raise KitError(f"use_vllm is true and {': '.join(problem)}")
    if "cpu" in config.device and config.num_scheduler_steps > 1:  # vLLM would only log that it does without
        raise KitError("num_scheduler_steps above 1 needs a GPU, and vLLM runs on the CPU here: set it to 1")
