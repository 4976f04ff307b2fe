"""DeepSpeed configurations: the shipped ones by name, a user's own by path. No torch, no DeepSpeed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_r1.errors import KitError
from mini_r1.recipe.keys import did_you_mean
from mini_r1.recipe.shipped_files import shipped_files

STAGES = (2, 3)  # ZeRO stages that the kit's trainer is tested with
RECIPE_DECIDES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
"""DeepSpeed settings that the recipe decides: `auto` in every configuration."""


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
