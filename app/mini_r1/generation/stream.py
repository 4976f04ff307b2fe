"""One completion, token by token, for someone who watches. Slower than `sampler`, which takes whole batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from mini_r1.generation.sampler import SamplingConfig, next_token


def stream(
    model: Any, prompt: Sequence[int], config: SamplingConfig, *, eos_token_ids: Sequence[int], seed: int
) -> Iterator[int]:
    """Yield the tokens of a completion as they are drawn, the end token included.

    Args:
        model: in eval mode, on its device.
        prompt: its tokens.
        config: temperature (0 is greedy) and longest completion.
        eos_token_ids: any of these ends it.
        seed: of the draws; torch's global state is neither used nor changed.
    """
    generator = torch.Generator(device=model.device).manual_seed(seed)
    cache = DynamicCache()
    ids = torch.tensor([list(prompt)], device=model.device)
    for _ in range(config.max_new_tokens):
        with torch.no_grad():  # not around the yield: whoever watches may train something
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True, num_logits_to_keep=1).logits[:, -1]
        ids = next_token(logits, config.temperature, generator)[:, None]
        token = int(ids)
        yield token
        if token in eos_token_ids:
            return
