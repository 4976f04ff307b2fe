"""Engines that sample a rollout's completions: the policy itself on every rank, or one vLLM process for all ranks.

Every rank makes every call. `sample` returns the completions of this rank's prompts, those of one prompt next to one
another. It raises Stopped on every rank when any of them was asked to stop, and KitError when the engine failed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from trl.models import unwrap_model_for_generation

from mini_r1.generation.sampler import SamplingConfig, Stop, never, sample
from mini_r1.generation.vllm_client import EngineConfig, Generated, VllmEngine
from mini_r1.recipe.fields import Recipe
from mini_r1.training.prepare import Policy
from mini_r1.training.world import World

Prompts = Sequence[Sequence[int]]  # token ids
SeedOfRank = Callable[[int], int]  # the seed that a rank samples with; an engine for all ranks uses rank 0's
VLLM_DEVICE = "MINI_R1_VLLM_DEVICE"
"""Set by the launcher for rank 0: vLLM's device, `cpu` or the value of its CUDA_VISIBLE_DEVICES."""


def start_engine(recipe: Recipe, policy: Policy, world: World, log: Path, stack: ExitStack, stop: Stop) -> Engine:
    """Return the recipe's engine; `stack` ends vLLM's process, a child of rank 0, and `log` is for its messages.

    Raises, on every rank, KitError if vLLM does not start, and Stopped if `stop` returned true on rank 0.
    """
    if not recipe.use_vllm:
        return PolicyEngine(world, policy.eos_token_ids, policy.tokenizer.pad_token_id, stop)
    vllm: list[VllmEngine] = []
    world.from_main(lambda: vllm.append(stack.enter_context(_start_vllm(recipe, policy, log, stop))))
    return SharedEngine(world, vllm[0] if vllm else None, policy.eos_token_ids, stop)


def _start_vllm(recipe: Recipe, policy: Policy, log: Path, stop: Stop) -> VllmEngine:
    computed_in = "bfloat16" if recipe.bf16 else "float16" if recipe.fp16 else None
    config = EngineConfig(
        model=policy.source,
        revision=policy.revision,
        dtype=computed_in or str(policy.model.dtype).removeprefix("torch."),
        max_model_len=recipe.longest_sequence,
        gpu_memory_utilization=recipe.vllm_gpu_memory_utilization,
        seed=recipe.seed,
        device=os.environ[VLLM_DEVICE],
    )
    return VllmEngine(config, log, start_timeout_s=recipe.hang_timeout_s, stop=stop)


class PolicyEngine:
    """The policy samples for itself, with transformers, on the device that it is trained on."""

    separate = False  # it has no weights of an older step, which `load` would update

    def __init__(self, world: World, eos_token_ids: Sequence[int], pad_token_id: int, stop: Stop = never) -> None:
        self._world = world
        self._sampling: dict[str, Any] = {"eos_token_ids": eos_token_ids, "pad_token_id": pad_token_id, "stop": stop}

    def load(self, wrapped: Any, accelerator: Accelerator) -> None:
        """Do nothing: it samples from the weights that are trained."""

    def sample(
        self, wrapped: Any, accelerator: Accelerator, prompts: Prompts, config: SamplingConfig, seed: SeedOfRank
    ) -> list[Generated]:
        """Sample on this rank. Under ZeRO-3 every rank holds the whole weights meanwhile."""

        def sample_own() -> list[list[int]]:
            if not prompts:  # an evaluation of fewer problems than ranks; the weights were gathered with the others
                return []
            return sample(model, prompts, config, seed=seed(self._world.rank), **self._sampling)

        with unwrap_model_for_generation(wrapped, accelerator) as model:
            completions = self._world.unless_stopped(sample_own)
        return [Generated(ids) for ids in completions]


class SharedEngine:
    """vLLM, a child process of rank 0: it gets the prompts of all ranks in one call, so that its batch is large."""

    separate = True

    def __init__(self, world: World, vllm: VllmEngine | None, eos_token_ids: Sequence[int], stop: Stop = never) -> None:
        self._world = world
        self._vllm = vllm
        self._eos_token_ids = eos_token_ids
        self._stop = stop

    def load(self, wrapped: Any, accelerator: Accelerator) -> None:
        """Stream the weights to vLLM, one tensor at a time; under ZeRO-3 each is gathered, sent and freed."""
        plugin = accelerator.state.deepspeed_plugin
        sharded = plugin is not None and plugin.zero_stage == 3
        weights = _weights(accelerator.unwrap_model(wrapped), sharded)
        if not self._world.main and sharded:
            deque(weights, maxlen=0)
        self._world.from_main(lambda: self._send(weights))

    def _send(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        assert self._vllm is not None
        try:
            self._vllm.load_weights(weights)
        finally:
            deque(weights, maxlen=0)  # after an error: the other ranks gather every weight, and would wait for this one

    def sample(
        self, wrapped: Any, accelerator: Accelerator, prompts: Prompts, config: SamplingConfig, seed: SeedOfRank
    ) -> list[Generated]:
        """Sample on rank 0, for all ranks."""
        of_ranks: list[Prompts] = gather_object([list(prompts)])
        completions = self._world.from_main(lambda: self._generate(of_ranks, config, seed(0)))
        first = config.num_generations * sum(map(len, of_ranks[: self._world.rank]))
        return completions[first : first + config.num_generations * len(prompts)]

    def _generate(self, of_ranks: Sequence[Prompts], config: SamplingConfig, seed: int) -> list[Generated]:
        assert self._vllm is not None
        prompts = [list(prompt) for of_rank in of_ranks for prompt in of_rank]
        return self._vllm.generate(prompts, config, eos_token_ids=self._eos_token_ids, seed=seed, stop=self._stop)


Engine = PolicyEngine | SharedEngine


def _weights(model: Any, sharded: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and whole weight of each parameter; a weight is whole only until the next one is asked for."""
    whole: Callable[[list[torch.nn.Parameter]], Any] = nullcontext
    if sharded:
        import deepspeed  # late: it is installed on Linux only, and slow to import

        whole = deepspeed.zero.GatheredParameters
    for name, parameter in model.named_parameters():
        with whole([parameter]):
            yield name, parameter.detach()
