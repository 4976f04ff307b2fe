"""A model and its tokenizer by name, with dtype and attention really applied, and the device they run on."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from mini_r1.errors import ExitCode, KitError

logger = logging.getLogger(__name__)


def device() -> torch.device:
    """Where this process computes: the current CUDA device, or the CPU without one or with MINI_R1_ACCELERATOR=cpu."""
    cpu = os.environ.get("MINI_R1_ACCELERATOR") == "cpu" or not torch.cuda.is_available()
    return torch.device("cpu" if cpu else "cuda")


def load_tokenizer(name: str, revision: str | None) -> PreTrainedTokenizerBase:
    """A tokenizer that pads on the left, as generation needs.

    Raises:
        KitError: it cannot be found, or has no chat template, or nothing to pad with.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=_revision(name, revision), padding_side="left")
    except (OSError, ValueError) as error:
        raise _not_loaded("tokenizer", name, error) from error
    if tokenizer.chat_template is None:
        raise KitError(
            f"the tokenizer of {name} has no chat template and the prompt needs one: "
            "use an instruct model, or set tokenizer_name_or_path to a tokenizer that has one"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise KitError(f"the tokenizer of {name} has neither a padding nor an end token: add one to it")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(name: str, revision: str | None, torch_dtype: str | None, attention: str | None) -> Any:
    """A causal language model from safetensors, in the dtype and with the attention asked for.

    TRL 0.14.0 passes neither on when the model comes by name, so the published recipe never ran in bfloat16 weights
    or with flash attention. Here both reach `from_pretrained`.

    Args:
        name: hub id or local directory.
        revision: branch, tag or commit on the hub.
        torch_dtype: `bfloat16`, `float16`, `float32`, `auto` (the dtype of the weights file) or None (float32).
        attention: `eager`, `sdpa`, `flash_attention_2` or None (the best that transformers finds).

    Raises:
        KitError: it cannot be found or loaded that way.
    """
    dtype = "auto" if torch_dtype == "auto" else getattr(torch, torch_dtype or "float32")
    try:
        return AutoModelForCausalLM.from_pretrained(
            name,
            revision=_revision(name, revision),
            torch_dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,  # a pickled weights file could run code (CVE-2025-32434)
        )
    except (ImportError, OSError, ValueError) as error:
        raise _not_loaded("model", name, error) from error


def describe(model: Any) -> dict[str, Any]:
    """What really runs, for run.json and the log: class, parameters, dtype, attention, resolved revision."""
    return {
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "revision": getattr(model.config, "_commit_hash", None),
    }


def eos_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a completion: the tokenizer's, and those the model's generation config adds."""
    extra = getattr(model, "generation_config", None)
    ids = extra.eos_token_id if extra is not None and extra.eos_token_id is not None else []
    return sorted({tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])} - {None})


def _revision(name: str, revision: str | None) -> str:
    return "main" if revision is None or Path(name).is_dir() else revision


def _not_loaded(what: str, name: str, error: Exception) -> KitError:
    reason = str(error).strip().split("\n")[0]
    if Path(name).exists() or name.startswith((".", "/", "~")):
        return KitError(f"cannot load the {what} from {name}: {reason}")
    return KitError(
        f"cannot load the {what} {name}: {reason}. "
        "Check the name; without a network use a local directory or a model that is already in the cache",
        ExitCode.CONFIG,
    )
