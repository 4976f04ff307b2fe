"""Sequences packed without padding for flash attention, on a CPU: its kernels are replaced by plain stand-ins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.training.logprobs import completion_logps, separates_packed
from mini_r1.training.rollout import Completion, collate
from transformers import LlamaConfig, MistralConfig, Qwen2Config, modeling_flash_attention_utils
from transformers.models.auto import AutoModelForCausalLM

from tests.training.flash_kernels import dense, replace_kernels

CPU = torch.device("cpu")
VOCABULARY = 512


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_kernels(monkeypatch)


def tiny(config: type = Qwen2Config, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    made = config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(made, attn_implementation="sdpa")
    model.config._attn_implementation = attention  # not asked for the package, which needs a GPU
    return model


def completions() -> list[Completion]:
    """Prompts and completions of several lengths."""
    drawn = torch.Generator().manual_seed(1)
    return [
        Completion(Problem((1, 2), 3), "", *(torch.randint(VOCABULARY, (n,), generator=drawn).tolist() for n in pair),
                   False)
        for pair in ((5, 20), (9, 3), (1, 1), (7, 31))
    ]  # fmt: skip


def gradients(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_sequences_have_the_padded_ones_logits_and_gradients(kernels: None, checkpointing: bool) -> None:
    found = []
    for attention in ("sdpa", "flash_attention_2"):
        model = tiny(attention=attention).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        batch = collate(completions(), 1.0, 0, CPU, packed=attention != "sdpa")
        logits = model(input_ids=batch["input_ids"], position_ids=batch.get("position_ids")).logits
        logps = completion_logps(model, model.get_output_embeddings(), VOCABULARY, batch, 0.9)
        logps.sum().backward()
        found.append((logits.flatten(0, 1)[batch["predictors"]], logps, gradients(model)))
    (logits, logps, gradient), (packed_logits, packed_logps, packed_gradient) = found
    assert batch["input_ids"].shape == (1, 77)
    assert (packed_logits - logits).abs().max() < 3e-7  # of values up to 0.8: the rounding of float32
    torch.testing.assert_close(packed_logps, logps)
    assert (packed_gradient - gradient).abs().max() < 3e-6
    assert gradient.abs().max() > 0.1


@pytest.mark.parametrize("config", [Qwen2Config, LlamaConfig, MistralConfig])
def test_a_model_that_separates_packed_sequences_is_recognized(kernels: None, config: type) -> None:
    model = tiny(config, "flash_attention_2").train()
    assert separates_packed(model, CPU)
    assert model.training


def test_a_model_that_does_not_separate_them_is_recognized(monkeypatch: pytest.MonkeyPatch, kernels: None) -> None:
    assert not separates_packed(tiny(attention="sdpa"), CPU)

    def joined(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **settings: Any) -> torch.Tensor:
        return dense(query[None], key[None], value[None], **settings)[0]

    monkeypatch.setattr(modeling_flash_attention_utils, "flash_attn_varlen_func", joined)
    assert not separates_packed(tiny(attention="flash_attention_2"), CPU)
