"""Prompts in, completions out, for measuring a model that is not being trained: by transformers or by vLLM."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from mini_r1.errors import KitError
from mini_r1.generation.merged_weights import merged_weights, refuse_unmergeable
from mini_r1.generation.model import (
    describe,
    device,
    eos_token_ids,
    load_model,
    load_tokenizer,
    read_adapter,
    refuse_misfit,
)
from mini_r1.generation.sampler import SamplingConfig, sample
from mini_r1.generation.stop_strings import saved_tokenizer
from mini_r1.generation.vllm_client import VllmEngine
from mini_r1.generation.vllm_process import EngineConfig
from mini_r1.machine.heavy_imports import find_vllm_problem

BATCH_ROWS = 256
"""Sequences decoded at once. A 3B model with 1,300 tokens a row holds about 12 GB of keys and values with it."""
VLLM_ROWS = 2048
"""Completions that vLLM is asked for at once, so that progress shows: eight times what it decodes at once (256)."""
VLLM_MEMORY = 0.85
"""Share of the GPU's memory: nothing else runs there, but the driver and a desktop take some."""
VLLM_START_S = 1800.0
"""Longest time to start: a 7B model from a cold network disk takes ten minutes."""

Progress = Callable[[int], None]
"""Called with the number of completions finished since the last call."""


class TransformersCompleter:
    """A model in this process, whose mode is restored.

    Sampled completions change with `batch_rows`, the sequences decoded at once; greedy ones do not.
    """

    name = "transformers"

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, batch_rows: int = BATCH_ROWS) -> None:
        self._model = model
        self._batch_rows = batch_rows
        self.tokenizer = tokenizer
        self.ends: Sequence[int] = eos_token_ids(model, tokenizer)
        self.facts: dict[str, Any] = describe(model)

    @classmethod
    def load(cls, source: str, revision: str | None, tokenizer_source: str) -> TransformersCompleter:
        """Load a model to this process's device: 16 bits on a GPU, 32 on a CPU.

        A KitError if model or tokenizer can't be loaded, or do not fit together.
        """
        model = load_model(source, revision, dtype_here(), None).to(device())
        tokenizer = load_tokenizer(tokenizer_source, revision if tokenizer_source == source else None)
        refuse_misfit(model, tokenizer)
        return cls(model, tokenizer)

    def complete(
        self, prompts: Sequence[Sequence[int]], config: SamplingConfig, seed: int, progress: Progress
    ) -> list[list[int]]:
        """Return the completions, those of a prompt next to one another; `config.batch_rows` is ignored.

        More completions of one prompt than fit a batch are drawn in rounds.
        """
        of_prompt: list[list[list[int]]] = [[] for _ in prompts]
        for start in range(0, config.num_generations, self._batch_rows):
            count = min(self._batch_rows, config.num_generations - start)
            ids = sample(
                self._model,
                prompts,
                replace(config, batch_rows=self._batch_rows, num_generations=count),
                eos_token_ids=self.ends,
                pad_token_id=int(self.tokenizer.pad_token_id),
                seed=(seed + start) % (1 << 63),
                tokenizer=self.tokenizer,
                progress=progress,
            )
            for i, completions in enumerate(of_prompt):
                completions.extend(ids[i * count : (i + 1) * count])
        return [completion for completions in of_prompt for completion in completions]

    def close(self) -> None:
        """Free the memory for the next model."""
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class VllmCompleter:
    """vLLM in its child process, started once for all snapshots of a run; each one's weights are streamed into it.

    With an adapter it is started with the base model, and gets weights into which the adapter is merged.
    See `EngineConfig` for the arguments, and `VllmEngine` for what it raises; `stop`: later calls' stop strings.
    """

    name = "vllm"
    ends: Sequence[int]
    facts: dict[str, Any]

    def __init__(
        self,
        source: str,
        revision: str | None,
        tokenizer: PreTrainedTokenizerBase,
        max_model_len: int,
        vllm_device: str,
        log: Path,
        stop: Sequence[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        adapter = read_adapter(source, revision)
        with saved_tokenizer(tokenizer, stop) as directory:
            config = EngineConfig(
                model=source if adapter is None else adapter.base_model_name_or_path,
                revision=revision if adapter is None else adapter.revision,
                dtype=dtype_here(),
                max_model_len=max_model_len,
                gpu_memory_utilization=VLLM_MEMORY,
                seed=0,
                device=vllm_device,
                tokenizer=directory,
            )
            self._engine = VllmEngine(config, log, VLLM_START_S)
        try:
            if adapter is None:
                self._describe(source, revision)
            else:
                self._merge(source, revision)
        except BaseException:
            self._engine.close()
            raise

    def take(self, directory: Path) -> None:
        """Load the weights of a snapshot of the same model or of its adapter; those of another are a KitError."""
        if read_adapter(str(directory), None) is not None:
            self._merge(str(directory), None)
            return
        self._engine.load_weights(stored_tensors(directory))
        self._describe(str(directory), None)

    def _merge(self, adapter: str, revision: str | None) -> None:
        """Load the weights of an adapter's base model with the adapter in them; on the CPU, vLLM has the device."""
        model = load_model(adapter, revision, dtype_here(), None)
        refuse_unmergeable(model)
        self._engine.load_weights(merged_weights(model))
        self.ends = eos_token_ids(model, self.tokenizer)
        self.facts = {**describe(model), "attention": "vllm"}

    def _describe(self, source: str, revision: str | None) -> None:
        """Set `ends` and `facts`, as `describe` returns them, for the model in the other process."""
        try:
            settings = GenerationConfig.from_pretrained(source, revision=revision or "main")
        except OSError:  # a model need not have any
            settings = None
        self.ends = eos_token_ids(SimpleNamespace(generation_config=settings), self.tokenizer)
        config = AutoConfig.from_pretrained(source, revision=revision or "main", trust_remote_code=False)
        weights = stored_tensors(Path(source))
        self.facts = {
            "class": (config.architectures or [None])[0],
            "parameters": sum(tensor.numel() for _, tensor in weights) if os.path.isdir(source) else None,
            "dtype": dtype_here(),
            "attention": "vllm",
            "revision": getattr(config, "_commit_hash", None),
            "quantization": None,
        }

    def complete(
        self, prompts: Sequence[Sequence[int]], config: SamplingConfig, seed: int, progress: Progress
    ) -> list[list[int]]:
        """Return the completions, those of a prompt next to one another."""
        at_once = max(1, VLLM_ROWS // config.num_generations)
        completions: list[list[int]] = []
        for start in range(0, len(prompts), at_once):
            part = self._engine.generate(
                prompts[start : start + at_once], config, eos_token_ids=self.ends, seed=(seed + start) % (1 << 63)
            )
            completions.extend(generated.ids for generated in part)
            progress(len(part))
        return completions

    def close(self) -> None:
        """End vLLM's process."""
        self._engine.close()


Completer = TransformersCompleter | VllmCompleter
"""A model, its `tokenizer`, the `ends` of a completion, `facts` (see `model.describe`), and what samples from it."""


def dtype_here() -> str:
    """Return the dtype that a model is loaded in for measuring."""
    return "float32" if device().type == "cpu" else "bfloat16"


def stored_tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and tensor of every weight in a model directory."""
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                yield name, weights.get_tensor(name)


def vllm_device(wanted: str, environment: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return the device that vLLM generates on and None, or None and why transformers generates (None: no reason).

    `wanted` is `auto` (vLLM if there is a GPU and it is installed), `vllm` or `transformers`; KitError if it is another
    or can't be used.
    """
    if wanted not in ("auto", "vllm", "transformers"):
        raise KitError(f"--engine must be auto, vllm or transformers, found {wanted!r}")
    if wanted == "transformers":
        return None, None
    on_cpu = device().type == "cpu"
    visible = (environment.get("CUDA_VISIBLE_DEVICES") or "0").split(",")[0].strip()
    problem = find_vllm_problem(on_cpu)
    reason = problem and problem[0]
    if reason is None and not on_cpu and not visible.isdecimal():
        reason = f"vLLM 0.7.0 knows no device named {visible!r}, only indices"
    if wanted == "vllm" and reason is not None:
        raise KitError(f"--engine vllm: {reason}; leave --engine out, and transformers generates")
    if wanted == "auto" and on_cpu:
        return None, None  # transformers is as good there, and starts at once
    return (None, reason) if reason is not None else ("cpu" if on_cpu else visible, None)
