"""Log-probabilities of completion tokens, without all their logits in memory at once.

A model's logits are its largest tensor: 8 completions of 1,024 tokens over a vocabulary of 151,936 are 5 GB in float32,
and so are their softmax and gradients. Here the output layer runs over chunks of tokens, and the backward pass
calculates a chunk's logits again instead of keeping them, except for those that memory is left for:

    peak bytes of logits <= COPIES * 4 * chunk * V + min(kept_bytes, 4 * tokens * V)
    chunk = min(tokens, CHUNK_BYTES // (4 * V))

with V the size of the vocabulary and tokens the completion tokens of the micro-batch: about
COPIES * CHUNK_BYTES for completions of any length, and what is kept. tests/training/test_logprobs.py measures it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.checkpoint import checkpoint

from mini_r1.training.rollout import Batch

CHUNK_BYTES = 1 << 28
"""Float32 logits of one chunk: 256 MiB, 441 tokens of a 152k vocabulary, so about 1 GiB with its COPIES."""
CHECKED_TOKENS = 8  # of the sequences by which a model is checked
COPIES = 4
"""Float32 tensors of a chunk's shape alive at the peak, in the backward pass: the logits, their exponentials, the
gradient of the logsumexp and that of the gather."""


def completion_logps(
    model: Any,
    head: torch.nn.Module | None,
    vocabulary: int,
    inputs: Batch,
    temperature: float,
    kept_bytes: int = 0,
) -> torch.Tensor:
    """Return the log-probability of each completion token under softmax(logits / temperature), as it was sampled.

    (N,) in float32. `head` is the model's output layer if its result is the logits, see `plain_head`; it then runs for
    completion tokens only. None calculates the logits of all positions. The backward pass uses up to `kept_bytes` of
    logits from the forward pass.
    """
    size, kept = max(1, CHUNK_BYTES // (4 * vocabulary)), kept_bytes // (4 * vocabulary)
    # Dropout in an adapter of the output layer must drop the same values again.
    drops = head is not None and any(isinstance(module, torch.nn.Dropout) for module in head.modules())

    def logps_of(hidden: torch.Tensor, output_layer: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """(B, S, H) -> (N,)."""
        rows = hidden.flatten(0, 1).index_select(0, inputs["predictors"])
        return _chunked(rows, inputs["targets"], output_layer, size, kept, temperature, drops)

    if head is None:
        return logps_of(_logits(model, inputs), lambda logits: logits)
    # Replaces the output layer inside the model's forward: wrappers (DDP, DeepSpeed) keep their hooks. `patch` restores
    # a `forward` that accelerate or DeepSpeed may have set on the module, and deletes its own otherwise.
    original = head.forward
    with patch.object(head, "forward", lambda hidden: logps_of(hidden, original)):
        return _logits(model, inputs)


def plain_head(model: Any, output_layer: torch.nn.Module | None, device: torch.device) -> bool:
    """Return whether the output layer returns the model's logits; checked by a forward of a few tokens.

    Some architectures scale or cap the logits afterwards (Gemma 2, Cohere, Granite).
    """
    if output_layer is None:
        return False
    seen: list[torch.Tensor] = []
    hook = output_layer.register_forward_hook(lambda module, args, result: seen.append(result))
    try:
        with torch.no_grad():
            logits = _logits(model, {"input_ids": torch.arange(CHECKED_TOKENS, device=device).unsqueeze(0)})
    finally:
        hook.remove()
    return len(seen) == 1 and torch.equal(seen[0].float(), logits.float())


def separates_packed(model: Any, device: torch.device) -> bool:
    """Return whether packed sequences don't attend to one another; checked by two forwards of a few tokens.

    With flash_attention_2 transformers 4.48.1 separates them by their positions, if the model passes positions on.
    """
    ids = torch.arange(CHECKED_TOKENS, device=device)
    seen, was_training = [], model.training
    model.eval()
    with torch.no_grad():
        for before in (ids, ids.flip(0)):
            packed = {"input_ids": torch.cat([before, ids]), "position_ids": torch.cat([ids, ids])}
            seen.append(_logits(model, {name: row.unsqueeze(0) for name, row in packed.items()})[0, len(ids) :])
    model.train(was_training)
    return torch.equal(*seen)


def _logits(model: Any, inputs: Batch) -> torch.Tensor:
    """Return what the model's forward returns as logits.

    There is no attention mask: no token attends to the padding, which comes last. Without a mask sdpa may take its
    kernel for causal attention.
    """
    logits: torch.Tensor = model(
        input_ids=inputs["input_ids"], position_ids=inputs.get("position_ids"), use_cache=False
    ).logits
    return logits


def _chunked(
    rows: torch.Tensor,
    targets: torch.Tensor,
    output_layer: Callable[[torch.Tensor], torch.Tensor],
    size: int,
    kept: int,
    temperature: float,
    preserve_rng_state: bool,
) -> torch.Tensor:
    """(N, H) and (N,) -> (N,), `size` rows at a time; the chunks of the first `kept` rows keep their logits."""

    def logps(rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = output_layer(rows).float()
        if temperature != 1:
            logits = logits / temperature
        return logits.gather(1, targets.unsqueeze(1)).squeeze(1) - logits.logsumexp(dim=1)

    again = partial(checkpoint, logps, use_reentrant=False, preserve_rng_state=preserve_rng_state)
    if len(rows) <= size:  # one chunk: nothing to save by calculating it twice
        kept = size
    chunks = zip(range(0, len(rows), size), rows.split(size), targets.split(size), strict=True)
    return torch.cat([(logps if i + len(part) <= kept else again)(part, wanted) for i, part, wanted in chunks])
