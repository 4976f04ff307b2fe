"""What cannot be measured on one GPU without vLLM: an estimate from the plan's own stated figures (docs/plan.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import _common  # noqa: F401  (the path of the kit)
from mini_r1.plan.memory import kv_bytes_per_token
from mini_r1.plan.timing import BANDWIDTH_SHARE, GPU_CLASSES, PREFILL_SHARE, VLLM_ROW_S, VLLM_TOKEN_S

H100 = GPU_CLASSES[0]
BYTES = 2
"""Bytes of a weight and of a value in the cache: bfloat16."""


def vllm_rollout(shape: Any, lengths: Sequence[int], prompt: int) -> float:
    """Seconds of one call of vLLM 0.7.0's V0 engine: the plan's figures, token by token over the real lengths.

    Each decoding step reads the weights and the cache of the rows that still run at BANDWIDTH_SHARE of the bandwidth,
    and costs the host VLLM_TOKEN_S and VLLM_ROW_S a row; a prompt is read for each of its completions.

    Args:
        shape: of the model.
        lengths: of the call's completions, in tokens.
        prompt: tokens of a prompt.
    """
    weights, each = shape.parameters * BYTES, kv_bytes_per_token(shape, BYTES)
    seconds = 2 * shape.parameters * prompt * len(lengths) / (H100.flops * PREFILL_SHARE)
    for token in range(max(lengths)):
        running = sum(length > token for length in lengths)
        read = weights + running * (prompt + token) * each
        seconds += read / (H100.bandwidth * BANDWIDTH_SHARE) + VLLM_TOKEN_S + VLLM_ROW_S * running
    return seconds


def flops_share(shape: Any, tokens: int, seconds: float, each: int) -> float:
    """Share of the H100's dense bfloat16 peak: `each` x parameters x tokens, 2 forward (arXiv:2001.08361)."""
    return float(each * shape.parameters * tokens / seconds / H100.flops) if seconds else 0.0
