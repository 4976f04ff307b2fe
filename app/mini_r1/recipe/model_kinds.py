"""Model types that are newer than the pinned transformers, and the error for them."""

from typing import Final

from mini_r1.errors import KitError

TRANSFORMERS: Final = "4.48.1"  # pinned version

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
"""First transformers release whose `CONFIG_MAPPING_NAMES` has the model_type, read from the released packages."""

_FAMILIES: Final = {
    "qwen3": "qwen3", "gemma-3": "gemma3", "llama-4": "llama4", "smollm3": "smollm3", "gpt-oss": "gpt_oss",
}  # fmt: skip
"""Beginnings of repository names whose models all have a newer type."""
ADAPTER_REFUSED: Final = (
    "{} is an adapter and is not trained further: train its base model, or merge the two (peft's merge_and_unload) and "
    "train the result"
)


def unknown_kind(name: str, kind: str, why: str) -> str:
    """Return the error for a model type that the pinned transformers doesn't know; `why` is for types not listed."""
    if kind in FIRST_VERSION:
        why = f"transformers {FIRST_VERSION[kind]} was the first that does"
    return (
        f"{name} is a '{kind}' model; transformers {TRANSFORMERS}, which this kit is pinned to, does not know it: "
        f"{why}. Use a model of a known kind, e.g. Qwen2.5"
    )


def refuse_later_kind(name: str, kind: object) -> None:
    """Raise a KitError for a model type that is newer than the pinned transformers."""
    if isinstance(kind, str) and kind in FIRST_VERSION:
        raise KitError(unknown_kind(name, kind, ""))


def later_kind_by_name(name: str) -> str | None:
    """Return the newer type that a hub name implies (`Qwen/Qwen3-1.7B`), without its config.json."""
    repository = name.rsplit("/", 1)[-1].lower()
    return next((kind for beginning, kind in _FAMILIES.items() if repository.startswith(beginning)), None)
