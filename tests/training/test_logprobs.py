"""Log-probabilities in chunks: the same values and gradients as all at once, in the memory that the formula says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.training import logprobs
from mini_r1.training.logprobs import COPIES, completion_logps, plain_head
from mini_r1.training.rollout import Completion, collate
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Qwen2Config
from trl import GRPOConfig, GRPOTrainer

VOCABULARY = 4096
CPU = torch.device("cpu")


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
    ids = torch.randint(VOCABULARY, (rows, prompt + width), generator=torch.Generator().manual_seed(1))
    made = [
        Completion(Problem((1, 2), 3), "", row[:prompt], row[prompt : len(row) - 2 * number], False)
        for number, row in enumerate(ids.tolist())
    ]
    return collate(made, 1.0, 0, CPU)


def at_once(model: Any, inputs: dict[str, torch.Tensor], temperature: float) -> torch.Tensor:
    """The plain way, in the whole batch's logits."""
    ids = inputs["input_ids"]
    logps = (model(input_ids=ids).logits[:, :-1] / temperature).log_softmax(-1)
    found = logps.gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
    return torch.nn.functional.pad(found, (0, 1)).flatten()[inputs["predictors"]]


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
    head = model.get_output_embeddings()
    assert plain_head(model, head, CPU)
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
    assert not plain_head(model, model.get_output_embeddings(), CPU)
    expected = at_once(model, inputs, 1.0)
    torch.testing.assert_close(completion_logps(model, None, VOCABULARY, inputs, 1.0), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dropout", [False, True])
def test_kept_logits_are_not_calculated_again(
    small_chunks: None, monkeypatch: pytest.MonkeyPatch, dropout: bool
) -> None:
    """And the others with the same dropout, without which no random state is saved."""
    inputs, model, calls = batch(), tiny(), [0]
    head = torch.nn.Sequential(torch.nn.Dropout(0.5) if dropout else torch.nn.Identity(), model.get_output_embeddings())
    model.set_output_embeddings(head)
    monkeypatch.setattr(head[0], "forward", counted(head[0].forward, calls))
    if not dropout:
        monkeypatch.setattr(torch, "get_rng_state", None)
    tokens, gradients = len(inputs["targets"]), []
    chunks = -(-tokens // 7)
    for kept, again in ((0, chunks), (20, chunks - 2), (tokens - 1, 1), (tokens, 0)):
        calls[0] = 0
        model.zero_grad()
        torch.manual_seed(3)
        completion_logps(model, head, VOCABULARY, inputs, 1.0, kept * 4 * VOCABULARY).square().sum().backward()
        assert calls[0] == chunks + again
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    for gradient in gradients[:-1]:
        torch.testing.assert_close(gradient, gradients[-1], rtol=1e-4, atol=1e-5)


def counted(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        calls[0] += 1
        return function(*args)

    return call


def peak_bytes(work: Callable[[], None], folder: Path) -> int:
    """Most bytes that PyTorch's allocator held during `work`, above what it held before."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    profile.export_chrome_trace(str(folder / "trace.json"))
    trace = json.loads((folder / "trace.json").read_text())["traceEvents"]
    events = [event["args"] for event in trace if event.get("name") == "[memory]"]
    before = events[0]["Total Allocated"] - events[0]["Bytes"]
    return max(event["Total Allocated"] for event in events) - before


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    ("chunk", "kept"), [(100, 0), pytest.param(200, 0, marks=pytest.mark.exhaustive), (10_000, 0), (100, 300)]
)
def test_the_peak_is_what_the_formula_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: torch.dtype, chunk: int, kept: int
) -> None:
    vocabulary = 32_768
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", chunk * 4 * vocabulary)
    model = tiny(vocab_size=vocabulary).to(dtype)
    inputs = batch(rows=8, width=100)
    tokens = len(inputs["targets"])

    def step() -> None:
        model.zero_grad()
        head, kept_bytes = model.get_output_embeddings(), kept * 4 * vocabulary
        completion_logps(model, head, vocabulary, inputs, 0.9, kept_bytes).sum().backward()

    step()
    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    peak = peak_bytes(step, tmp_path) - gradients
    assert tokens == 744
    assert peak == pytest.approx((COPIES * min(tokens, chunk) + kept) * 4 * vocabulary, rel=0.1)


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

    prompt = tokenizer("1 2 3")["input_ids"]
    made = [Completion(Problem((1, 2), 3), "", prompt, row, False) for row in ends.tolist()]
    inputs = collate(made, 1.0, 0, CPU)

    def kit() -> None:
        model.zero_grad()
        completion_logps(model, model.get_output_embeddings(), vocabulary, inputs, 1.0).sum().backward()

    stock(), kit()
    tokens = 8 * width
    assert peak_bytes(stock, tmp_path) > COPIES * 4 * tokens * vocabulary * 0.5
    assert peak_bytes(kit, tmp_path) < COPIES * 4 * chunk * vocabulary * 1.2
