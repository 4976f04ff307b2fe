"""The host's memory, shared memory and disk of a run. Formulas: docs/plan.md, docs/checkpoints.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from mini_r1.plan.memory import GIB, STATE_BYTES, compute_bytes, trained_parameters, weight_bytes
from mini_r1.plan.shapes import ModelShape
from mini_r1.plan.vllm_memory import CPU_CACHE_GIB
from mini_r1.plan.zero_memory import Zero
from mini_r1.recipe.fields import Recipe
from mini_r1.run.run_dir import KEEP_CHECKPOINTS

PROCESS_GIB: Final = 3.0
"""A Python process with torch, transformers, TRL and CUDA's libraries. An allowance, not measured on a GPU."""
SHARD_GIB: Final = 4.66
"""Largest file of weights that save_pretrained writes, 5 GB: read as a whole while a model is loaded."""
OFFLOAD_BUFFER: Final = 1.5
"""What DeepSpeed's own estimator multiplies offloaded states with (`additional_buffer_factor`)."""
SHM_OF_WORKER_GIB: Final = 0.25
"""NCCL's buffers where devices cannot reach each other directly. An allowance, not measured here."""
LOG_BYTES, LOG_BYTES_PER_TOKEN = 1_500, 2
"""Of completions.jsonl for each completion: prompt and verdicts, and for each token that it may have; it has four bytes
and about half of the completions' room is used."""


@dataclass(frozen=True, slots=True)
class DiskUse:
    """What a whole run leaves on the disk, in GiB."""

    checkpoint: float
    """One of them."""
    checkpoints: float
    """The newest two, and one that is being written."""
    snapshot: float
    """One of them."""
    snapshots: float
    """One for every save: the kit deletes none of them."""
    completions: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.checkpoints + self.snapshots + self.completions

    def to_dict(self) -> dict[str, float]:
        """For --json."""
        names = ("checkpoint", "checkpoints", "snapshot", "snapshots", "completions", "total")
        return {name: round(getattr(self, name), 3) for name in names}


def disk_use(recipe: Recipe, shape: ModelShape, zero: Zero, steps: int | None, completions_per_step: int) -> DiskUse:
    """Disk of a run.

    A checkpoint has the trained weights and their optimizer states. ZeRO's shards are float32 weights and moments; on
    top are the 16-bit weights, under ZeRO-2 twice (DeepSpeed's and transformers').

    Args:
        recipe: how often it saves.
        shape: of the model.
        zero: DeepSpeed's settings.
        steps: of the run; None counts one save.
        completions_per_step: logged, all of them.
    """
    trained = trained_parameters(recipe, shape)
    own = 4 if recipe.use_peft else weight_bytes(recipe, shape)
    state = STATE_BYTES[recipe.optim]
    if zero.stage:
        own = 2 if recipe.bf16 or recipe.fp16 else own
        each = 4 + (8.0 if state is None else state) + own * (2 if zero.stage == 2 else 1)
    else:
        each = own + (2 * own if state is None else state)
    saves = 1 if recipe.save_strategy == "no" or steps is None else math.ceil(steps / recipe.save_steps)
    checkpoint, snapshot = trained * each / GIB, trained * 2 / GIB
    each_logged = LOG_BYTES + LOG_BYTES_PER_TOKEN * recipe.max_completion_length
    return DiskUse(
        checkpoint=checkpoint,
        checkpoints=checkpoint * min(saves, KEEP_CHECKPOINTS + 1),
        snapshot=snapshot,
        snapshots=snapshot * saves,
        completions=(steps or 0) * completions_per_step * each_logged / GIB,
    )


def host_memory_gib(
    recipe: Recipe, shape: ModelShape, zero: Zero, *, workers: int, all_workers: int, training_gib: float | None
) -> float:
    """Of node 0, the one with rank 0 and vLLM.

    While models are loaded, each worker has its own, the reference's copy and a file of the weights. Later there are
    offloaded states, and the 16-bit weights that rank 0 gathers for a snapshot.

    Args:
        recipe: what runs.
        shape: of its model.
        zero: DeepSpeed's settings.
        workers: on this node.
        all_workers: over all nodes.
        training_gib: on a CPU, a worker's table: it lives in the host's memory; None on a GPU.
    """
    weights = shape.parameters * weight_bytes(recipe, shape) / GIB
    copies = 2 if recipe.beta and not recipe.use_peft else 1
    loading = workers * (weights * copies + min(SHARD_GIB, shape.parameters * 2 / GIB))
    states = trained_parameters(recipe, shape) * 2 / GIB
    share = shape.parameters / all_workers * workers / GIB
    if zero.offload_optimizer:
        states += 16 * share * OFFLOAD_BUFFER
    if zero.offload_weights:
        states += 2 * share * copies * OFFLOAD_BUFFER
    if training_gib is not None:
        states += workers * training_gib
    base = workers * (PROCESS_GIB if training_gib is None else 1.0)
    vllm = PROCESS_GIB if recipe.use_vllm else 0.0
    if recipe.use_vllm and training_gib is not None:
        vllm += CPU_CACHE_GIB + shape.parameters * compute_bytes(recipe, shape) / GIB
    return base + max(loading, states) + vllm


def shared_memory_gib(recipe: Recipe, shape: ModelShape, *, workers: int, on_cpu: bool) -> float:
    """Of /dev/shm: the largest tensor on its way to vLLM, and NCCL's buffers."""
    weights = shape.embedding_parameters * weight_bytes(recipe, shape) / GIB if recipe.use_vllm else 0.0
    return weights + (SHM_OF_WORKER_GIB * workers if workers > 1 and not on_cpu else 0.0)
