"""Log-probabilities in chunks: the same values and gradients as all at once, in the memory that the formula says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from mini_r1.training import logprobs
from mini_r1.training.logprobs import COPIES, completion_logps, plain_head
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Qwen2Config
from trl import GRPOConfig, GRPOTrainer

VOCABULARY = 4096


def tiny(config: type = Qwen2Config, **changes: Any) -> Any:
    torch.manual_seed(0)
    values = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }  # fmt: skip
    return AutoModelForCausalLM.from_config(config(**{**values, **changes})).eval()


def batch(rows: int = 4, prompt: int = 3, width: int = 20) -> dict[str, torch.Tensor]:
    """Prompts of one length, completions of several."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(rows, prompt + width, dtype=torch.long)
    for row in range(1, rows):
        mask[row, -2 * row :] = 0
    return {
        "input_ids": torch.randint(VOCABULARY, mask.shape, generator=generator),
        "attention_mask": mask,
        "completion_mask": mask[:, prompt:],
    }


def at_once(model: Any, inputs: dict[str, torch.Tensor], temperature: float) -> torch.Tensor:
    """The plain way, in the whole batch's logits."""
    width = inputs["completion_mask"].shape[1]
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    logps = (logits[:, -width - 1 : -1] / temperature).log_softmax(-1)
    found: torch.Tensor = logps.gather(2, inputs["input_ids"][:, -width:].unsqueeze(2)).squeeze(2)
    return found * inputs["completion_mask"]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 7 * 4 * VOCABULARY)  # 7 tokens: the last chunk is not full


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunks_give_the_same_values_and_gradients(small_chunks: None, temperature: float) -> None:
    inputs = batch()
    model = tiny()
    expected = at_once(model, inputs, temperature)
    (expected**2).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    head = plain_head(model, model.get_output_embeddings(), inputs)
    assert head is model.get_output_embeddings()
    logps = completion_logps(model, head, VOCABULARY, inputs, temperature)
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-6)
    (logps**2).sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)
    # The output layer is its own again.
    assert "forward" not in vars(head)
    assert model(input_ids=inputs["input_ids"]).logits.shape[-1] == VOCABULARY


def test_a_model_that_caps_its_logits_is_not_chunked_at_the_output_layer(small_chunks: None) -> None:
    """Gemma 2 passes the output layer's result through a tanh."""
    inputs = batch()
    model = tiny(Gemma2Config, final_logit_softcapping=0.5, attn_logit_softcapping=None)
    assert plain_head(model, model.get_output_embeddings(), inputs) is None
    expected = at_once(model, inputs, 1.0)
    torch.testing.assert_close(completion_logps(model, None, VOCABULARY, inputs, 1.0), expected, rtol=1e-5, atol=1e-6)


def peak_bytes(work: Callable[[], None], folder: Path) -> int:
    """Most bytes that PyTorch's allocator held during `work`, above what it held before."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    profile.export_chrome_trace(str(folder / "trace.json"))
    trace = json.loads((folder / "trace.json").read_text())["traceEvents"]
    events = [event["args"] for event in trace if event.get("name") == "[memory]"]
    before = events[0]["Total Allocated"] - events[0]["Bytes"]
    return max(event["Total Allocated"] for event in events) - before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [100, 200, 10_000])
def test_the_peak_is_what_the_formula_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: torch.dtype, chunk: int
) -> None:
    vocabulary = 32_768
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", chunk * 4 * vocabulary)
    model = tiny(vocab_size=vocabulary).to(dtype)
    inputs = batch(rows=8, width=100)
    tokens = int(inputs["completion_mask"].sum())

    def step() -> None:
        model.zero_grad()
        completion_logps(model, model.get_output_embeddings(), vocabulary, inputs, 0.9).sum().backward()

    step()
    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    peak = peak_bytes(step, tmp_path) - gradients
    assert tokens == 744
    assert peak == pytest.approx(COPIES * 4 * min(tokens, chunk) * vocabulary, rel=0.1)


def test_stock_holds_the_logits_of_all_tokens(untrained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Row 12: both sides' loss and gradient of the same eight completions."""
    vocabulary, chunk, width = 32_768, 100, 100
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", chunk * 4 * vocabulary)
    model = tiny(vocab_size=vocabulary)
    tokenizer = AutoTokenizer.from_pretrained(untrained, padding_side="left")
    trainer = GRPOTrainer(
        model, reward_funcs=lambda prompts, completions: [0.0, 1.0] * 4,
        args=GRPOConfig(str(tmp_path), num_generations=8, max_completion_length=width, report_to=[], use_cpu=True),
        train_dataset=datasets.Dataset.from_list([{"prompt": "1 2 3"}]), processing_class=tokenizer,
    )  # fmt: skip
    ends = torch.full((8, width), 5).index_fill(1, torch.tensor([width - 1]), tokenizer.eos_token_id)
    trainer.model.generate = lambda input_ids, **_: torch.cat([input_ids.repeat(8, 1), ends], dim=1)

    def stock() -> None:
        model.zero_grad()
        trainer.compute_loss(model, [{"prompt": "1 2 3"}]).backward()

    prompt = tokenizer("1 2 3", return_tensors="pt")["input_ids"].repeat(8, 1)
    ids = torch.cat([prompt, ends], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": torch.ones_like(ends)}

    def kit() -> None:
        model.zero_grad()
        completion_logps(model, model.get_output_embeddings(), vocabulary, inputs, 1.0).sum().backward()

    stock(), kit()
    tokens = 8 * width
    assert peak_bytes(stock, tmp_path) > COPIES * 4 * tokens * vocabulary * 0.5
    assert peak_bytes(kit, tmp_path) < COPIES * 4 * chunk * vocabulary * 1.2
