"""Stop strings: where the text of a completion first contains one, as vLLM 0.7.0 decides it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from transformers import PreTrainedTokenizerBase

CONTEXT_TOKENS = 7
"""Tokens of the prompt that a completion is decoded after, as in vLLM: some tokenizers drop a space at the beginning of
a text."""
INCOMPLETE = "\ufffd"
"""What the bytes of a character decode to while some of them are missing."""


class StopStringSearch:
    """Searches one completion for stop strings while it grows; only its end is decoded, without special tokens.

    A string may span tokens, and a character tokens. Like vLLM it waits for the rest of a character whose bytes are
    incomplete. The token that completes a stop string stays whole, also if its text continues after the string.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str], prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._strings = strings
        self._kept = max(map(len, strings)) - 1  # characters that may belong to a string that is not complete yet
        self._text = ""  # the last ones
        self._before = list(prompt[-CONTEXT_TOKENS:])  # tokens that give `_new` its context
        self._new: list[int] = []  # tokens without text so far

    def feed(self, ids: Sequence[int]) -> int | None:
        """Take the next tokens; return how many of them the completion keeps if a stop string ends it, else None."""
        found = self._text_with(ids)
        if self._has_string(found):
            for count in range(1, len(ids) + 1):
                text = self._text_with(ids[:count])
                if self._has_string(text) and not text.endswith(INCOMPLETE):
                    return count
        self._new += ids
        if found != self._text and not found.endswith(INCOMPLETE):
            self._text = found[max(0, len(found) - self._kept) :]
            self._before, self._new = self._new, []
        return None

    def _text_with(self, ids: Sequence[int]) -> str:
        before = self._decode(self._before)
        return self._text + self._decode([*self._before, *self._new, *ids])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _has_string(self, text: str) -> bool:
        return any(string in text for string in self._strings)


def is_truncated(ids: Sequence[int], text: str, eos_token_ids: Sequence[int], strings: Sequence[str]) -> bool:
    """Return whether a completion was cut at the longest length: it has neither an end token nor a stop string."""
    return ids[-1] not in eos_token_ids and not any(string in text for string in strings)


@contextmanager
def saved_tokenizer(tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> Iterator[str | None]:
    """Yield a directory with the tokenizer, from which vLLM's process loads it at its start; None without strings."""
    if not strings:
        yield None
        return
    with TemporaryDirectory(prefix="mini-r1-tokenizer-") as directory:
        tokenizer.save_pretrained(directory)
        yield directory
