"""Activations and logits by the formula, compared with the tensors that autograd really keeps."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from mini_r1.plan.activations import (
    LOGITS_CHUNK_BYTES,
    LOGITS_COPIES,
    MicroBatch,
    activation_bytes,
    adapter_bytes,
    layer_bytes,
    logits_bytes,
    score_bytes,
    transient_bytes,
)
from mini_r1.plan.shapes import KNOWN, ModelShape
from mini_r1.training import logprobs
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

SHAPE = ModelShape("test", "qwen2", 128, 2, 8, 2, 16, 352, 300, True, 512)
SEQUENCES, LENGTH = 3, 96


def micro_batch(sequences: int, prompt: int, completion: int, *, compute: int = 2) -> MicroBatch:
    return MicroBatch(sequences, prompt, completion, "sdpa", compute, compute, checkpointing=True)


def kept_bytes(
    layers: int, attention: str, dtype: torch.dtype, *, autocast: bool, lora: bool, checkpointing: bool
) -> int:
    """Return the bytes of the distinct tensors that a forward pass of a Qwen2 keeps, without weights."""
    config = Qwen2Config(
        vocab_size=SHAPE.vocabulary, hidden_size=SHAPE.hidden, intermediate_size=SHAPE.intermediate,
        num_hidden_layers=layers, num_attention_heads=SHAPE.heads, num_key_value_heads=SHAPE.kv_heads,
        attn_implementation=attention, use_cache=False,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).to(dtype)
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    # Autocast's 16-bit copies of the weights are another line of the table.
    shapes = {tuple(sorted(parameter.shape)) for parameter in model.parameters() if parameter.ndim == 2}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tuple(sorted(tensor.shape)) not in shapes:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.zeros((SEQUENCES, LENGTH), dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        context = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
        with context:
            model(input_ids=ids, num_logits_to_keep=1)
    return sum(storage.nbytes() for storage in kept.values())


def per_layer(**how: object) -> float:
    """Return the bytes per token of one more layer."""
    values = {"autocast": False, "lora": False, "checkpointing": False, **how}
    more = kept_bytes(4, **values) - kept_bytes(2, **values)  # type: ignore[arg-type]
    return more / 2 / (SEQUENCES * LENGTH)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("dtype", "autocast", "residual", "compute"),
    [
        (torch.float32, False, 4, 4),
        (torch.bfloat16, False, 2, 2),
        (torch.float32, True, 4, 2),
    ],
    ids=["float32", "bfloat16", "autocast"],
)
def test_a_layer_keeps_what_the_formula_counts(
    attention: str, dtype: torch.dtype, autocast: bool, residual: int, compute: int
) -> None:
    measured = per_layer(attention=attention, dtype=dtype, autocast=autocast)
    counted = layer_bytes(SHAPE, attention, residual=residual, compute=compute)
    counted += score_bytes(SHAPE, attention, LENGTH, compute)
    assert 0.85 * counted < measured < 1.1 * counted


def test_an_adapter_keeps_its_own_inputs() -> None:
    measured = per_layer(attention="sdpa", dtype=torch.bfloat16, lora=True)
    counted = layer_bytes(SHAPE, "sdpa", residual=2, compute=2) + adapter_bytes(SHAPE, ["all-linear"], 4)
    assert 0.7 * counted < measured < 1.05 * counted


def test_with_checkpointing_a_layer_keeps_only_its_input() -> None:
    measured = per_layer(attention="sdpa", dtype=torch.bfloat16, checkpointing=True)
    assert measured == pytest.approx(2 * SHAPE.hidden, rel=0.05)
    batch = micro_batch(SEQUENCES, 32, LENGTH - 32)
    one, two = (activation_bytes(replace(SHAPE, layers=n), batch) for n in (2, 3))
    assert (two - one) / (SEQUENCES * LENGTH) == 2 * SHAPE.hidden


def test_gpt_is_counted_as_in_the_paper_except_for_known_differences() -> None:
    """Korthikanti et al.: 34 bytes for each of s b h; a gated MLP of the same width alone adds 8 to their 19."""
    gpt = replace(SHAPE, heads=8, kv_heads=8, intermediate=4 * SHAPE.hidden)
    ours = layer_bytes(gpt, "flash_attention_2", residual=2, compute=2) / gpt.hidden
    # Norms 16 (theirs 4, in 16 bits), attention 8 (theirs 11, with a dropout mask and an input more), MLP 32 (19).
    assert ours == 16 + 8 + 32


def test_logits_are_counted_by_the_trainer_s_own_formula() -> None:
    assert (LOGITS_CHUNK_BYTES, LOGITS_COPIES) == (logprobs.CHUNK_BYTES, logprobs.COPIES)
    shape = KNOWN["Qwen/Qwen2.5-3B"]
    long = logits_bytes(shape, micro_batch(8, 256, 1024, compute=4))
    assert long == pytest.approx(LOGITS_COPIES * LOGITS_CHUNK_BYTES, rel=0.01)
    short = micro_batch(2, 16, 10, compute=4)
    assert logits_bytes(shape, short) == LOGITS_COPIES * 4 * 20 * shape.vocabulary


def test_logits_and_a_layer_s_backward_pass_are_never_there_at_once() -> None:
    shape = KNOWN["Qwen/Qwen2.5-0.5B"]
    small, large = micro_batch(2, 180, 512), micro_batch(32, 180, 512)
    assert transient_bytes(shape, small) == logits_bytes(shape, small)
    assert transient_bytes(shape, large) > logits_bytes(shape, large)
    layer = layer_bytes(shape, "sdpa", residual=2, compute=2)
    gradients, tokens = 3 * 2 * shape.intermediate + 8 * shape.hidden, 32 * (180 + 512)
    assert transient_bytes(shape, large) == tokens * (layer + gradients)
    without = replace(large, checkpointing=False)
    assert transient_bytes(shape, without) == logits_bytes(shape, large) > tokens * gradients


@pytest.mark.parametrize(
    ("name", "prompts", "measured"),
    [("0.5B", 1, 1_675), ("0.5B", 8, 5_786), ("1.5B", 2, 3_048)],
    ids=["0.5B, 8 sequences", "0.5B, 64 sequences", "1.5B, 16 sequences"],
)
def test_the_update_is_planned_as_measured_on_an_h100(name: str, prompts: int, measured: float) -> None:
    """MiB above weights, reference, optimizer and gradients: bench/RESULTS.md, the entry of bench/gpu/run.py."""
    shape, batch = KNOWN[f"Qwen/Qwen2.5-{name}"], micro_batch(8 * prompts, 180, 512)
    planned = (activation_bytes(shape, batch) + transient_bytes(shape, batch)) / 2**20
    assert planned == pytest.approx(measured, rel=0.11)
