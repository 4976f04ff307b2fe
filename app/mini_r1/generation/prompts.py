"""Problems as the text and the tokens that a model continues: the same in training, warm start and evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from mini_r1.countdown import task


def render(tokenizer: PreTrainedTokenizerBase, problems: Sequence[task.Problem], style: str) -> list[str]:
    """Each problem's chat through the tokenizer's own template, ending in the assistant prefill.

    Args:
        tokenizer: has a chat template.
        problems: what to ask.
        style: `script` or `notebook`.

    Raises:
        DataError: an unknown style.
    """
    chats = [task.messages(problem, style) for problem in problems]
    return [tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True) for chat in chats]


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered prompts; the template has written every special token already."""
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids
