"""Kinds of model that came after the pinned transformers: a table and its sentence, for planning and for loading."""

from __future__ import annotations

from typing import Final

TRANSFORMERS: Final = "4.48.1"
"""The pinned version, which the table was made against."""

_LATER: Final = {
    "4.49.0": ("granitemoeshared", "helium", "qwen2_5_vl", "zamba2"),
    "4.50.0": ("gemma3", "gemma3_text", "mistral3"),
    "4.51.0": ("deepseek_v3", "llama4", "llama4_text", "phi4_multimodal", "qwen3", "qwen3_moe"),
    "4.51.3": ("glm4",),
    "4.53.0": ("arcee", "dots1", "falcon_h1", "gemma3n", "gemma3n_text", "minimax", "smollm3"),
    "4.54.0": ("deepseek_v2", "ernie4_5", "ernie4_5_moe", "exaone4", "glm4_moe", "lfm2"),
    "4.55.0": ("gpt_oss",),
    "4.56.0": ("apertus", "hunyuan_v1_dense", "hunyuan_v1_moe", "seed_oss"),
    "4.57.0": ("ministral", "olmo3", "qwen3_next", "qwen3_vl", "qwen3_vl_moe"),
}
FIRST_VERSION: Final = {kind: version for version, kinds in _LATER.items() for kind in kinds}
"""The first transformers release whose `CONFIG_MAPPING_NAMES` has a model_type that 4.48.1 lacks.

Read from the released packages: each kind is in the version named and in no release before it.
"""

_FAMILIES: Final = {
    "qwen3": "qwen3",
    "gemma-3": "gemma3",
    "llama-4": "llama4",
    "smollm3": "smollm3",
    "gpt-oss": "gpt_oss",
}
"""How a repository's name begins whose models are all of a later kind; names of other families say less."""


def unknown_kind(name: str, kind: str, why: str) -> str:
    """The sentence for a model of a kind that the pinned transformers does not know.

    Args:
        name: of the model.
        kind: its model_type.
        why: what is said of kinds that are not in the table.
    """
    if kind in FIRST_VERSION:
        why = f"transformers {FIRST_VERSION[kind]} was the first that does"
    return (
        f"{name} is a '{kind}' model; transformers {TRANSFORMERS}, which this kit is pinned to, does not know it: "
        f"{why}. Use a model of a known kind, e.g. Qwen2.5"
    )


def later_kind_by_name(name: str) -> str | None:
    """The later kind that a hub name speaks of (`Qwen/Qwen3-1.7B`), where there is no config.json to read."""
    repository = name.rsplit("/", 1)[-1].lower()
    return next((kind for beginning, kind in _FAMILIES.items() if repository.startswith(beginning)), None)
