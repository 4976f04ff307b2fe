"""Which kinds of model the pinned transformers can load, and what to say of one that it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from transformers import CONFIG_MAPPING, __version__
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mini_r1.errors import KitError

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


def refuse_unloadable(name: str, config: Mapping[str, Any]) -> None:
    """Say what is wrong with a model that AutoModelForCausalLM would refuse, or load into something else.

    transformers would guess a kind from the directory's name, leave a missing language model head at random, or offer
    at the terminal to run the repository's own code.

    Args:
        name: of the model, for the message.
        config: its config.json.

    Raises:
        KitError: the pinned transformers has no causal language model for it.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise KitError(
            f"cannot load the model from {name}: its config.json is missing or has no model_type, so nobody can tell "
            "what kind of model it is; name a directory or repository that transformers' save_pretrained wrote"
        )
    if kind not in CONFIG_MAPPING:
        if kind in FIRST_VERSION:
            why = f"transformers {FIRST_VERSION[kind]} was the first that does"
        elif "auto_map" in config:
            why = "its repository brings code of its own, which the kit never runs"
        else:
            why = "a later version may"
        raise KitError(
            f"{name} is a '{kind}' model; transformers {__version__}, which this kit is pinned to, does not know it: "
            f"{why}. Use a model of a known kind, e.g. Qwen2.5"
        )
    if CONFIG_MAPPING[kind].from_dict(dict(config)).is_encoder_decoder:
        raise KitError(f"{name} is a '{kind}' model, an encoder-decoder: use a causal language model, e.g. Qwen2.5")
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if causal is None:
        raise KitError(f"{name} is a '{kind}' model, which writes no text: use a causal language model, e.g. Qwen2.5")
    saved = config.get("architectures") or []
    # Endings besides the exact class: old repositories spell theirs in other ways (LLaMAForCausalLM).
    if saved and not any(str(c) == causal or str(c).endswith(("ForCausalLM", "LMHeadModel")) for c in saved):
        raise KitError(
            f"{name} holds the weights of a {', '.join(map(str, saved))}, which is no causal language model "
            f"({causal} would be one): use an instruct model"
        )
