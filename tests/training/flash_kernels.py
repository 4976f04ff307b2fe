"""Stand-ins for flash-attn's kernels, which need a GPU: plain attention with the same arguments."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import modeling_flash_attention_utils


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **settings: Any) -> torch.Tensor:
    """Stand-in for `flash_attn_func`: (B, S, heads, size), with fewer heads of keys and values."""
    assert settings["causal"]
    groups = query.shape[2] // key.shape[2]
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    scale = settings["softmax_scale"]
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale).transpose(1, 2)


def ragged(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens_q: torch.Tensor, **settings: Any
) -> torch.Tensor:
    """Stand-in for `flash_attn_varlen_func`: (T, heads, size), each sequence by itself."""
    ends = cu_seqlens_q.tolist()
    assert ends == settings["cu_seqlens_k"].tolist()
    longest = max(end - start for start, end in pairwise(ends))
    assert int(settings["max_seqlen_q"]) == int(settings["max_seqlen_k"]) == longest
    rows = [slice(start, end) for start, end in pairwise(ends)]
    return torch.cat([dense(query[None, r], key[None, r], value[None, r], **settings)[0] for r in rows])


def replace_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers call the stand-ins."""
    monkeypatch.setattr(modeling_flash_attention_utils, "flash_attn_func", dense, raising=False)
    monkeypatch.setattr(modeling_flash_attention_utils, "flash_attn_varlen_func", ragged, raising=False)
    monkeypatch.setattr(modeling_flash_attention_utils, "_flash_supports_window_size", True, raising=False)
