"""What every sampler must do with top_k, top_p and stop strings, by brute force, and a tokenizer of awkward tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = ("</", "answer", ">", ">Ċ", "</answer>", "Ġâ", "er", "<answer")
"""Tokens of more than one byte, as byte-level BPE writes them: `Ċ` is a line break, `Ġâ` a space and the first byte of
a dash."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: 3 special tokens, WORDS, and each of the 256 bytes."""
    tokens = dict.fromkeys([*SPECIAL, *WORDS, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, start, end = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token=end, additional_special_tokens=[start],
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def first_stop(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], strings: Sequence[str]) -> int | None:
    """Number of tokens of the shortest beginning whose text has a stop string and ends with a whole character."""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], skip_special_tokens=True)
        if any(string in text for string in strings) and not text.endswith("\ufffd"):
            return count
    return None


def truncated_softmax(logits: list[float], top_k: int | None = None, top_p: float = 1.0) -> list[float]:
    """Probabilities after top_k, then top_p: a token stays if those more likely than it have less than the share."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])[:top_k]
    total = sum(math.exp(logits[token]) for token in order)
    kept, before = [], 0.0
    for token in order:
        if before < top_p * total:
            kept.append(token)
        before += math.exp(logits[token])
    total = sum(math.exp(logits[token]) for token in kept)
    return [math.exp(logit) / total if token in kept else 0.0 for token, logit in enumerate(logits)]
