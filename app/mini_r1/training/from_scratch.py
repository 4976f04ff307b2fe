"""The built-in models and their tokenizers: small Qwen2 with random weights that read the kit's real prompt.

Simplified compared with a downloaded model: the fixed phrases of the prompt are single tokens, and so are the demo's
integers 0-99, so a prompt has some twenty tokens and suits a small model. All other text is encoded character by
character, so any ASCII text is decoded exactly.
"""

import re
import string
import sys
from dataclasses import replace
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed

from mini_r1.recipe.builtin_models import BUILTIN_MODELS, DEMO_MODEL, BuiltinModel
from mini_r1.tasks.registry import find_task

PAD, START, END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unknown|>"
"""Qwen's special tokens: padding, start and end of a turn. END closes a completion."""

DEMO = BUILTIN_MODELS[DEMO_MODEL]
DEMO_FOR_VLLM = replace(DEMO, head_size=32)
"""vLLM 0.7.0 has no attention kernel for the demo's heads of 16."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(kind: BuiltinModel = DEMO) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer over phrases, numbers and single characters; its decoding is exact."""
    numbers = [str(n) for n in range(10 if kind.digits else 100)]
    singles = sorted(set(string.printable) - set(string.digits))
    prompt, working = find_task(kind.task).fixed_texts()
    phrases = sorted({"system\n", "user\n", "assistant\n", *prompt})
    tokens = dict.fromkeys([PAD, START, END, *numbers, *phrases, *working, *singles, UNKNOWN])
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNKNOWN))
    # Longest first: an alternation takes the first branch that matches. A number is read as one or two digits.
    longest_first = sorted([*phrases, *working], key=lambda word: (-len(word), word))
    number = "[0-9]" if kind.digits else "[1-9]?[0-9]"
    pattern = "|".join([*map(re.escape, longest_first), number, "[\\s\\S]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[START],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        # Without this the tokenizer emits token_type_ids, which the model refuses.
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int, kind: BuiltinModel = DEMO) -> Qwen2ForCausalLM:
    """Return a model with random weights and tied embeddings."""
    set_seed(seed)
    heads = kind.hidden_size // kind.head_size
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=kind.hidden_size,
        intermediate_size=3 * kind.hidden_size,
        num_hidden_layers=kind.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=kind.positions,
        initializer_range=kind.initializer_range,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def save_untrained(directory: Path, seed: int = 0, kind: BuiltinModel = DEMO) -> Path:
    """Write tokenizer and random weights to `directory`, for tests."""
    tokenizer = build_tokenizer(kind)
    build_model(tokenizer, seed, kind).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


if __name__ == "__main__":  # `mini-r1 doctor --smoke` needs a model, and imports no torch
    save_untrained(Path(sys.argv[1]), kind=DEMO_FOR_VLLM)
