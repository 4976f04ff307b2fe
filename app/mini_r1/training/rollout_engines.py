"""Engines that sample a rollout's completions: the policy itself on every rank, or vLLM for all ranks.

Every rank makes every call. `sample` returns the completions of this rank's prompts, those of one prompt next to one
another. It raises Stopped on every rank when any of them was asked to stop, and KitError when the engine failed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase
from trl.models import unwrap_model_for_generation

from mini_r1.errors import KitError
from mini_r1.generation.merged_weights import merged_weights
from mini_r1.generation.prompts import token_ids
from mini_r1.generation.sampler import SamplingConfig, Stop, never, sample
from mini_r1.generation.stop_strings import saved_tokenizer
from mini_r1.generation.vllm_client import Finished, Generated, VllmEngine
from mini_r1.generation.vllm_process import EngineConfig
from mini_r1.machine.devices import given_devices
from mini_r1.machine.lifeline import VLLM_DEVICE, shares_vllm_device
from mini_r1.machine.nvidia import read_driver, smallest_gpu_gib
from mini_r1.plan.memory import DEFAULT_SHARE, vllm_share
from mini_r1.plan.shapes import UnknownShape, recipe_shape
from mini_r1.plan.training_setup import TrainingSetup
from mini_r1.recipe.fields import Recipe
from mini_r1.training.adapters import quantized_dtype
from mini_r1.training.prepare import Policy
from mini_r1.training.world import World

Prompts = Sequence[Sequence[int]]  # token ids
SeedOfRank = Callable[[int], int]  # the seed that a rank samples with; an engine for all ranks uses rank 0's
VERIFY_SYNC = "MINI_R1_VERIFY_SYNC"
"""Set to 1 by `mini-r1 doctor --smoke`: see `SyncCheck`."""
VERIFIED_TOKENS = 16
"""Length of a greedy completion of `SyncCheck`: enough for texts of two random models to differ."""


def start_engine(
    recipe: Recipe, policy: Policy, world: World, log: Path, stack: ExitStack, stop: Stop, prompts: Sequence[str]
) -> Engine:
    """Return the recipe's engine; `stack` ends vLLM's processes, children of rank 0; `log` is for their messages.

    `prompts` are this rank's for a SyncCheck, if the environment asks for one. Raises, on every rank, KitError if vLLM
    does not start, and Stopped if `stop` returned true on rank 0.
    """
    own = PolicyEngine(world, policy.eos_token_ids, policy.tokenizer, stop)
    if not recipe.use_vllm:
        return own
    vllm: list[VllmEngine] = []
    world.from_main(lambda: vllm.append(stack.enter_context(closing(_start_vllm(recipe, policy, log, stop)))))
    engine = SharedEngine(world, vllm[0] if vllm else None, policy.eos_token_ids, stop)
    if os.environ.get(VERIFY_SYNC) == "1":
        engine.check = SyncCheck(own, engine, token_ids(policy.tokenizer, prompts))
    return engine


def _start_vllm(recipe: Recipe, policy: Policy, log: Path, stop: Stop) -> VllmEngine:
    computed_in = "bfloat16" if recipe.bf16 else "float16" if recipe.fp16 else quantized_dtype(recipe)
    with saved_tokenizer(policy.tokenizer, recipe.stop) as tokenizer:
        config = EngineConfig(
            model=policy.source,
            revision=policy.revision,
            dtype=computed_in or str(policy.model.dtype).removeprefix("torch."),
            max_model_len=recipe.longest_sequence,
            gpu_memory_utilization=_vllm_share(recipe),
            seed=recipe.seed,
            device=os.environ[VLLM_DEVICE],
            tokenizer=tokenizer,
            num_scheduler_steps=recipe.num_scheduler_steps,
        )
        return VllmEngine(config, log, start_timeout_s=recipe.hang_timeout_s, stop=stop)


def _vllm_share(recipe: Recipe) -> float:
    """Return vLLM's share of its GPU as the plan computes it; raise KitError if it needs the GPU's size and can't."""
    shared = shares_vllm_device() and os.environ[VLLM_DEVICE] != "cpu"
    given = recipe.vllm_gpu_memory_utilization
    if given is not None or not shared:
        return given or DEFAULT_SHARE
    memory = smallest_gpu_gib(read_driver(given_devices(os.environ).ids))  # torch would reserve memory there
    try:
        return vllm_share(TrainingSetup(recipe, recipe_shape(recipe), gpu_memory_gib=memory, shared_gpu=True))
    except (UnknownShape, ValueError) as error:
        raise KitError(f"training and vLLM share one GPU: {error}: set vllm_gpu_memory_utilization") from error


class PolicyEngine:
    """The policy samples for itself, with transformers, on the device that it is trained on."""

    def __init__(
        self, world: World, eos_token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, stop: Stop = never
    ) -> None:
        self._world = world
        self._sampling: dict[str, Any] = {"eos_token_ids": eos_token_ids, "tokenizer": tokenizer, "stop": stop}
        self._sampling["pad_token_id"] = tokenizer.pad_token_id

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
    """vLLM, in child processes of rank 0: it gets the prompts of all ranks in one call, so that batches are large."""

    check: SyncCheck | None = None

    def __init__(self, world: World, vllm: VllmEngine | None, eos_token_ids: Sequence[int], stop: Stop = never) -> None:
        self._world = world
        self._vllm = vllm
        self._eos_token_ids = eos_token_ids
        self._stop = stop

    def load(self, wrapped: Any, accelerator: Accelerator) -> None:
        """Stream the weights to vLLM, an adapter merged into them; under ZeRO-3 each is gathered, sent and freed."""
        plugin = accelerator.state.deepspeed_plugin
        sharded = plugin is not None and plugin.zero_stage == 3
        model = accelerator.unwrap_model(wrapped)
        if sharded:
            import deepspeed  # late: it is installed on Linux only, and slow to import

            weights = merged_weights(model, deepspeed.zero.GatheredParameters)
        else:
            weights = merged_weights(model)
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

    def begin(self, prompts: Prompts, config: SamplingConfig, seed: int) -> None:
        """Have vLLM begin to sample for these prompts, those of all ranks, with the weights that it has."""

        def begin() -> None:
            assert self._vllm is not None
            self._vllm.begin(prompts, config, eos_token_ids=self._eos_token_ids, seed=seed)

        self._world.from_main(begin)

    def finish(self, stop: Stop) -> Finished:
        """Wait for what was begun and return it, all of it on every rank; on Stopped vLLM continues."""

        def finish() -> Finished:
            assert self._vllm is not None
            return self._vllm.finish(stop)

        return self._world.from_main(finish)


Engine = PolicyEngine | SharedEngine


class SyncCheck:
    """Compares greedy completions of the policy and of the engine that got its weights, on this rank's prompts.

    It costs a generation with transformers. With float32 weights the texts are equal to the token; 16-bit numbers round
    differently in two programs, and the texts may differ from a token on that is about as likely as another.
    """

    def __init__(self, policy: Engine, engine: Engine, prompts: Prompts) -> None:
        self._engines = policy, engine
        self._prompts = prompts
        self._before: list[list[int]] | None = None

    def __call__(self, wrapped: Any, accelerator: Accelerator) -> dict[str, float]:
        """Return `sync/equal`, the share of the prompts whose greedy texts are equal; every rank has to call it.

        From the second call on also `sync/changed`, the share whose text differs from the last call's: if nothing
        changes, the first proves nothing.
        """
        config = SamplingConfig(VERIFIED_TOKENS, temperature=0.0)
        sampled = (
            engine.sample(wrapped, accelerator, self._prompts, config, lambda rank: rank) for engine in self._engines
        )
        trained, copied = (gather_object([each.ids for each in completions]) for completions in sampled)
        found = {"sync/equal": _share_equal(trained, copied)}
        if self._before is not None:
            found["sync/changed"] = 1.0 - _share_equal(self._before, trained)
        self._before = trained
        return found


def _share_equal(first: list[list[int]], second: list[list[int]]) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
