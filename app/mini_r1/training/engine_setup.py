"""Which engine samples for a recipe: started, and checked where the environment wants that."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from mini_r1.generation.prompts import token_ids
from mini_r1.generation.sampler import Stop
from mini_r1.generation.vllm_client import EngineConfig, VllmEngine
from mini_r1.recipe.fields import Recipe
from mini_r1.training import verify_sync
from mini_r1.training.prepare import Policy
from mini_r1.training.rollout_engines import Engine, PolicyEngine, SharedEngine
from mini_r1.training.world import World

VLLM_DEVICE = "MINI_R1_VLLM_DEVICE"
"""Where the launcher says, to rank 0, which device vLLM has: `cpu`, or what its CUDA_VISIBLE_DEVICES is to be."""


def start_engine(
    recipe: Recipe,
    policy: Policy,
    eos_token_ids: Sequence[int],
    world: World,
    log: Path,
    stack: ExitStack,
    stop: Stop,
) -> Engine:
    """What samples completions; vLLM's process is rank 0's child, and gone when the stack is closed.

    Args:
        recipe: says whether it is vLLM.
        policy: the model that is trained.
        eos_token_ids: tokens that end a completion.
        world: this process among the workers; every one has to call.
        log: where vLLM's own messages go.
        stack: closed at the end of the run.
        stop: asked while vLLM starts, and in every rollout.

    Raises:
        KitError: vLLM does not start.
        Stopped: `stop` returned true on rank 0; on every rank.
    """
    if not recipe.use_vllm:
        return PolicyEngine(world, eos_token_ids, policy.tokenizer.pad_token_id, stop)
    vllm: list[VllmEngine] = []
    world.from_main(lambda: vllm.append(stack.enter_context(_start_vllm(recipe, policy, log, stop))))
    return SharedEngine(world, vllm[0] if vllm else None, eos_token_ids, stop)


def sync_check(
    engine: Engine, policy: Policy, eos_token_ids: Sequence[int], world: World, prompts: Sequence[str]
) -> verify_sync.SyncCheck | None:
    """What compares the engine's weights with the trained ones, where the environment wants that."""
    if not (engine.separate and verify_sync.wanted()):
        return None
    own = PolicyEngine(world, eos_token_ids, policy.tokenizer.pad_token_id)
    return verify_sync.SyncCheck(own, engine, token_ids(policy.tokenizer, prompts))


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
