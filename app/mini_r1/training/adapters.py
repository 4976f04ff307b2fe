"""LoRA and QLoRA: a small adapter is trained on a frozen model.

The reference policy is the same model with the adapter disabled: it costs no memory, and the first policy equals it,
because a new adapter's output is zero. `lora_dropout` above 0 acts in the loss and not in the sampling, which adds
noise to the KL; TRL's default of 0.05 is kept, 0 is exact.

TRL 0.14.0's `get_peft_config` and `get_quantization_config` are not used: a list of one target module becomes a regular
expression for the full module name, which matches none, and with `torch_dtype` unset 4-bit weights are multiplied in
float32.
"""

from functools import partial
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model, prepare_model_for_kbit_training
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import BitsAndBytesConfig, set_seed
from transformers.pytorch_utils import Conv1D
from transformers.utils import is_bitsandbytes_available

from mini_r1.errors import KitError
from mini_r1.generation.merged_weights import refuse_unmergeable
from mini_r1.generation.model import device
from mini_r1.recipe.fields import Recipe

ALL_LINEAR = "all-linear"
"""peft's name for every linear layer but the output layer."""


def quantization(recipe: Recipe) -> BitsAndBytesConfig | None:
    """Return how `load_model` stores the frozen weights; None leaves them as they are.

    Raises KitError without a GPU or bitsandbytes.
    """
    if not (recipe.load_in_4bit or recipe.load_in_8bit):
        return None
    key = "load_in_4bit" if recipe.load_in_4bit else "load_in_8bit"
    missing = ["this process has no GPU"] if device().type != "cuda" else []
    missing += [] if is_bitsandbytes_available() else ["bitsandbytes is not installed"]
    if missing:
        raise KitError(
            f"{key} needs an NVIDIA GPU and bitsandbytes: {' and '.join(missing)}. "
            f"Set {key}: false to train the adapter on unquantized weights"
        )
    if recipe.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=recipe.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=recipe.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=quantized_dtype(recipe),
    )


def quantized_dtype(recipe: Recipe) -> str | None:
    """Return the dtype that quantized weights are multiplied in; None if the recipe has none.

    It is `torch_dtype`, and if that is null or auto 16 bits, as in the QLoRA paper (arXiv:2305.14314, section 3).
    """
    if not (recipe.load_in_4bit or recipe.load_in_8bit):
        return None
    if recipe.torch_dtype not in (None, "auto"):
        return recipe.torch_dtype
    return "float16" if recipe.fp16 else "bfloat16"


def with_adapter(model: Any, recipe: Recipe) -> Any:
    """Return the model as the recipe trains it: itself, or with `use_peft` frozen under a new LoRA adapter.

    The adapter's weights are float32 on a 16-bit model too (peft's default): added to a weight of 0.01, an update of
    1e-6 is lost in bfloat16. They are drawn from the recipe's seed. The adapter's configuration names the base model by
    hub id and commit, or by absolute path, so that a snapshot finds it. Raises KitError if the model can't have one, or
    if vLLM can't generate with it.
    """
    if isinstance(model, PeftModel):
        base = model.peft_config[model.active_adapter].base_model_name_or_path
        raise KitError(
            f"{recipe.model_name_or_path} is an adapter of {base} and is not trained further: train {base}, or merge "
            "the two (peft's merge_and_unload) and train the result"
        )
    if not recipe.use_peft:
        return model
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=_target_modules(model, recipe.lora_target_modules),
        use_rslora=recipe.use_rslora,
    )
    checkpointing = recipe.gradient_checkpointing
    if recipe.load_in_4bit or recipe.load_in_8bit:
        model = prepare_model_for_kbit_training(model, checkpointing, recipe.gradient_checkpointing_kwargs)
    elif checkpointing:
        # A frozen embedding's output needs no gradient, and a checkpointed layer would then pass none on.
        model.enable_input_require_grads()
    set_seed(recipe.seed)
    adapted = get_peft_model(model, config, revision=getattr(model.config, "_commit_hash", None))
    if recipe.use_vllm:
        refuse_unmergeable(adapted)
    if Path(config.base_model_name_or_path).is_dir():
        config.base_model_name_or_path = str(Path(config.base_model_name_or_path).resolve())
    # Otherwise peft asks the hub at every save whether the vocabulary was resized, which the kit never does.
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def _target_modules(model: Any, names: list[str] | None) -> list[str] | str | None:
    """Return the modules that peft adapts. An unknown name is an error: peft ignores it if another one is known."""
    if names == [ALL_LINEAR]:
        return ALL_LINEAR
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding | Conv1D)]
    known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    advice = f"name some of {known}, or {ALL_LINEAR} alone"
    if names is None:
        kind = model.config.model_type
        if kind not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
            raise KitError(f"lora_target_modules: peft has no default for a '{kind}' model: {advice}")
        return None
    unknown = [name for name in names if not any(f".{layer}".endswith(f".{name}") for layer in layers)]
    if unknown:
        raise KitError(f"lora_target_modules: the model has no layer called {', '.join(unknown)}: {advice}")
    return names
