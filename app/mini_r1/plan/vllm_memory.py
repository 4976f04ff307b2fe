"""Memory of the device that vLLM 0.7.0 generates on, and how many sequences its cache holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mini_r1.plan.memory import CONTEXT_GIB, GIB, Item, compute_bytes, kv_bytes_per_token
from mini_r1.plan.shapes import ModelShape
from mini_r1.recipe.fields import Recipe

BLOCK: Final = 16
"""Tokens of a block of vLLM's cache: a sequence takes whole blocks (arXiv:2309.06180, section 4)."""
MAX_SEQUENCES: Final = 256
"""Sequences decoded at once: vLLM 0.7.0's default of max_num_seqs."""
PROFILED_TOKENS: Final = 2048
"""Least tokens of the forward pass by which vLLM 0.7.0 measures its activations (max_num_batched_tokens)."""
GRAPHS_GIB: Final = 1.0
"""Captured CUDA graphs, outside of vllm_gpu_memory_utilization. An allowance, not measured here."""
CPU_CACHE_GIB: Final = 1.0
"""On a CPU the cache has a size of its own, VLLM_CPU_KVCACHE_SPACE."""
HEAD_SIZES_GPU: Final = (32, 64, 80, 96, 112, 120, 128, 160, 192, 224, 256)
"""Of vLLM 0.7.0's FlashAttention backend, and of PagedAttention, which it falls back to."""
HEAD_SIZES_CPU: Final = (32, 64, 80, 96, 112, 128, 192, 256)
"""That vLLM 0.7.0's csrc/cpu/attention.cpp is compiled for."""


@dataclass(frozen=True, slots=True)
class VllmMemory:
    """vLLM's table.

    Attributes:
        items: what it holds; the cache is what is left of its share.
        available_gib: the device's memory; None where it is not known, and then there is no cache in the items.
        sequences: how many of max_prompt_length + max_completion_length the cache holds; None with unknown memory.
    """

    items: tuple[Item, ...]
    available_gib: float | None
    sequences: int | None

    @property
    def total_gib(self) -> float:
        """All items."""
        return sum(item.bytes for item in self.items) / GIB

    def to_dict(self) -> dict[str, object]:
        """For --json."""
        return {
            "items": {item.name: round(item.bytes / GIB, 2) for item in self.items},
            "total": round(self.total_gib, 2),
            "available": self.available_gib,
            "sequences_that_fit": self.sequences,
        }


def vllm_memory(recipe: Recipe, shape: ModelShape, *, available_gib: float | None, on_cpu: bool) -> VllmMemory:
    """vLLM takes `vllm_gpu_memory_utilization` of the device; what weights and activations leave of it is its cache.

    Args:
        recipe: what is generated.
        shape: of its model.
        available_gib: the device's memory.
        on_cpu: see CPU_CACHE_GIB.
    """
    each = compute_bytes(recipe, shape)
    length = recipe.longest_sequence
    weights = shape.parameters * each
    tokens = max(PROFILED_TOKENS, length)
    # The forward pass that it profiles: gate, up and product, residual and norm; logits of every sequence in float32.
    activations = tokens * each * (3 * shape.intermediate + 4 * shape.hidden) + MAX_SEQUENCES * shape.vocabulary * 12
    items = [Item("weights", weights), Item("activations", activations)]
    cache: float | None = None
    if on_cpu:
        cache = CPU_CACHE_GIB * GIB
    else:
        items.append(Item("CUDA context", CONTEXT_GIB * GIB))
        if available_gib is not None:
            share = recipe.vllm_gpu_memory_utilization * available_gib * GIB
            cache = max(0.0, share - sum(item.bytes for item in items))
        items.append(Item("CUDA graphs", GRAPHS_GIB * GIB))
    if cache is not None:
        items.append(Item("key-value cache", cache))
    whole_blocks = -(-length // BLOCK) * BLOCK
    fit = None if cache is None else int(cache // (whole_blocks * kv_bytes_per_token(shape, each)))
    return VllmMemory(tuple(items), available_gib, fit)


def head_sizes(on_cpu: bool) -> tuple[int, ...]:
    """The attention heads that vLLM 0.7.0 can do."""
    return HEAD_SIZES_CPU if on_cpu else HEAD_SIZES_GPU
