"""Bytes that a forward pass leaves for its backward pass, and bytes of the logits.

Korthikanti et al. (arXiv:2205.05198, section 4.1) count a layer's activations tensor by tensor: 34 s b h + 5 a s^2 b
bytes for GPT in 16 bits. This is the same count for the layer of Qwen2, Llama and Mistral in transformers 4.48.1:
RMSNorm in float32, shared keys and values, a gated MLP, no dropout. tests/cluster/test_activations.py compares it with
the tensors that autograd really keeps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mini_r1.plan.shapes import ModelShape

LOGITS_CHUNK_BYTES = 1 << 28  # `training.logprobs.CHUNK_BYTES`; a test compares them, because that module imports torch
LOGITS_COPIES = 4  # `training.logprobs.COPIES`


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward and backward pass of a worker at its largest; prompt and completion in tokens."""

    sequences: float  # of this prompt and completion, or the tokens of as many
    prompt: int
    completion: int
    attention: str  # eager, sdpa or flash_attention_2
    residual: int  # bytes of a value between the layers: the weights' type
    compute: int  # bytes of a value inside linear layers
    checkpointing: bool  # the recipe's gradient_checkpointing
    extra_per_token: float = 0.0  # bytes of one layer's adapters, see adapter_bytes
    kept_logits: float = 0.0  # bytes of logits that are kept for the backward pass

    @property
    def length(self) -> int:
        """Tokens of a sequence, padding included."""
        return self.prompt + self.completion


def layer_bytes(shape: ModelShape, attention: str, *, residual: int, compute: int) -> float:
    """Return what one decoder layer keeps for its backward pass, in bytes per token, without eager's score matrices.

        2 norms      each h in float32, h in the residual's type, h as the next linear layers' input
        attention    queries h, keys and values, output h; sdpa copies keys and values for each head and the output once
        MLP          gate, silu(gate), up and their product: 4 i
        autocast     if the residual is wider, each of five linear layers behind a norm casts its input anew: 3 h

    Arguments as in `MicroBatch`.
    """
    h = shape.hidden
    norms = 2 * h * (4 + residual + compute) + (3 * h * compute if residual > compute else 0)
    wide = shape.heads * shape.head_size
    kept = 2 * wide + 2 * shape.kv_width if attention == "flash_attention_2" else 5 * wide
    return norms + compute * (kept + 4 * shape.intermediate)


def score_bytes(shape: ModelShape, attention: str, length: int, compute: int) -> float:
    """Return the attention scores that one layer keeps, in bytes per token: only the eager kernel keeps them.

    Per head and pair of positions the softmax in float32 and, in 16 bits, once more in the compute type.
    """
    kept = shape.heads * length * (4 + (compute if compute == 2 else 0))
    return kept if attention == "eager" else 0.0


def adapter_bytes(shape: ModelShape, modules: Sequence[str] | None, compute: int) -> float:
    """Return what LoRA keeps more in one layer, in bytes per token: its own input of each adapted linear layer."""
    return compute * sum(inputs for inputs, _ in shape.adapted_linears(modules))


def activation_bytes(shape: ModelShape, batch: MicroBatch) -> float:
    """Return the bytes that the forward pass leaves until the backward pass has used them.

    Without checkpointing all that every layer keeps; with it each layer's input (Chen et al., arXiv:1604.06174). Both:
    the last norm.
    """
    layers = batch.residual * shape.hidden if batch.checkpointing else _one_layer(shape, batch)
    last = shape.hidden * (4 + batch.residual + batch.compute)
    return batch.sequences * batch.length * (shape.layers * layers + last)


def transient_bytes(shape: ModelShape, batch: MicroBatch) -> float:
    """Return the most bytes that come and go above those of `activation_bytes`.

    First the logits with loss and gradient, which are gone when the backward pass reaches the layers. Then, for one
    layer at a time, the gradients inside it (3 i and a float32 h twice), and with checkpointing all that it keeps,
    calculated again. So the larger of the two counts: on an H100 their sum was up to 17.5 % too much, the larger one
    within 5.3 % (bench/RESULTS.md).
    """
    layer: float = 3 * batch.compute * shape.intermediate + 8 * shape.hidden
    if batch.checkpointing:
        layer += _one_layer(shape, batch)
    return max(logits_bytes(shape, batch), batch.sequences * batch.length * layer)


def _one_layer(shape: ModelShape, batch: MicroBatch) -> float:
    layer = layer_bytes(shape, batch.attention, residual=batch.residual, compute=batch.compute) + batch.extra_per_token
    return layer + score_bytes(shape, batch.attention, batch.length, batch.compute)


def logits_bytes(shape: ModelShape, batch: MicroBatch) -> float:
    """Return the peak of the chunked log-probabilities, by the formula of training/logprobs.py.

    In 16 bits the output layer's own result and its gradient come on top.
    """
    tokens = batch.sequences * batch.completion
    chunk = min(tokens, max(1, LOGITS_CHUNK_BYTES // (4 * shape.vocabulary)))
    copies = chunk * shape.vocabulary * (4 * LOGITS_COPIES + (4 if batch.compute == 2 else 0))
    return copies + min(batch.kept_logits, tokens * shape.vocabulary * 4)
