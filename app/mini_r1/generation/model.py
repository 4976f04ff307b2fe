"""A model and its tokenizer by name, with dtype and attention really applied, and the device they run on."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, find_adapter_config_file

from mini_r1.errors import ExitCode, KitError, first_line
from mini_r1.hub_outages import hub_outage
from mini_r1.machine.devices import ACCELERATOR, VISIBLE, read_visible
from mini_r1.recipe.model_kinds import unknown_kind


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """The untrained model that a run began with, or why it is not known."""

    source: str | None  # directory or hub id of its weights; None when they are not available
    revision: str | None  # commit on the hub
    description: str  # or why it is not known


ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
"""peft's name for an adapter's weights."""


def device() -> torch.device:
    """Return this process's device: the current CUDA device, or the CPU without one or with MINI_R1_ACCELERATOR=cpu.

    Raises KitError if torch sees no GPU, but CUDA_VISIBLE_DEVICES names one or MINI_R1_ACCELERATOR=cuda is set, as in
    the pods for GPUs.
    """
    if os.environ.get(ACCELERATOR) == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    given = f"{ACCELERATOR}=cuda" if os.environ.get(ACCELERATOR) == "cuda" else ""
    if read_visible(visible := os.environ.get(VISIBLE, "")):
        given = given or f"{VISIBLE}={visible}"
    if given:
        detail = f"{given}, but torch sees no GPU here: run `mini-r1 doctor` for the reason, or unset it to use the CPU"
        raise KitError(detail, ExitCode.RETRY)
    return torch.device("cpu")


PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}User: {{ message['content'] }}\n\n"
    "{% else %}Assistant: {{ message['content'] }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Chat template of a tokenizer without one: a plain dialogue, like DeepSeek-R1-Zero's (arXiv:2501.12948, table 1)."""


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return PLAIN_TEMPLATE, after the token with which the tokenizer begins every text, if it does."""
    begins = tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return "{{ bos_token }}" * begins + PLAIN_TEMPLATE


def load_tokenizer(name: str, revision: str | None) -> PreTrainedTokenizerBase:
    """Load a tokenizer that pads on the left, as generation needs; KitError if it can't be read.

    One without a chat template, such as many a base model's, gets `plain_template`.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            revision=_revision(name, revision),
            padding_side="left",
            trust_remote_code=False,  # unset, transformers asks at the terminal and a "y" runs the repository's code
        )
    except Exception as error:  # the tokenizers library raises bare Exceptions for a file it cannot read
        if Path(name).is_dir() and not any(Path(name).glob("tokenizer*")):
            raise KitError(f"{name} has no tokenizer in it: set tokenizer_name_or_path to the one it needs") from error
        raise _not_loaded("tokenizer", name, error) from error
    if tokenizer.chat_template is None:  # saved with every snapshot, so evaluation and users have the same prompt
        tokenizer.chat_template = plain_template(tokenizer)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise KitError(f"the tokenizer of {name} has neither a padding nor an end token: add one to it")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    name: str,
    revision: str | None,
    torch_dtype: str | None,
    attention: str | None,
    quantization: BitsAndBytesConfig | None = None,
) -> Any:
    """Load a causal language model from safetensors, in the dtype and with the attention asked for.

    TRL 0.14.0 passes neither on when the model comes by name. `name` is a hub id or a directory; a LoRA adapter is
    loaded with its base model, in the revision it was trained on, frozen, its own weights in float32. `torch_dtype`
    None is float32, `attention` None the best that transformers finds. A quantized model is loaded directly onto the
    GPU. Raises KitError if it can't be found or loaded that way.
    """
    options: dict[str, Any] = {
        "torch_dtype": "auto" if torch_dtype == "auto" else getattr(torch, torch_dtype or "float32"),
        "attn_implementation": attention,
    }
    if quantization is not None:
        # The device this rank trains on; PartialState knows it too, but would set up the process group too early.
        options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
        options["quantization_config"] = quantization
    config = read_adapter(name, revision)
    if config is None:
        with _describe_errors("model", name):
            return _load_base(name, revision, options)
    base = config.base_model_name_or_path
    with _describe_errors("adapter", name):
        weights = _file(name, revision, ADAPTER_WEIGHTS_NAME)
    if weights is None:
        raise KitError(f"the adapter {name} has no {ADAPTER_WEIGHTS_NAME}: only safetensors are read")
    try:
        with _describe_errors("model", base):
            model = _load_base(base, config.revision, options)
    except KitError as error:
        raise KitError(f"{name} is an adapter of {base}, which it needs: {error.message}", error.exit_code) from error
    with _describe_errors("adapter", name):
        # The folder and not the name: by name peft would fall back to pickled weights.
        return PeftModel.from_pretrained(model, str(Path(weights).parent), config=config, torch_device="cpu")


def read_adapter(name: str, revision: str | None) -> Any:
    """Return the LoraConfig of an adapter, None for a whole model; KitError for an adapter of another kind."""
    with _describe_errors("model", name):
        file = find_adapter_config_file(name, revision=_revision(name, revision))
        if file is None:
            return None
        config = PeftConfig.from_pretrained(str(Path(file).parent))
    if config.peft_type != PeftType.LORA or not config.base_model_name_or_path:
        raise KitError(f"{name} is an adapter of another kind than LoRA, or names no base model: use a LoRA adapter")
    if config.megatron_config:  # peft imports the module that `megatron_core` names
        raise KitError(
            f"the adapter {name} has megatron_config in its adapter_config.json, for which peft would import a "
            "module that the file names: take it out"
        )
    return config


def _load_base(name: str, revision: str | None, options: dict[str, Any]) -> Any:
    config, _ = PretrainedConfig.get_config_dict(name, revision=_revision(name, revision))
    refuse_unloadable(name, config)
    # Checked before transformers does: with `main` it would ask a service to convert pickled weights to safetensors.
    if all(_file(name, revision, file) is None for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        if not Path(name).is_dir():
            _raise_outage(name, revision)
        raise KitError(_no_weights(name))
    model, found = AutoModelForCausalLM.from_pretrained(
        name,
        revision=_revision(name, revision),
        use_safetensors=True,  # a pickled weights file could run code (CVE-2025-32434)
        trust_remote_code=False,  # unset, transformers asks at the terminal
        output_loading_info=True,
        **options,
    )
    missing = sorted(found["missing_keys"])
    if missing:  # transformers would leave them at random
        raise KitError(
            f"the weights of {name} are incomplete: {len(missing)} tensors of its {type(model).__name__} are missing, "
            f"{missing[0]} among them"
        )
    return model


def refuse_unloadable(name: str, config: Mapping[str, Any]) -> None:
    """Raise KitError if the pinned transformers has no causal language model for this config.json.

    transformers would guess a kind from the directory's name, leave a missing language model head at random, or ask at
    the terminal whether to run the repository's code.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise KitError(
            f"cannot load the model from {name}: its config.json is missing or has no model_type, so the kind of "
            "model is unknown; name a directory or repository that transformers' save_pretrained wrote"
        )
    if kind not in CONFIG_MAPPING:
        why = "its repository brings code, which the kit never runs"
        raise KitError(unknown_kind(name, kind, why if "auto_map" in config else "a later version may"))
    if CONFIG_MAPPING[kind].from_dict(dict(config)).is_encoder_decoder:
        raise KitError(f"{name} is a '{kind}' model, an encoder-decoder: use a causal language model, e.g. Qwen2.5")
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if causal is None:
        raise KitError(f"{name} is a '{kind}' model, which writes no text: use a causal language model, e.g. Qwen2.5")
    saved = config.get("architectures") or []
    # Old repositories spell the class in other ways (LLaMAForCausalLM).
    if saved and not any(str(c) == causal or str(c).endswith(("ForCausalLM", "LMHeadModel")) for c in saved):
        raise KitError(
            f"{name} holds the weights of a {', '.join(map(str, saved))}, which is no causal language model "
            f"({causal} would be one): use an instruct model"
        )


def refuse_misfit(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with an id that the model has no embedding for; see `refuse_other_vocabulary`."""
    embeddings = model.get_input_embeddings()  # in an adapter's layer, if it has one
    refuse_other_vocabulary(getattr(embeddings, "base_layer", embeddings).num_embeddings, tokenizer)


def check_configuration(name: str, revision: str | None, longest_sequence: int) -> dict[str, Any]:
    """Return a model's configuration; {} for an adapter, whose base model is checked when it is loaded.

    Raises KitError if it can't be loaded or has too few positions for the longest prompt and completion together.
    """
    with _describe_errors("model", name):
        if find_adapter_config_file(name, revision=_revision(name, revision)) is not None:
            return {}
        config: dict[str, Any]
        config, _ = PretrainedConfig.get_config_dict(name, revision=_revision(name, revision))
        refuse_unloadable(name, config)
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and positions < longest_sequence:
        raise KitError(
            f"{name} has {positions} positions; max_prompt_length and max_completion_length make {longest_sequence}: "
            "shorten max_completion_length"
        )
    return config


def refuse_other_vocabulary(rows: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a KitError for a tokenizer with more ids than the model has embeddings (`rows`): a lookup would crash."""
    pad = tokenizer.pad_token_id
    if pad is not None and pad >= rows:
        raise KitError(
            f"the padding token {tokenizer.pad_token!r} has the id {pad} and the model has embeddings for {rows:,} "
            "tokens, ids from 0: make a token that the model knows the tokenizer's padding token, e.g. its end token"
        )
    size = max(tokenizer.get_vocab().values()) + 1
    if size > rows:
        raise KitError(
            f"the tokenizer has {size:,} tokens and the model has embeddings for {rows:,}: use the tokenizer that "
            "belongs to the model (tokenizer_name_or_path: null)"
        )


def describe(model: Any) -> dict[str, Any]:
    """Return what really runs, for run.json and the log: facts of the base model, and `adapter` if there is one.

    `parameters` include an adapter's; `revision` is the commit on the hub, `quantization` `bitsandbytes` or None.
    """
    is_adapter = isinstance(model, PeftModel)
    base = model.get_base_model() if is_adapter else model
    quantizer = getattr(base, "hf_quantizer", None)
    facts = {
        "class": type(base).__name__,
        # numel() of a 4-bit model would count the packed weights.
        "parameters": model.get_nb_trainable_parameters()[1] if is_adapter else base.num_parameters(),
        "dtype": str(base.dtype).removeprefix("torch."),
        "attention": base.config._attn_implementation,
        "revision": getattr(base.config, "_commit_hash", None),
        "quantization": quantizer.quantization_config.quant_method.value if quantizer else None,
    }
    if is_adapter:
        lora = model.peft_config[model.active_adapter]
        modules = lora.target_modules
        facts["adapter"] = {
            "rank": lora.r,
            "alpha": lora.lora_alpha,
            "dropout": lora.lora_dropout,
            "target_modules": modules if isinstance(modules, str) else sorted(modules),
            "parameters": sum(p.numel() for key, p in model.named_parameters() if model.base_model.prefix in key),
        }
    return facts


def eos_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return every token that ends a completion: the tokenizer's, and those of the model's generation config."""
    extra = getattr(model, "generation_config", None)
    ids = extra.eos_token_id if extra is not None and extra.eos_token_id is not None else []
    return sorted({tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])} - {None})


def _revision(name: str, revision: str | None) -> str:
    return "main" if revision is None or Path(name).is_dir() else revision


def _file(name: str, revision: str | None, file: str) -> str | None:
    """Return the path of a model's file, fetched if needed; None if it has none, or it is not in an offline cache."""
    found = cached_file(name, file, revision=_revision(name, revision), _raise_exceptions_for_missing_entries=False)
    return None if found is None else str(found)


def _raise_outage(name: str, revision: str | None) -> None:
    """Raise a KitError if weights were not found because the hub is down: `_file` returns None for both."""
    try:
        cached_file(name, SAFE_WEIGHTS_NAME, revision=_revision(name, revision))
    except (OSError, ValueError) as error:
        outage = hub_outage(error, f"the weights of {name}")
        if outage is not None:
            raise outage from error


def _no_weights(name: str) -> str:
    pickles = "pickled ones (pytorch_model.bin) are not read, because loading them can run code"
    convert = "if you trust them, convert them with save_pretrained(..., safe_serialization=True)"
    if not Path(name).is_dir():
        return f"{name} has no safetensors weights, or they are not in the cache and there is no network; {pickles}"
    if any(Path(name).glob("*.bin")):
        return f"{name} has no safetensors weights; {pickles}: {convert}"
    return f"{name} has no weights: there is no {SAFE_WEIGHTS_NAME} in it"


@contextmanager
def _describe_errors(what: str, name: str) -> Iterator[None]:
    """Turn what the libraries raise for a missing or damaged model into a KitError; running out of memory passes."""
    try:
        yield
    except SafetensorError as error:
        raise KitError(f"the weights of {name} are damaged ({error}): fetch or copy them again") from error
    except torch.OutOfMemoryError:
        raise
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise _not_loaded(what, name, error) from error
    except (AssertionError, AttributeError, KeyError, TypeError) as error:  # transformers trusts the file
        raise KitError(
            f"the configuration of {name} holds something that transformers cannot use "
            f"({type(error).__name__}: {_shortened(error)}): fetch or copy it again"
        ) from error


def _not_loaded(what: str, name: str, error: Exception) -> KitError:
    outage = hub_outage(error, f"the {what} {name}")
    if outage is not None:
        return outage
    reason = _shortened(error)
    if "trust_remote_code" in str(error):
        return KitError(f"the {what} of {name} needs code from its repository, which the kit never runs")
    if Path(name).exists() or name.startswith((".", "/", "~")):
        return KitError(f"cannot load the {what} from {name}: {reason}")
    return KitError(
        f"cannot load the {what} {name}: {reason}. "
        "Check the name; without a network use a local directory, or what `mini-r1 prefetch RECIPE` left in the cache"
    )


def _shortened(error: Exception) -> str:
    """Return the most telling line of an error message, without the point at its end."""
    # For weights that do not fit their configuration, torch writes a line for each below a heading.
    found = re.search("size mismatch.*", str(error))
    return (found[0][:240] if found else first_line(error)).rstrip(".")
