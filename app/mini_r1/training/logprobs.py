"""Log-probabilities of completion tokens, without all their logits in memory at once.

A model's logits are its largest tensor: 8 completions of 1,024 tokens over a vocabulary of 151,936 are 5 GB in float32,
and so are their softmax and gradients. Here the output layer runs over chunks of tokens, and the backward pass
calculates a chunk's logits again instead of keeping them:

    peak bytes of logits = COPIES * 4 * chunk * V,   chunk = min(tokens, CHUNK_BYTES // (4 * V))

with V the size of the vocabulary and tokens the real (unpadded) completion tokens of the micro-batch: about
COPIES * CHUNK_BYTES for completions of any length. tests/training/test_logprobs.py measures it.
"""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 1 << 28
"""Float32 logits of one chunk: 256 MiB, 441 tokens of a 152k vocabulary, so about 1 GiB with its COPIES."""
COPIES = 4
"""Float32 tensors of a chunk's shape alive at the peak, in the backward pass: the logits, their exponentials, the
gradient of the logsumexp and that of the gather."""


def completion_logps(
    model: Any, head: torch.nn.Module | None, vocabulary: int, inputs: dict[str, torch.Tensor], temperature: float
) -> torch.Tensor:
    """Return the log-probability of each completion token under softmax(logits / temperature), as it was sampled.

    (B, C) in float32; 0 where `completion_mask` (B, C) is 0. The attention mask (B, P + C) hides the left padding, and
    positions start at each prompt's first real token, as in the rollout. `head` is the model's output layer if its
    result is the logits, see `plain_head`; None calculates them all at once.
    """
    mask = inputs["completion_mask"].bool()
    width = mask.shape[1]
    targets = inputs["input_ids"][:, -width:][mask]

    def logps_of(hidden: torch.Tensor, output_layer: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """(B, C + 1, H) -> (B, C); the last position predicts what comes after the completion."""
        rows = hidden[:, -width - 1 : -1][mask]
        logps = _chunked(rows, targets, output_layer, max(1, CHUNK_BYTES // (4 * vocabulary)), temperature)
        return logps.new_zeros(mask.shape).masked_scatter(mask, logps)

    if head is None:
        return logps_of(_forward(model, inputs, width), lambda logits: logits)
    # Replaces the output layer inside the model's forward: wrappers (DDP, DeepSpeed) keep their hooks. `patch` restores
    # a `forward` that accelerate or DeepSpeed may have set on the module, and deletes its own otherwise.
    original = head.forward
    with patch.object(head, "forward", lambda hidden: logps_of(hidden, original)):
        return _forward(model, inputs, width)


def plain_head(model: Any, output_layer: torch.nn.Module | None, inputs: dict[str, torch.Tensor]) -> Any:
    """Return the output layer if it returns the model's logits, else None; checked by one forward of a single row.

    Some architectures scale or cap the logits afterwards (Gemma 2, Cohere, Granite).
    """
    if output_layer is None:
        return None
    seen: list[torch.Tensor] = []
    hook = output_layer.register_forward_hook(lambda module, args, result: seen.append(result))
    try:
        with torch.no_grad():
            logits = _forward(model, {name: inputs[name][:1] for name in ("input_ids", "attention_mask")}, 1)
    finally:
        hook.remove()
    return output_layer if len(seen) == 1 and torch.equal(seen[0].float(), logits.float()) else None


def _forward(model: Any, inputs: dict[str, torch.Tensor], width: int) -> torch.Tensor:
    """Return the model's logits for the last `width` + 1 positions."""
    mask = inputs["attention_mask"]
    return model(  # type: ignore[no-any-return]
        input_ids=inputs["input_ids"],
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        num_logits_to_keep=width + 1,
        use_cache=False,
    ).logits


def _chunked(
    rows: torch.Tensor,
    targets: torch.Tensor,
    output_layer: Callable[[torch.Tensor], torch.Tensor],
    size: int,
    temperature: float,
) -> torch.Tensor:
    """(N, H) and (N,) -> (N,), `size` rows at a time."""

    def logps(rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = output_layer(rows).float()
        if temperature != 1:
            logits = logits / temperature
        return logits.gather(1, targets.unsqueeze(1)).squeeze(1) - logits.logsumexp(dim=1)

    if len(rows) <= size:  # one chunk: nothing to save by calculating it twice
        return logps(rows, targets)
    chunks = zip(rows.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(logps, chunk, wanted, use_reentrant=False) for chunk, wanted in chunks])
