"""Sampling with a transformers model, where finished rows leave the batch.

`generate` of transformers keeps every finished row until the longest one ends, and copies all keys and values for every
token. Completion lengths have a long tail, so most of that work is for finished rows. Here the batch shrinks every
COMPACT_EVERY tokens, the cache is copied only then, and each prompt is read once for all of its generations. The
distribution is the same: softmax of the logits divided by the temperature, cut off by `top_k` and `top_p` as in vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from mini_r1.errors import Stopped
from mini_r1.generation.stop_strings import StopStringSearch
from mini_r1.recipe.fields import Recipe

Stop = Callable[[], bool]
"""Returns whether to stop. Called for every token, so it must be cheap."""

COMPACT_EVERY = 8
"""Tokens between two removals of finished rows: copying the cache costs about as much as a few decoding steps."""
SORTED_ROWS = 32
"""Rows sorted at once for top_k and top_p: about 33 bytes for each logit, 160 MB with a vocabulary of 152k."""


class PreallocatedCache(DynamicCache):
    """Keys and values with free space at their end, so that a new token is written in place.

    `update` returns the free space as well, because transformers' attention would copy a view without it. So the
    attention mask must be as long as the cache, and 0 where nothing has been written.
    """

    def __init__(self) -> None:
        super().__init__()
        self._written: list[int] = []  # tokens of each layer; they differ within a forward pass

    def select(self, rows: torch.Tensor, space: int) -> None:
        """Keep these rows, in this order and with repetitions, with space for more tokens."""
        for layer, length in enumerate(self._written):
            for cache in (self.key_cache, self.value_cache):
                kept = cache[layer].index_select(0, rows)[:, :, :length]
                _, heads, _, width = kept.shape
                # Zeros, because a NaN would survive the mask.
                cache[layer] = torch.cat([kept, kept.new_zeros(len(rows), heads, space, width)], dim=2)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, cache_kwargs: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the prompts, (B, heads, length, width), then one token a call."""
        if layer_idx == len(self._written):
            self._written.append(key_states.shape[-2])
            return super().update(key_states, value_states, layer_idx, cache_kwargs)
        keys, values, at = self.key_cache[layer_idx], self.value_cache[layer_idx], self._written[layer_idx]
        keys[:, :, at], values[:, :, at] = key_states[:, :, 0], value_states[:, :, 0]
        self._written[layer_idx] += 1
        return keys, values

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """Return the tokens written."""
        return self._written[layer_idx or 0] if (layer_idx or 0) < len(self._written) else 0


def never() -> bool:
    """Return False: a `Stop` that never stops."""
    return False


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """Sampling options."""

    max_new_tokens: int  # the end token included
    temperature: float  # divides the logits; 0 takes the most likely token (greedy)
    num_generations: int = 1
    batch_rows: int = 1024  # most sequences decoded at once; bounds the memory of the key-value cache
    top_p: float = 1.0  # share of the probability that the most likely tokens keep, after top_k; 1 keeps all
    top_k: int | None = None  # number of most likely tokens that are kept; None keeps all
    stop: tuple[str, ...] = ()  # strings that end a completion, and stay in it

    @classmethod
    def from_recipe(cls, recipe: Recipe, num_generations: int = 1, temperature: float | None = None) -> SamplingConfig:
        """Return a recipe's options; `temperature` replaces the recipe's."""
        return cls(
            recipe.max_completion_length,
            recipe.temperature if temperature is None else temperature,
            num_generations,
            top_p=recipe.top_p,
            top_k=recipe.top_k,
            stop=tuple(recipe.stop),
        )


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return a generator seed for one step of one rank, so that a resumed run draws what an uninterrupted one draws.

    The multipliers are the odd constants of Weyl sequences (64-bit golden ratio and its relatives), which keep nearby
    steps and ranks apart; the result fits torch's 63-bit seeds.
    """
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % (1 << 63)


def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    *,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Callable[[int], None] = lambda count: None,
    stop: Stop = never,
) -> list[list[int]]:
    """Return len(prompts) * num_generations lists of token ids, the generations of one prompt next to one another.

    A completion ends with one of `eos_token_ids` or with the token that completes a stop string (see StopStringSearch;
    they need the `tokenizer`), or was cut at max_new_tokens. Prompts are token ids without padding; the model, a causal
    language model, is in eval mode while sampling. torch's global random state is neither used nor
    changed. `progress` is called with the number of completions finished since the last call; `stop` is asked before
    each token, and raises Stopped.
    """
    generator = torch.Generator(device=model.device).manual_seed(seed)
    prompts_at_once = max(1, config.batch_rows // config.num_generations)
    # Prompts of similar length share a batch, to save padding; results go back into the given order.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    completions: list[list[list[int]]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), prompts_at_once):
            chosen = order[start : start + prompts_at_once]
            rows = _sample_batch(
                model, [prompts[i] for i in chosen], config, eos_token_ids, pad_token_id, generator, stop, tokenizer
            )
            for position, i in enumerate(chosen):
                completions[i] = rows[position * config.num_generations : (position + 1) * config.num_generations]
            progress(len(rows))
    finally:
        model.train(was_training)
    return [completion for group in completions for completion in group]


@torch.no_grad()
def _sample_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    generator: torch.Generator,
    stop: Stop,
    tokenizer: PreTrainedTokenizerBase | None,
) -> list[list[int]]:
    """Sample one batch; returns len(prompts) * num_generations lists of token ids."""
    device = model.device
    longest = max(len(p) for p in prompts)
    input_ids = torch.full((len(prompts), longest), pad_token_id, dtype=torch.long, device=device)
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, longest - len(prompt) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)

    cache = PreallocatedCache()
    output = model(
        input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
        num_logits_to_keep=1,
    )  # fmt: skip
    prompt_of = torch.arange(len(prompts), device=device).repeat_interleave(config.num_generations)
    space = COMPACT_EVERY - 1  # the last of the first COMPACT_EVERY tokens is written after the first removal
    cache.select(prompt_of, space)
    mask = torch.nn.functional.pad(mask[prompt_of], (0, space))
    position = positions[prompt_of, -1:]
    logits = output.logits[prompt_of, -1]

    rows = torch.arange(len(prompt_of), device=device)  # which completion each batch row is
    eos = torch.tensor(list(eos_token_ids), device=device)
    tokens = torch.full((len(rows), config.max_new_tokens), pad_token_id, dtype=torch.long, device=device)
    lengths = torch.full((len(rows),), config.max_new_tokens, dtype=torch.long, device=device)
    active = torch.ones(len(rows), dtype=torch.bool, device=device)
    searches = [stop_search(tokenizer, config, prompts[i]) for i in prompt_of.tolist()] if config.stop else []
    for step in range(config.max_new_tokens):
        if stop():
            raise Stopped
        token = next_token(logits, config, generator)
        tokens[rows, step] = token  # more tokens of a finished row are cut off at its length
        ended = active & torch.isin(token, eos)
        lengths[rows[ended]] = step + 1
        active &= ~ended
        if searches and ((step + 1) % COMPACT_EVERY == 0 or step + 1 == config.max_new_tokens):
            first = step - step % COMPACT_EVERY
            drawn, ends = tokens[rows, first : step + 1].tolist(), (lengths[rows] - first).tolist()
            for at, row in enumerate(rows.tolist()):
                kept = searches[row].feed(drawn[at][: ends[at]])
                if kept is not None:
                    lengths[row], active[at] = first + kept, False
        if step + 1 == config.max_new_tokens:
            break
        if (step + 1) % COMPACT_EVERY == 0:
            keep = active.nonzero().squeeze(1)
            if len(keep) == 0:
                break
            cache.select(keep, COMPACT_EVERY)
            mask, position, token, rows, active = (t[keep] for t in (mask, position, token, rows, active))
            mask = torch.nn.functional.pad(mask, (0, COMPACT_EVERY))
        mask[:, longest + step] = 1
        position = position + 1
        output = model(
            input_ids=token[:, None], attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True,
        )  # fmt: skip
        logits = output.logits[:, -1]
    return [ids[:length] for ids, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]


def next_token(logits: torch.Tensor, config: SamplingConfig, generator: torch.Generator) -> torch.Tensor:
    """Draw one token id for each row of logits (B, V); a temperature of 0 ignores `top_k` and `top_p`."""
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / config.temperature
    if config.top_k is not None or config.top_p < 1:
        for rows in logits.split(SORTED_ROWS):
            rows.copy_(truncate(rows, config.top_k, config.top_p))
    probabilities = torch.softmax(logits, dim=-1)
    return torch.multinomial(probabilities, num_samples=1, generator=generator).squeeze(1)


def truncate(logits: torch.Tensor, top_k: int | None, top_p: float) -> torch.Tensor:
    """Return float32 logits (B, V) that are -inf outside of the `top_k` largest and of the share `top_p` of those.

    Order and ties are vLLM 0.7.0's (`_apply_top_k_top_p`): every token as likely as the k-th stays, and so does the
    token with which the share is reached.
    """
    ascending, order = logits.sort(dim=-1)
    if top_k is not None:
        smallest_kept = ascending[:, -min(top_k, ascending.shape[1])].unsqueeze(1)
        ascending = ascending.masked_fill(ascending < smallest_kept, -torch.inf)
    cut_off = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - logits.new_tensor(top_p)
    cut_off[:, -1] = False
    return torch.empty_like(logits).scatter_(1, order, ascending.masked_fill(cut_off, -torch.inf))


def stop_search(
    tokenizer: PreTrainedTokenizerBase | None, config: SamplingConfig, prompt: Sequence[int]
) -> StopStringSearch:
    """Return the search for the stop strings of one completion."""
    assert tokenizer is not None, "stop strings need the tokenizer"
    return StopStringSearch(tokenizer, config.stop, prompt)


def stream(
    model: Any,
    prompt: Sequence[int],
    config: SamplingConfig,
    *,
    eos_token_ids: Sequence[int],
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Iterator[int]:
    """Yield the tokens of one completion as they are drawn, those of `sample`; slower.

    The model is in eval mode, and the prompt is token ids. torch's global random state is neither used nor changed.
    """
    generator = torch.Generator(device=model.device).manual_seed(seed)
    cache = DynamicCache()
    ids = torch.tensor([list(prompt)], device=model.device)
    search = stop_search(tokenizer, config, prompt) if config.stop else None
    for _ in range(config.max_new_tokens):
        with torch.no_grad():  # not around the yield: the caller may train something
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True, num_logits_to_keep=1).logits[:, -1]
        ids = next_token(logits, config, generator)[:, None]
        token = int(ids)
        yield token
        if token in eos_token_ids or (search is not None and search.feed([token]) is not None):
            return
