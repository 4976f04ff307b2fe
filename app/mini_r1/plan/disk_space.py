"""The host's memory, shared memory and disk of a run. Formulas: docs/plan.md, docs/checkpoints.md."""

import math
from dataclasses import asdict, dataclass
from typing import Final

from mini_r1.machine.weight_block import block_bytes
from mini_r1.plan.memory import CPU_CACHE_GIB, training_memory
from mini_r1.plan.training_setup import TrainingSetup
from mini_r1.run.run_dir import KEEP_CHECKPOINTS
from mini_r1.values import GIB

PROCESS_GIB: Final = 3.0
"""A Python process with torch, transformers, TRL and CUDA's libraries. An allowance, not measured on a GPU."""
SHARD_GIB: Final = 4.66
"""Largest file of weights that save_pretrained writes, 5 GB: read as a whole while a model is loaded."""
OFFLOAD_BUFFER: Final = 1.5  # factor of DeepSpeed's own estimator for offloaded states (`additional_buffer_factor`)
WORKER_SHM_GIB: Final = 0.25
"""NCCL's buffers if devices cannot reach each other directly. An allowance, not measured here."""
LOG_BYTES, LOG_BYTES_PER_TOKEN = 1_500, 2
"""Bytes of completions.jsonl per completion: prompt and verdicts, and for each token of its limit. A token has four
bytes, and completions use about half of their limit."""


@dataclass(frozen=True, slots=True)
class DiskUse:
    """What a whole run leaves on the disk, in GiB."""

    checkpoint: float
    checkpoints: float  # the kept ones, and one that is being written
    snapshot: float
    snapshots: float  # one for every save: the kit deletes none of them
    completions: float

    @property
    def total(self) -> float:
        return self.checkpoints + self.snapshots + self.completions

    def to_dict(self) -> dict[str, float]:
        return {name: round(size, 3) for name, size in {**asdict(self), "total": self.total}.items()}


def disk_use(setup: TrainingSetup, steps: int | None) -> DiskUse:
    """Return the disk that a run needs; an unknown number of steps counts one save.

    A checkpoint has the trained weights and their optimizer states. ZeRO's shards are float32 weights and moments;
    ZeRO-2 adds the 16-bit weights.
    """
    recipe, trained, stage = setup.recipe, setup.trained_parameters, setup.zero.stage
    own = 4 if recipe.use_peft else setup.weight_bytes
    if stage:
        own = 2 if setup.autocast else own
        each = 4 + setup.state_bytes(4) + (own if stage == 2 else 0)
    else:
        each = own + setup.state_bytes(own)
    saves = 1 if recipe.save_strategy == "no" or steps is None else math.ceil(steps / recipe.save_every(steps))
    checkpoint, snapshot = trained * each / GIB, trained * 2 / GIB
    completions = (steps or 0) * setup.workers * setup.completions_per_worker
    return DiskUse(
        checkpoint=checkpoint,
        checkpoints=checkpoint * min(saves, KEEP_CHECKPOINTS + 1),
        snapshot=snapshot,
        snapshots=snapshot * saves,
        completions=completions * (LOG_BYTES + LOG_BYTES_PER_TOKEN * recipe.max_completion_length) / GIB,
    )


def host_memory_gib(setup: TrainingSetup, workers: int) -> float:
    """Return the host memory that node 0 needs, the node with rank 0 and vLLM, with its number of workers.

    While models are loaded, each worker has its own, the reference's copy and a file of the weights. Later there are
    offloaded states, and the 16-bit weights that rank 0 gathers for a snapshot. With vLLM there is the block that
    weights go to it through. On a CPU the workers' memory tables are in the host's memory.
    """
    parameters, on_cpu, zero = setup.shape.parameters, setup.on_cpu, setup.zero
    copies = 2 if setup.reference_parameters else 1
    loading = workers * (parameters * setup.weight_bytes / GIB * copies + min(SHARD_GIB, parameters * 2 / GIB))
    states = setup.trained_parameters * 2 / GIB
    share = parameters / setup.workers * workers / GIB
    if zero.offload_optimizer:
        states += 16 * share * OFFLOAD_BUFFER
    if zero.offload_weights:
        states += 2 * share * copies * OFFLOAD_BUFFER
    if on_cpu:
        states += workers * training_memory(setup).total_gib
    base = workers * (1.0 if on_cpu else PROCESS_GIB)
    vllm = 0.0
    if setup.recipe.use_vllm:
        each = PROCESS_GIB + (CPU_CACHE_GIB + parameters * setup.compute_bytes / GIB if on_cpu else 0.0)
        vllm = each * setup.vllm_devices + sync_block_gib(setup)
    return base + max(loading, states) + vllm


def sync_block_gib(setup: TrainingSetup) -> float:
    """Return the page-locked memory that weights go to vLLM through; the embedding is the largest tensor."""
    quantized = setup.recipe.load_in_4bit or setup.recipe.load_in_8bit  # peft keeps its embedding in float32
    return block_bytes(setup.shape.embedding_parameters * (4 if quantized else setup.weight_bytes)) / GIB


def shared_memory_gib(setup: TrainingSetup, workers: int) -> float:
    """Return the size of node 0's /dev/shm: NCCL's buffers. The weights' block is anonymous memory."""
    return WORKER_SHM_GIB * workers if workers > 1 and not setup.on_cpu else 0.0
