"""Completions from vLLM in a child process: the trainer's side. vllm_child.py is the other.

The child sees one device and nothing of the trainer's process group. Messages are JSON over a socket pair; weights go
through one block of shared memory, a tensor at a time, so that there is never a second full copy.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import torch

from mini_r1.console import printable
from mini_r1.errors import ExitCode, KitError, Stopped
from mini_r1.generation.sampler import SamplingConfig, Stop, never
from mini_r1.machine.heavy_imports import find_vllm_problem
from mini_r1.machine.lifeline import SUPERVISOR
from mini_r1.machine.nvidia import ALLOCATOR, PCI_ORDER

SCHEDULER_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""Signals that the child ignores."""
LOOK_EVERY_S: Final = 1.0
"""Between two checks of the child and of the stop; an answer is noticed at once."""
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
    device: str  # `cpu`, or the child's CUDA_VISIBLE_DEVICES (an index: vLLM 0.7.0 knows no UUIDs)


@dataclass(frozen=True, slots=True)
class Generated:
    """One completion."""

    ids: list[int]  # its tokens, the end token included
    logps: list[float] | None = None
    """Log-probability of each token, of the logits divided by the temperature (by 1 when greedy); None: not known."""


class VllmEngine:
    """vLLM in a child process, ready when the constructor returns; its output is appended to `log`.

    The kernel ends the child when the thread that started it ends: use one that lasts, e.g. the main one.
    `start_timeout_s` includes loading; `stop` is asked meanwhile, and raises Stopped. Raises KitError: CONFIG if the
    recipe or the environment causes it, RETRY if the device does, or, from every method, if the child has died.
    """

    def __init__(self, config: EngineConfig, log: Path, start_timeout_s: float, stop: Stop = never) -> None:
        refuse_environment(config)
        self._config = config
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = log.stat().st_size if log.exists() else 0
        self._mapped: mmap.mmap | None = None
        self._block = os.memfd_create("mini-r1-weights")  # not /dev/shm: containers keep that at 64 MB
        try:
            ours, theirs = socket.socketpair()
            self._connection = Connection(ours.detach())
            with theirs:
                self._process = self._start(theirs.fileno())
        except BaseException:
            os.close(self._block)
            raise
        try:
            self._exchange(asdict(config), "starting", time.monotonic() + start_timeout_s, stop)
        except BaseException:
            self.close()
            raise

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

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> int:
        """Send all of the trainer's weights to vLLM; return the bytes sent.

        Names are as transformers saves them; tensors are on any device and in any dtype, and each is copied before the
        next is asked for. A tied one need not come twice. Other names or shapes than the model's are a KitError.
        """
        total, names = 0, []
        for name, tensor in tensors:
            size = tensor.numel() * tensor.element_size()
            if size:
                self._write(tensor, size)
            shape, dtype = list(tensor.shape), str(tensor.dtype).removeprefix("torch.")
            message = {"name": name, "shape": shape, "dtype": dtype, "count": tensor.numel(), "bytes": size}
            self._exchange({"do": "tensor", **message}, "loading weights")
            total += size
            names.append(name)
        self._exchange({"do": "loaded", "names": names}, "loading weights")
        self._mapped = None
        os.ftruncate(self._block, 0)  # frees the memory, which the child has unmapped too
        return total

    def _write(self, tensor: torch.Tensor, size: int) -> None:
        """Copy a tensor to the start of the block, which grows as needed."""
        if self._mapped is None or len(self._mapped) < size:
            self._mapped = None
            if os.fstat(self._block).st_size < size:
                os.ftruncate(self._block, size)
            self._mapped = mmap.mmap(self._block, size)
        place = torch.frombuffer(self._mapped, dtype=tensor.dtype, count=tensor.numel())
        place.view(tensor.shape).copy_(tensor.detach())

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        *,
        eos_token_ids: Sequence[int],
        seed: int,
        stop: Stop = never,
    ) -> list[Generated]:
        """Sample completions, with the arguments and the result of `sampler.sample`; vLLM chooses the batch size.

        The same weights and seed give the same completions, even in a new child. `stop` is asked every LOOK_EVERY_S
        seconds; if it returns true the child is killed, because it can't stop generating.
        """
        if not prompts:
            return []
        longest = max(map(len, prompts))
        if longest + config.max_new_tokens > self._config.max_model_len:
            raise KitError(
                f"a prompt of {longest:,} tokens and a completion of up to {config.max_new_tokens:,} do not fit in the "
                f"{self._config.max_model_len:,} that vLLM was started with: max_prompt_length + max_completion_length"
            )
        request = {
            "do": "generate",
            "prompts": [list(prompt) for prompt in prompts],
            "n": config.num_generations,
            "max_new_tokens": config.max_new_tokens,
            "temperature": config.temperature,
            "eos_token_ids": list(eos_token_ids),
            "seed": seed,
        }
        answer = self._exchange(request, "generating", stop=stop)
        return [Generated(ids, logps) for ids, logps in zip(answer["ids"], answer["logps"], strict=True)]

    def close(self) -> None:
        """Kill the child, which has nothing to save; a second call does nothing."""
        if self._connection.closed:
            return
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._mapped = None
        os.close(self._block)

    def _exchange(
        self, message: dict[str, Any], doing: str, deadline: float | None = None, stop: Stop = never
    ) -> dict[str, Any]:
        """Send one message and return its answer; KitError if there is none by the deadline (monotonic time)."""
        if self._connection.closed:
            raise KitError("vLLM's process has been ended already", ExitCode.RETRY)
        try:
            self._connection.send_bytes(json.dumps(message).encode())
            while not self._connection.poll(LOOK_EVERY_S):
                # A process that it forked may hold its end of the socket open.
                if self._process.poll() is not None:
                    raise EOFError
                if deadline is not None and time.monotonic() > deadline:
                    raise KitError(f"vLLM was not ready in time; {self._log_tail()}", ExitCode.RETRY)
                if stop():
                    raise Stopped
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError) as error:
            raise self._died(doing) from error
        except BaseException:
            self.close()  # a late answer would be taken for that to the next message
            raise
        if "error" in answer:
            text = printable(answer["error"])
            if deadline is not None:
                text = f"{text}\n{self._log_tail()}"
            raise KitError(text, ExitCode(answer["exit_code"]))
        return answer

    def _died(self, doing: str) -> KitError:
        """Return the error for a child whose socket has closed, and kill it if it still runs."""
        try:
            status = self._process.wait(LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            status = 0
        how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
        if status == -signal.SIGKILL:
            how += ", as the kernel sends when memory is short"
        self.close()
        return KitError(f"vLLM's process ended while {doing} ({how}); {self._log_tail()}", ExitCode.RETRY)

    def _log_tail(self) -> str:
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
    problem = find_vllm_problem(config.device == "cpu")
    if problem is not None:
        raise KitError(f"use_vllm is true and {': '.join(problem)}")
