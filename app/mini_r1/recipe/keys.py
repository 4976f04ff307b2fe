"""Keys by what they mean to a run, and the errors for unknown ones."""

import difflib
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from mini_r1.machine.trackers import TRACKERS

REPORT_INTEGRATIONS: Final = tuple(sorted([*TRACKERS, "tensorboard"]))
"""Trackers with a callback in transformers 4.48.1 (`INTEGRATION_TO_CALLBACK`)."""

LATER_TRL_PREFIXES: Final = ("ref_model_", "vllm_server_")
"""Beginnings of keys that TRL 0.14.0 does not have."""

HARMLESS_KEYS: Final = frozenset({
    "output_dir", "run_name", "report_to",  # where results go
    "logging_strategy", "logging_steps", "logging_first_step", "save_strategy", "save_steps", "save_minutes",
    "eval_strategy", "eval_steps", "eval_on_start", "eval_problems",  # measuring draws nothing from training's stream
    "watch",
    "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo",
    "gradient_checkpointing", "gradient_checkpointing_kwargs",  # memory against time, the same gradients
    "vllm_device", "vllm_gpu_memory_utilization",  # depend on the machine
    "ddp_timeout", "hang_timeout_s", "dataloader_num_workers",
})  # fmt: skip
"""Keys that may change between two attempts of a run, since they don't change what is learned."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a suggestion to append to a message, empty if nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


@functools.cache
def foreign_keys() -> dict[str, Any]:
    """Return foreign_keys.yaml, which only an unknown key or value needs."""
    return dict(YAML(typ="safe").load(Path(__file__).with_name("foreign_keys.yaml")))


def unknown_key(name: str, known: Iterable[str], inside: str = "") -> str:
    """Return the error for a key that the recipe, or its mapping `inside`, does not have."""
    if not inside:
        foreign = foreign_keys()
        if name in foreign["answers"]:
            return f"key '{name}' is not accepted: {foreign['answers'][name]}"
        if name in foreign["later_trl"] or name.startswith(LATER_TRL_PREFIXES):
            hint = "; write weights under 'rewards'" if name == "reward_weights" else ""
            return f"unknown key '{name}': TRL 0.15 or later has it, the pinned TRL is 0.14.0{hint}"
        for library in ("transformers", "TRL"):
            if name in foreign[f"unused_{library.lower()}"]:
                return f"key '{name}' is a {library} argument that this kit does not use"
    place = f" in '{inside}'" if inside else ""
    shown = name if len(name) <= 60 else name[:57] + "..."
    return f"unknown key '{shown}'{place}{did_you_mean(name, known)}"
