"""Memory of the device that vLLM 0.7.0 generates on, and how many sequences its cache holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mini_r1.plan.memory import CONTEXT_GIB, GIB, MemoryItem, kv_bytes_per_token
from mini_r1.plan.training_setup import TrainingSetup

BLOCK: Final = 16
"""Tokens of a block of vLLM's cache: a sequence takes whole blocks (arXiv:2309.06180, section 4)."""
MAX_SEQUENCES: Final = 256
"""Sequences decoded at once: vLLM 0.7.0's default of max_num_seqs."""
PROFILED_TOKENS: Final = 2048
"""Least tokens of the forward pass by which vLLM 0.7.0 measures its activations (max_num_batched_tokens)."""
GRAPHS_GIB: Final = 1.0
"""Captured CUDA graphs, outside of vllm_gpu_memory_utilization. An allowance, not measured here."""
CPU_CACHE_GIB: Final = 1.0
"""Size of the cache on a CPU, VLLM_CPU_KVCACHE_SPACE."""
HEAD_SIZES_GPU: Final = (32, 64, 80, 96, 112, 120, 128, 160, 192, 224, 256)
"""Head sizes of vLLM 0.7.0's FlashAttention backend and of PagedAttention, which it falls back to."""
HEAD_SIZES_CPU: Final = (32, 64, 80, 96, 112, 128, 192, 256)
"""Head sizes that vLLM 0.7.0's csrc/cpu/attention.cpp is compiled for."""


@dataclass(frozen=True, slots=True)
class VllmMemory:
    """The memory table of vLLM's device; with unknown memory the items lack the cache."""

    items: tuple[MemoryItem, ...]
    available_gib: float | None
    sequences: int | None
    """Sequences of max_prompt_length + max_completion_length that the cache holds; None with unknown memory."""

    @property
    def total_gib(self) -> float:
        """Memory of all items."""
        return sum(item.bytes for item in self.items) / GIB

    def to_dict(self) -> dict[str, object]:
        """Return the table for --json."""
        return {
            "items": {item.name: round(item.bytes / GIB, 2) for item in self.items},
            "total": round(self.total_gib, 2),
            "available": self.available_gib,
            "sequences_that_fit": self.sequences,
        }


def vllm_memory(setup: TrainingSetup) -> VllmMemory:
    """Return vLLM's memory table.

    vLLM takes `vllm_gpu_memory_utilization` of the device; what weights and activations leave of that is its cache.
    """
    shape, each, available = setup.shape, setup.compute_bytes, setup.gpu_memory_gib
    length = setup.recipe.longest_sequence
    tokens = max(PROFILED_TOKENS, length)
    # The forward pass that it profiles: gate, up and product, residual and norm; logits of every sequence in float32.
    activations = tokens * each * (3 * shape.intermediate + 4 * shape.hidden) + MAX_SEQUENCES * shape.vocabulary * 12
    items = [MemoryItem("weights", shape.parameters * each), MemoryItem("activations", activations)]
    cache: float | None = None
    if setup.on_cpu:
        cache = CPU_CACHE_GIB * GIB
    else:
        items.append(MemoryItem("CUDA context", CONTEXT_GIB * GIB))
        if available is not None:
            share = setup.recipe.vllm_gpu_memory_utilization * available * GIB
            cache = max(0.0, share - sum(item.bytes for item in items))
        items.append(MemoryItem("CUDA graphs", GRAPHS_GIB * GIB))
    if cache is None:
        return VllmMemory(tuple(items), available, None)
    items.append(MemoryItem("key-value cache", cache))
    whole_blocks = -(-length // BLOCK) * BLOCK
    return VllmMemory(tuple(items), available, int(cache // (whole_blocks * kv_bytes_per_token(shape, each))))


def head_sizes(on_cpu: bool) -> tuple[int, ...]:
    """Return the sizes of attention heads that vLLM 0.7.0 can run."""
    return HEAD_SIZES_CPU if on_cpu else HEAD_SIZES_GPU
