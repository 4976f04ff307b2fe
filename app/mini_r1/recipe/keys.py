"""Keys by what they mean to a run, and the errors for unknown ones."""

import difflib
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from mini_r1.machine.trackers import TRACKERS

REPORT_INTEGRATIONS: Final = tuple(sorted([*TRACKERS, "tensorboard"]))
"""Trackers with a callback in transformers 4.48.1 (`INTEGRATION_TO_CALLBACK`)."""

HARMLESS_KEYS: Final = frozenset({
    "output_dir", "run_name", "report_to",  # where results go
    "logging_strategy", "logging_steps", "logging_first_step", "save_strategy", "save_steps", "save_minutes",
    "eval_strategy", "eval_steps", "eval_on_start", "eval_problems",  # measuring draws nothing from training's stream
    "watch",
    "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo",
    "gradient_checkpointing", "gradient_checkpointing_kwargs",  # memory against time, the same gradients
    "vllm_device", "vllm_gpu_memory_utilization", "num_scheduler_steps",  # depend on the machine
    "ddp_timeout", "hang_timeout_s", "dataloader_num_workers",
})  # fmt: skip
"""Keys that may change between two attempts of a run, since they don't change what is learned."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a suggestion to append to a message, empty unless a known name is a typo away."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return next((f"; did you mean '{found}'?" for found in close if _is_typo(name, found)), "")


def _is_typo(name: str, other: str) -> bool:
    """Return whether few letters are left out, added or written wrong, or all are there in another order."""
    edits = difflib.SequenceMatcher(None, name, other).get_opcodes()
    typos = sum(max(end - start, to - begin) for kind, start, end, begin, to in edits if kind != "equal")
    return typos <= max(1, len(name) // 5) or sorted(name) == sorted(other)


@functools.cache
def foreign_keys() -> dict[str, Any]:
    """Return foreign_keys.yaml, which only an unknown key or value needs; `answers` by key."""
    found: dict[str, Any] = YAML(typ="safe").load(Path(__file__).with_name("foreign_keys.yaml"))
    return {**found, "answers": {key: group["answer"] for group in found["answers"] for key in group["keys"]}}


def unknown_key(name: str, known: Iterable[str], inside: str = "", value: object = None) -> str:
    """Return the error for a key that the recipe, or its mapping `inside`, does not have."""
    if not inside and (answer := _answer_foreign_key(name, value)):
        return f"key '{name}' {answer}"
    place = f" in '{inside}'" if inside else ""
    shown = name if len(name) <= 60 else name[:57] + "..."
    return f"unknown key '{shown}'{place}{did_you_mean(name, known)}"


def _answer_foreign_key(name: str, value: object) -> str | None:
    foreign = foreign_keys()
    if name in foreign["renamed"]:
        return f"is called '{foreign['renamed'][name]}' here"
    if name in foreign["answers"]:
        return f"is not accepted: {foreign['answers'][name]}"
    for library, names in foreign["unused"].items():
        if name in names:
            return f"is an argument of {library} that this kit does not use"
    if name in foreign["verl_groups"]:
        meant = [f"{path} is '{foreign['verl'][path]}' here" for path in _paths(name, value) if path in foreign["verl"]]
        return "; ".join(["is a group of verl's, and a recipe is flat", *meant])
    meant = [key for path, key in foreign["verl"].items() if path.rpartition(".")[2] == name]
    return f"is verl's: it is called '{meant[0]}' here" if len(set(meant)) == 1 else None


def _paths(prefix: str, value: object) -> Iterator[str]:
    """Yield the dotted paths of everything in a mapping."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _paths(f"{prefix}.{key}", below)
    else:
        yield prefix
