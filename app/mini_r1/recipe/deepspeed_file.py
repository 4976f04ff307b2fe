"""DeepSpeed configurations: the shipped ones by name, a user's own by path. No torch, no DeepSpeed."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mini_r1.errors import KitError
from mini_r1.recipe.keys import did_you_mean
from mini_r1.recipe.shipped_files import shipped_files

STAGES = (2, 3)  # ZeRO stages that the kit's trainer is tested with
RECIPE_DECIDES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
"""DeepSpeed settings that the recipe decides: `auto` in every configuration."""
BUCKET, DEFAULT_BUCKET = 2 * 10**8, 5 * 10**8
"""Gradients that ZeRO-2 reduces at once, in elements: the kit's, and DeepSpeed 0.15.4's own default."""


@dataclass(frozen=True, slots=True)
class DeepSpeedFile:
    """One DeepSpeed configuration: its name or path as given, and its values."""

    name: str
    values: dict[str, Any]

    @property
    def stage(self) -> int:
        """ZeRO stage."""
        return int(self.values["zero_optimization"]["stage"])

    def offloads(self, what: str) -> bool:
        """Return whether the states of `optimizer`, or of `param`, are kept in host memory."""
        place = self.values["zero_optimization"].get(f"offload_{what}")
        return isinstance(place, dict) and place.get("device", "none") != "none"

    def fill_bucket(self, trained: int, largest: int) -> "DeepSpeedFile":
        """Return it with a number in place of ZeRO-2's automatic `reduce_bucket_size`; other stages as they are.

        `trained` is the number of trained parameters, `largest` the elements of the largest tensor.
        """
        zero = self.values["zero_optimization"]
        if self.stage != 2 or zero.get("reduce_bucket_size") != "auto":
            return self
        filled = {**zero, "reduce_bucket_size": max(largest, min(BUCKET, trained))}
        return replace(self, values={**self.values, "zero_optimization": filled})

    def warn_of_bucket(self, largest: int) -> str | None:
        """Return a warning if ZeRO-2 may reduce the largest parameter's gradient from memory that is already freed.

        DeepSpeed 0.15.4 copies gradients to its bucket, but one that is larger than the bucket is read where it is, on
        another stream, and freed meanwhile (`extra_large_param_to_reduce` in stage_1_and_2.py; deepspeed#6351).
        """
        zero = self.values["zero_optimization"]
        bucket = zero.get("reduce_bucket_size", DEFAULT_BUCKET)
        unsafe = self.stage == 2 and zero.get("overlap_comm") is True and zero.get("contiguous_gradients", True) is True
        if not unsafe or not isinstance(bucket, int | float) or bucket >= largest:
            return None
        return (
            f"DeepSpeed configuration {self.name}: reduce_bucket_size is {bucket:,.0f}, and the model's largest "
            f"parameter has {largest:,} elements; with overlap_comm DeepSpeed 0.15.4 may then use a gradient that is "
            f'already freed. Set reduce_bucket_size to "auto" or at least {largest}, or overlap_comm: false'
        )


def find_deepspeed(name_or_path: str) -> DeepSpeedFile:
    """Return a configuration given as the name of a shipped one (`zero3`) or as a path.

    Raises:
        KitError: it can't be read, its ZeRO stage is not one of STAGES, or it sets what the recipe decides.
    """
    shipped = shipped_files("deepspeed")
    path = shipped.get(name_or_path, Path(name_or_path))
    place = f"DeepSpeed configuration {path}"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = f"{did_you_mean(name_or_path, shipped)}; shipped are {', '.join(shipped)}"
        raise KitError(f"{place}: {error.strerror}{hint}, or give the path of a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise KitError(f"{place}: is not valid JSON ({error})") from error
    zero = values.get("zero_optimization") if isinstance(values, dict) else None
    if not isinstance(zero, dict) or zero.get("stage") not in STAGES:
        stages = " or ".join(map(str, STAGES))
        raise KitError(f"{place}: zero_optimization.stage must be {stages}; see configs/deepspeed")
    fixed = [key for key in RECIPE_DECIDES if values.get(key) != "auto"]
    if fixed:
        raise KitError(f'{place}: {", ".join(fixed)} must be "auto", the recipe decides it')
    if zero["stage"] == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        key = "zero_optimization.stage3_gather_16bit_weights_on_model_save"
        raise KitError(f"{place}: set {key}: true, without it a save holds no whole weights")
    return DeepSpeedFile(name_or_path, values)
