"""Completions from vLLM in child processes: the trainer's side. vllm_child.py is the other.

A child sees one device and nothing of the trainer's process group. Messages are JSON over a socket pair. Weights go
through one block of shared memory, in groups: while the children load one group, the next is written. So there is never
a second full copy.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final

import torch

from mini_r1.console import printable
from mini_r1.errors import ExitCode, KitError, Stopped
from mini_r1.generation.sampler import SamplingConfig, Stop, never, step_seed
from mini_r1.generation.shared_block import SharedBlock
from mini_r1.generation.vllm_process import EngineConfig, VllmProcess, refuse_environment
from mini_r1.machine.weight_block import GROUP_BYTES, block_bytes

LOOK_EVERY_S: Final = 1.0
"""Between two checks of the children and of the stop; an answer is noticed at once."""
ALIGNMENT: Final = 64
"""Bytes; each tensor begins at a multiple, as torch's own tensors do on a CPU."""


@dataclass(frozen=True, slots=True)
class Generated:
    """One completion."""

    ids: list[int]  # its tokens, the end token included
    logps: list[float] | None = None
    """Log-probability of each token, of the logits divided by the temperature (by 1 when greedy); None: not known."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Completions, in the order of their prompts, and the seconds in which the slowest process sampled its part."""

    completions: list[Generated]
    seconds: float


class VllmEngine:
    """vLLM, one child process for each of the configuration's devices, ready when the constructor returns.

    The output of the first is appended to `log`, that of the second to a file with -2 in its name, and so on. See
    VllmProcess for the thread to call it from. `start_timeout_s` includes loading; `stop` is asked meanwhile, and
    raises Stopped. Raises KitError: CONFIG if the recipe or the environment causes it, RETRY if the device does, or,
    from every method, if a child has died; then the others are ended too.
    """

    def __init__(self, config: EngineConfig, log: Path, start_timeout_s: float, stop: Stop = never) -> None:
        refuse_environment(config)
        self._max_model_len = config.max_model_len
        self._has_tokenizer = config.tokenizer is not None
        self._closed = False
        self._processes: list[VllmProcess] = []
        self._block = SharedBlock(os.memfd_create("mini-r1-weights"))  # not /dev/shm: containers keep that at 64 MB
        self._loading: deque[tuple[int, int]] = deque()  # start and end of each group that was posted, oldest first
        self._place = 0  # where the next group goes
        self._parts: list[list[int]] | None = None  # rows of each process, while they sample
        self._answered: dict[VllmProcess, dict[str, Any]] = {}  # to the message that was sent last
        try:
            for i, device in enumerate(config.device.split(",")):
                own = log.with_stem(f"{log.stem}-{i + 1}") if i else log
                self._processes.append(VllmProcess(replace(config, device=device), own, self._block.descriptor))
            self._answers("starting", time.monotonic() + start_timeout_s, stop)
        except BaseException:
            self.close()
            raise

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> int:
        """Send all of the trainer's weights to every process; return the bytes written.

        Names are as transformers saves them; tensors are on any device and in any dtype, and each is copied before the
        next is asked for. A tied one need not come twice. Other names or shapes than the model's are a KitError.
        """
        self._refuse_closed()
        total, used = 0, 0
        names: list[str] = []
        group: list[dict[str, Any]] = []
        try:
            for name, tensor in tensors:
                size = tensor.numel() * tensor.element_size()
                if group and used + size > GROUP_BYTES:
                    self._post_group(group, used)
                    group = []
                if not group:
                    self._place, used = self._free_place(size), 0
                offset, shape = self._place + used, list(tensor.shape)
                # Not asynchronously: the tensor may be freed before the next one.
                self._block.tensor(offset, tensor.dtype, shape).copy_(tensor.detach())
                dtype = str(tensor.dtype).removeprefix("torch.")
                group.append({"name": name, "shape": shape, "dtype": dtype, "offset": offset})
                used += -(-size // ALIGNMENT) * ALIGNMENT
                names.append(name)
                total += size
            if group:
                self._post_group(group, used)
            while self._loading:
                self._group_loaded()
            self._post([{"do": "loaded", "names": names}] * len(self._processes), "loading weights")
            self._answers("loading weights")
        finally:
            while self._loading:  # after an error: a late answer would be taken for that to the next message
                with suppress(KitError):
                    self._group_loaded()
        return total

    def _free_place(self, size: int) -> int:
        """Return where in the block a group with a tensor of `size` bytes begins; wait until its memory is read."""
        start = self._place if size <= GROUP_BYTES else 0
        end = start + max(size, GROUP_BYTES)
        while any(start < other_end and other_start < end for other_start, other_end in self._loading):
            self._group_loaded()
        self._block.reserve(block_bytes(size))
        return start

    def _post_group(self, group: Sequence[dict[str, Any]], used: int) -> None:
        message = {"do": "load", "block": self._block.size, "tensors": group}
        self._post([message] * len(self._processes), "loading weights")
        self._loading.append((self._place, self._place + used))
        self._place = 0 if self._place else GROUP_BYTES

    def _group_loaded(self) -> None:
        """Wait until every process has loaded the oldest group."""
        self._loading.popleft()
        self._answers("loading weights")

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

        The same weights and seed give the same completions on as many devices, even in new children. `stop` is asked
        every LOOK_EVERY_S seconds; if it returns true the children are killed, because they can't stop generating.
        """
        if not prompts:
            return []
        self.begin(prompts, config, eos_token_ids=eos_token_ids, seed=seed)
        try:
            return self.finish(stop).completions
        except Stopped:
            self.close()
            raise

    def begin(
        self, prompts: Sequence[Sequence[int]], config: SamplingConfig, *, eos_token_ids: Sequence[int], seed: int
    ) -> None:
        """Have the children sample, as `generate` does, and return at once.

        `finish` returns the completions of these prompts, at least one. Nothing else may be asked for before.
        """
        assert self._parts is None, "the children sample already"
        assert not config.stop or self._has_tokenizer, "without a tokenizer vLLM never finds a stop string"
        longest = max(map(len, prompts))
        if longest + config.max_new_tokens > self._max_model_len:
            raise KitError(
                f"a prompt of {longest:,} tokens and a completion of up to {config.max_new_tokens:,} do not fit in the "
                f"{self._max_model_len:,} that vLLM was started with: max_prompt_length + max_completion_length"
            )
        request = {
            "do": "generate",
            "max_new_tokens": config.max_new_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": config.top_k,
            "stop": config.stop,
            "eos_token_ids": list(eos_token_ids),
        }
        rows = [list(prompt) for prompt in prompts for _ in range(config.num_generations)]
        parts = divide([len(row) + config.max_new_tokens for row in rows], len(self._processes))
        requests = [
            {**request, "prompts": [rows[row] for row in part], "seed": step_seed(seed, 0, i) if i else seed}
            for i, part in enumerate(parts)
        ]
        self._post(requests, "generating")
        self._parts = parts

    def finish(self, stop: Stop = never) -> Finished:
        """Wait for what was begun, and return it.

        `stop` is asked every LOOK_EVERY_S seconds. If it returns true Stopped is raised and the children continue:
        `finish` may be called again.
        """
        parts = self._parts
        assert parts is not None, "nothing was begun"
        self._parts = None
        try:
            answers = self._answers("generating", stop=stop)
        except Stopped:
            self._parts = parts
            raise
        completions: dict[int, Generated] = {}
        for part, answer in zip(parts, answers, strict=True):
            found = map(Generated, answer["ids"], answer["logps"])
            completions.update(zip(part, found, strict=True))
        ordered = [completions[row] for row in range(len(completions))]
        return Finished(ordered, max(answer["seconds"] for answer in answers))

    def close(self) -> None:
        """Kill the children; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for process in self._processes:
            process.close()
        self._loading.clear()
        self._block.release()
        os.close(self._block.descriptor)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise KitError("vLLM's process has been ended already", ExitCode.RETRY)

    def _post(self, messages: Sequence[dict[str, Any]], doing: str) -> None:
        """Send every process its message."""
        self._refuse_closed()
        try:
            for process, message in zip(self._processes, messages, strict=True):
                process.post(message, doing)
        except BaseException:
            self.close()
            raise

    def _answers(self, doing: str, deadline: float | None = None, stop: Stop = never) -> list[dict[str, Any]]:
        """Return every process's next answer; KitError if one fails, or is not there by the deadline (monotonic time).

        After an error in an answer, and after Stopped, the processes continue; after any other error they are ended.
        """
        answers = self._answered
        try:
            while len(answers) < len(self._processes):
                awaited = [process for process in self._processes if process not in answers]
                ready = wait([process.connection for process in awaited], LOOK_EVERY_S)
                for process in awaited:
                    if process.connection in ready:
                        answers[process] = process.receive(doing)
                    elif process.has_ended:
                        raise process.died(doing)
                    elif deadline is not None and time.monotonic() > deadline:
                        raise KitError(f"vLLM was not ready in time; {process.log_tail()}", ExitCode.RETRY)
                if not ready and stop():
                    raise Stopped
        except Stopped:
            raise
        except BaseException:
            self.close()
            raise
        self._answered = {}
        for process in self._processes:
            if "error" in answers[process]:
                text = printable(answers[process]["error"])
                if deadline is not None:
                    text = f"{text}\n{process.log_tail()}"
                raise KitError(text, ExitCode(answers[process]["exit_code"]))
        return [answers[process] for process in self._processes]


def divide(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Return `count` lists of indices, in order, whose sums of `sizes` are about equal.

    The largest of the rest goes to the list with the smallest sum: at most 4/3 of the best division's largest sum
    (Graham, 1969, https://doi.org/10.1137/0117039).
    """
    sums, parts = [0] * count, [list[int]() for _ in range(count)]
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        smallest = sums.index(min(sums))
        sums[smallest] += sizes[index]
        parts[smallest].append(index)
    return [sorted(part) for part in parts]
