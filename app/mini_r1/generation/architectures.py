"""Which kinds of model the pinned transformers can load, and what to say of one that it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mini_r1.errors import KitError
from mini_r1.recipe.model_kinds import unknown_kind


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
        why = "its repository brings code of its own, which the kit never runs"
        raise KitError(unknown_kind(name, kind, why if "auto_map" in config else "a later version may"))
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
