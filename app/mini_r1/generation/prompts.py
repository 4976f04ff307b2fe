"""Problems as the text and tokens that a model continues, the same in training, warm start and evaluation."""

from collections.abc import Sequence
from typing import Any

import torch
from jinja2 import Environment, pass_environment
from jinja2.filters import FILTERS
from transformers import PreTrainedTokenizerBase

from mini_r1.console import printable
from mini_r1.errors import KitError, first_line
from mini_r1.tasks.registry import AnyTask


@pass_environment
def _attr(environment: Environment, value: Any, name: str) -> Any:
    """Return what the filter `value | attr("name")` does, within the limits of the environment."""
    return environment.getattr(value, name)


# A chat template comes with the model and runs in Jinja's sandbox, which this filter of 3.1.5 escapes (CVE-2025-27516):
# a template could put this process's environment, with the hub's token, into every prompt.
FILTERS["attr"] = _attr


def render(task: AnyTask, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Any], style: str) -> list[str]:
    """Return each problem's chat in the tokenizer's template, ending with the assistant prefill.

    A template that is broken, or does what its sandbox forbids, is a KitError; an unknown style is a DataError.
    """
    prompt = task.prompt(style)
    chats = [prompt.messages(task.placeholder_values(problem)) for problem in problems]
    ending = {"continue_final_message": True} if prompt.prefill else {"add_generation_prompt": True}
    try:
        return [tokenizer.apply_chat_template(chat, tokenize=False, **ending) for chat in chats]
    except Exception as error:  # a template is a program: it can raise anything
        reason = f"{type(error).__name__}: {printable(first_line(error)).rstrip('.')}"
        raise KitError(
            f"the chat template of {tokenizer.name_or_path} cannot be used ({reason}): fix it, or set "
            "tokenizer_name_or_path to a tokenizer whose template works"
        ) from error


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of rendered prompts, which have every special token already."""
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def completion_texts(tokenizer: PreTrainedTokenizerBase, completions: Sequence[Sequence[int]]) -> list[str]:
    """Return the text of each completion's token ids, without special tokens."""
    # As tensors: transformers checks every id of a list, which takes a tenth of the demo's step.
    ids = [torch.tensor(completion, dtype=torch.long) for completion in completions]
    return tokenizer.batch_decode(ids, skip_special_tokens=True)
