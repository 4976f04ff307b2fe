"""Problems as the text and the tokens that a model continues: the same in training, warm start and evaluation."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from jinja2 import Environment, pass_environment
from jinja2.filters import FILTERS
from transformers import PreTrainedTokenizerBase

from mini_r1.console import printable
from mini_r1.errors import KitError
from mini_r1.tasks.countdown import task


@pass_environment
def _attr(environment: Environment, value: Any, name: str) -> Any:
    """The filter `value | attr("name")` as far as the environment allows it."""
    return environment.getattr(value, name)


# A chat template comes with the model and runs in Jinja's sandbox. In 3.1.5 this filter leads out of it
# (CVE-2025-27516): a template read this process's environment, the hub's token in it, into every prompt.
FILTERS["attr"] = _attr


def render(tokenizer: PreTrainedTokenizerBase, problems: Sequence[task.Problem], style: str) -> list[str]:
    """Each problem's chat through the tokenizer's own template, ending in the assistant prefill.

    Args:
        tokenizer: has a chat template.
        problems: what to ask.
        style: `script` or `notebook`.

    Raises:
        DataError: an unknown style.
        KitError: the template is broken, or wants what its sandbox forbids.
    """
    chats = [task.messages(problem, style) for problem in problems]
    try:
        return [tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True) for chat in chats]
    except Exception as error:  # a template is a program: it can raise anything
        said = printable(f"{type(error).__name__}: {error}")
        reason = textwrap.shorten(said, 240, placeholder=" ...").rstrip(".")
        raise KitError(
            f"the chat template of {tokenizer.name_or_path} cannot be used ({reason}): repair it, or set "
            "tokenizer_name_or_path to a tokenizer whose template works"
        ) from error


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered prompts; the template has written every special token already."""
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def completion_texts(tokenizer: PreTrainedTokenizerBase, completions: Sequence[Sequence[int]]) -> list[str]:
    """Return the text of each completion's token ids, without special tokens."""
    # As tensors: of a list transformers asks for each id whether it is a tensor, a tenth of the demo's step.
    ids = [torch.tensor(completion, dtype=torch.long) for completion in completions]
    return tokenizer.batch_decode(ids, skip_special_tokens=True)
