"""The weights that vLLM gets of a model with or without an adapter, under the base model's names, one at a time.

A LoRA layer computes base(x) + scale * B(A(x)), as one matrix base + scale * B A (arXiv:2106.09685, section 4.1). No
second copy of the model is made, and the model is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.integrations import dequantize_bnb_weight, get_bnb_param_type

from mini_r1.errors import KitError

MERGEABLE: Final = ("Linear", "Embedding", "Linear4bit", "Linear8bitLt")
"""peft's LoRA layers that are one matrix (the last two above a base quantized by bitsandbytes)."""

Whole = Callable[[Sequence[torch.nn.Parameter]], AbstractContextManager[Any]]
"""Makes sharded parameters whole for a while, as DeepSpeed's GatheredParameters."""


def _as_they_are(parameters: Sequence[torch.nn.Parameter]) -> AbstractContextManager[Any]:
    return nullcontext()


def merged_weights(model: Any, whole: Whole = _as_they_are) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and whole weight of each parameter of the base model, each valid until the next one is asked for.

    An adapted weight is computed in float32 and rounded once, to the base weight's dtype; one in 4 or 8 bits to the
    dtype that bitsandbytes computes in.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, parameter in base.named_parameters():
        owner, _, own = name.rpartition(".")
        if ".lora_" in name:
            continue
        layer = base.get_submodule(owner.removesuffix(".base_layer")) if owner.endswith(".base_layer") else None
        factors = [] if layer is None or own != "weight" else _factors(layer)
        with whole([parameter, *factors]):
            weight = parameter.detach()
            if get_bnb_param_type(parameter):
                weight = dequantize_bnb_weight(parameter, state=getattr(base.get_submodule(owner), "state", None))
            if factors:
                weight = _merged(weight, layer, *factors)
            yield name.replace(".base_layer.", "."), weight


def _factors(layer: Any) -> list[torch.nn.Parameter]:
    """Return the parameters A and B of a layer's adapter."""
    adapter = layer.active_adapters[0]
    if adapter in layer.lora_embedding_A:
        return [layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]]
    return [layer.lora_A[adapter].weight, layer.lora_B[adapter].weight]


@torch.no_grad()
def _merged(weight: torch.Tensor, layer: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    adapter = layer.active_adapters[0]
    # An embedding and GPT-2's Conv1D have their weights the other way round.
    transposed = getattr(layer, "fan_in_fan_out", False) or adapter in layer.lora_embedding_A
    whole = torch.addmm(
        (weight.T if transposed else weight).float(), b.float(), a.float(), alpha=layer.scaling[adapter]
    )
    return (whole.T if transposed else whole).to(weight.dtype)


def refuse_unmergeable(model: Any) -> None:
    """Raise KitError, with its name, for an adapter that `merged_weights` can't merge, or whose result vLLM drops."""
    if not isinstance(model, PeftModel):
        return
    base = model.get_base_model()
    ends = {base.get_input_embeddings(), base.get_output_embeddings()} if _is_tied(base) else set()
    for name, module in base.named_modules():
        problem = _problem(module)
        if problem is None and module in ends and isinstance(module, BaseTunerLayer):
            problem = "an adapter of one end of tied embeddings, which vLLM has only one matrix for"
        if problem is not None:
            raise KitError(
                f"{name} has {problem}, so vLLM can't generate with it: set use_vllm: false, or change "
                "lora_target_modules"
            )


def _problem(module: Any) -> str | None:
    """Return what a module of a model with an adapter has that can't be merged."""
    if isinstance(module, ModulesToSaveWrapper):
        return "a trained copy (modules_to_save)"
    if not isinstance(module, BaseTunerLayer):
        return None
    kind = type(module).__name__
    if not isinstance(module, LoraLayer) or kind not in MERGEABLE:
        return f"an adapter of the type {type(module).__module__}.{kind}"
    if any(module.use_dora.values()):
        return "an adapter of the type DoRA"
    return "an adapter with a bias" if any(module.lora_bias.values()) else None


def _is_tied(base: Any) -> bool:
    return bool(base.config.get_text_config().tie_word_embeddings)
