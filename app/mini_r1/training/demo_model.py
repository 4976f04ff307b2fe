"""The demo's model and tokenizer: a Qwen2 of 120 thousand parameters that reads the kit's real prompt.

Simplified against a downloaded model: the fixed phrases of the prompt and the integers 0-99 are single tokens, so a
prompt is about twenty tokens and a tiny model can work with it. Everything else is text, character by character, so
any prompt and any completion in ASCII can be written and read back exactly.
"""

from __future__ import annotations

import string
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed

from mini_r1.countdown.prompt import PREFILL, SYSTEM_MESSAGE, USER_MESSAGES

PAD, START, END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unknown|>"
"""Qwen's own marks: padding, start and end of a turn. END closes a completion."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

WORKING = (
    " + ", " - ", " * ", " / ", " = ", " (too low)\n", " (too high)\n", " (yes)\n",
    "</think>\n", "<answer>", "</answer>", "<think>", "</think>",
)  # fmt: skip
"""What the demonstrator writes, one token each."""


def phrases() -> list[str]:
    """The fixed parts of the prompt, each of which becomes one token."""
    parts = {SYSTEM_MESSAGE, PREFILL, "system\n", "user\n", "assistant\n", ", "}
    for template in USER_MESSAGES.values():
        before, rest = template.split("{nums}")
        middle, after = rest.split("{target}")
        parts |= {before, middle, after}
    return sorted(parts)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over phrases, integers and single characters; decoding gives the text back exactly."""
    special = [PAD, START, END]
    numbers = [str(n) for n in range(100)]
    singles = sorted(set(string.printable) - set(string.digits))
    words = dict.fromkeys([*special, *numbers, *phrases(), *WORKING, *singles, UNKNOWN])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    # Longest first: an alternation takes the first branch that matches. A number is read as one or two digits.
    longest_first = sorted([*phrases(), *WORKING], key=lambda word: (-len(word), word))
    pattern = "|".join([*(_escape(word) for word in longest_first), "[1-9]?[0-9]", "[\\s\\S]"])
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


def _escape(text: str) -> str:
    """Escape for the tokenizer's regular expressions (Oniguruma), whose special characters are ASCII punctuation."""
    return "".join(f"\\{c}" if c in string.punctuation else c for c in text)


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int, heads: int = 4) -> Qwen2ForCausalLM:
    """A Qwen2 with random weights: 2 layers of width 64, tied embeddings.

    vLLM runs it with two heads, not with the demo's four: its kernels want 32 numbers a head or more.
    """
    set_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        # Wider than the usual 0.02: at width 64 that start is so flat that the first hundred steps are lost.
        initializer_range=0.08,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def save_untrained(directory: Path, seed: int = 0, heads: int = 4) -> Path:
    """Write tokenizer and random weights to `directory`: a model for tests, with nothing learned."""
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed, heads).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
