"""What a DeepSpeed configuration means for memory: who holds which state, and how large its buffers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mini_r1.plan.shapes import ModelShape
from mini_r1.recipe.deepspeed_file import DeepSpeedFile

LIVE, SUB_GROUP, BUCKET, PREFETCH = 10**9, 10**9, 5 * 10**8, 5 * 10**7
"""Elements; DeepSpeed 0.15.4's defaults of stage3_max_live_parameters, sub_group_size, reduce_bucket_size and
stage3_prefetch_bucket_size (runtime/zero/config.py)."""


IN_ORDER: Final = ("zero2", "zero3", "zero3-offload")
"""The shipped configurations, fastest first: each one after it shares more, and sends more."""


@dataclass(frozen=True, slots=True)
class Zero:
    """ZeRO's settings; sizes in elements.

    Attributes:
        stage: 0 without DeepSpeed; 2 shards gradients and optimizer, 3 the weights too (arXiv:1910.02054, section 5).
        offload_optimizer: optimizer states and float32 weights are in the host's memory.
        offload_weights: so are the shards of the weights.
        bucket: gradients reduced at once.
        buckets: of them at a time: two where reducing overlaps with the backward pass.
        live: weights of stage 3 that are kept whole, at most, prefetched ones included.
        sub_group: weights of stage 3 that the optimizer updates at once.
    """

    stage: int = 0
    offload_optimizer: bool = False
    offload_weights: bool = False
    bucket: int = 0
    buckets: int = 1
    live: int = 0
    sub_group: int = SUB_GROUP


NO_ZERO = Zero()


def zero_of(file: DeepSpeedFile, shape: ModelShape) -> Zero:
    """The settings of a configuration; "auto" is what transformers 4.48.1 makes of it, from the model's width."""
    values = file.values["zero_optimization"]
    square = shape.hidden**2  # HfTrainerDeepSpeedConfig.trainer_config_finalize
    live = _number(values, "stage3_max_live_parameters", LIVE, LIVE)
    prefetch = _number(values, "stage3_prefetch_bucket_size", PREFETCH, int(0.9 * square))
    return Zero(
        stage=file.stage,
        offload_optimizer=_offloaded(values, "offload_optimizer"),
        offload_weights=_offloaded(values, "offload_param"),
        bucket=_number(values, "reduce_bucket_size", BUCKET, square),
        buckets=2 if values.get("overlap_comm", file.stage == 3) else 1,
        live=live + prefetch if file.stage == 3 else 0,
        sub_group=_number(values, "sub_group_size", SUB_GROUP, SUB_GROUP),
    )


def _number(values: Mapping[str, Any], key: str, default: int, auto: int) -> int:
    value = values.get(key, default)
    if value == "auto":
        return auto
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else default


def _offloaded(values: Mapping[str, Any], key: str) -> bool:
    place = values.get(key)
    return isinstance(place, dict) and place.get("device", "none") != "none"
