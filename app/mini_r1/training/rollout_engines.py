"""Where a rollout's completions come from: the policy itself on every rank, or vLLM for all ranks at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from trl.models import unwrap_model_for_generation

from mini_r1.generation.sampler import SamplingConfig, Stop, never, sample
from mini_r1.generation.vllm_client import VllmEngine
from mini_r1.training.world import World

SeedOfRank = Callable[[int], int]
"""The seed that a rank samples with; where one process samples for all, rank 0's."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One completion as it was sampled."""

    ids: list[int]
    logps: list[float] | None = None
    """Log-probability of each token at the sampling temperature, where another program than the trainer drew it."""


class Engine(Protocol):
    """What the trainer asks for completions. Every rank makes every call, with prompts of its own."""

    separate: bool
    """Whether it has weights of its own, which `load` has to bring up to date."""

    def load(self, model_wrapped: Any, accelerator: Accelerator) -> None:
        """Take over the policy's weights."""

    def sample(
        self,
        model_wrapped: Any,
        accelerator: Accelerator,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        seed: SeedOfRank,
    ) -> list[Sampled]:
        """Return completions of this rank's prompts, the generations of one prompt next to one another.

        Raises:
            Stopped: on every rank, when any of them was asked to stop.
        """


class PolicyEngine:
    """The policy samples for itself, with transformers, on the device that it is trained on.

    Args:
        world: this process among the workers.
        eos_token_ids: tokens that end a completion.
        pad_token_id: of the tokenizer.
        stop: asked before each token.
    """

    separate = False

    def __init__(self, world: World, eos_token_ids: Sequence[int], pad_token_id: int, stop: Stop = never) -> None:
        self._world = world
        self._eos_token_ids = eos_token_ids
        self._pad_token_id = pad_token_id
        self._stop = stop

    def load(self, model_wrapped: Any, accelerator: Accelerator) -> None:
        """Nothing: it samples from the very weights that are trained."""

    def sample(
        self,
        model_wrapped: Any,
        accelerator: Accelerator,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        seed: SeedOfRank,
    ) -> list[Sampled]:
        """See `Engine`. Under ZeRO-3 every rank holds the whole weights meanwhile."""

        def own() -> list[list[int]]:
            if not prompts:  # an evaluation of fewer problems than ranks; the weights were gathered with the others
                return []
            return sample(
                model,
                prompts,
                config,
                eos_token_ids=self._eos_token_ids,
                pad_token_id=self._pad_token_id,
                seed=seed(self._world.rank),
                stop=self._stop,
            )

        with unwrap_model_for_generation(model_wrapped, accelerator) as model:
            completions = self._world.unless_stopped(own)
        return [Sampled(ids) for ids in completions]


class SharedEngine:
    """vLLM, rank 0's child process: it gets the prompts of all ranks in one call, so that its batch is never small.

    Args:
        world: this process among the workers.
        vllm: on rank 0 the engine, None on the others.
        eos_token_ids: tokens that end a completion.
        stop: rank 0 asks it while vLLM generates.
    """

    separate = True

    def __init__(self, world: World, vllm: VllmEngine | None, eos_token_ids: Sequence[int], stop: Stop = never) -> None:
        self._world = world
        self._vllm = vllm
        self._eos_token_ids = eos_token_ids
        self._stop = stop

    def load(self, model_wrapped: Any, accelerator: Accelerator) -> None:
        """Stream the weights to vLLM, one tensor at a time; under ZeRO-3 each is gathered, sent and let go of.

        Raises:
            KitError: vLLM's process is gone or refused a tensor; on every rank.
        """
        plugin = accelerator.state.deepspeed_plugin
        sharded = plugin is not None and plugin.zero_stage == 3
        weights = _weights(accelerator.unwrap_model(model_wrapped), sharded)
        if not self._world.main and sharded:
            for _ in weights:
                pass
        self._world.from_main(lambda: self._send(weights))

    def _send(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        assert self._vllm is not None
        try:
            self._vllm.load_weights(weights)
        finally:
            for _ in weights:  # after an error: the other ranks gather every weight, and would wait for this one
                pass

    def sample(
        self,
        model_wrapped: Any,
        accelerator: Accelerator,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        seed: SeedOfRank,
    ) -> list[Sampled]:
        """See `Engine`.

        Raises:
            KitError: vLLM's process is gone; on every rank.
        """
        of_ranks: list[Sequence[Sequence[int]]] = gather_object([list(prompts)])
        completions = self._world.from_main(lambda: self._generate(of_ranks, config, seed(0)))
        first = config.num_generations * sum(map(len, of_ranks[: self._world.rank]))
        return completions[first : first + config.num_generations * len(prompts)]

    def _generate(
        self, of_ranks: Sequence[Sequence[Sequence[int]]], config: SamplingConfig, seed: int
    ) -> list[Sampled]:
        assert self._vllm is not None
        prompts = [list(prompt) for of_rank in of_ranks for prompt in of_rank]
        generated = self._vllm.generate(prompts, config, eos_token_ids=self._eos_token_ids, seed=seed, stop=self._stop)
        return [Sampled(each.ids, each.logps) for each in generated]


def _weights(model: Any, sharded: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and whole weight of each parameter; a weight is whole only until the next one is asked for."""
    for name, parameter in model.named_parameters():
        with _gathered(parameter) if sharded else nullcontext():
            yield name, parameter.detach()


def _gathered(parameter: torch.nn.Parameter) -> Any:
    import deepspeed  # late: it is installed on Linux only, and slow to import

    return deepspeed.zero.GatheredParameters([parameter])
