"""The weights that vLLM gets of a model with an adapter. With the real vLLM: test_adapters_in_vllm.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_r1.errors import KitError
from mini_r1.generation import merged_weights as module
from mini_r1.generation.merged_weights import merged_weights, refuse_unmergeable
from mini_r1.generation.model import load_model
from mini_r1.recipe.fields import Recipe
from mini_r1.training.adapters import with_adapter
from peft import IA3Config, LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

IDS = torch.tensor([[5, 9, 20, 33, 7, 12]])
NAMES = ["all-linear"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Every test of this file."""


@pytest.fixture
def adapted(untrained: Path) -> Callable[..., Any]:
    """Make the demo model with an adapter whose weights are random, as if trained."""

    def make(dtype: str = "float32", **changes: Any) -> Any:
        recipe = Recipe(**{"model_name_or_path": str(untrained), "use_peft": True, "lora_r": 4, **changes})
        return randomized(with_adapter(load_model(str(untrained), None, dtype, None), recipe))

    return make


def randomized(model: Any) -> Any:
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(std=0.3)
    return model.eval()


def tiny(tied: bool = True) -> Any:
    shape = Qwen2Config(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(shape)


def lora(model: Any, *names: str, **changes: Any) -> Any:
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, target_modules=list(names), **changes)
    return randomized(get_peft_model(model, config))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def loaded(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    """The base model anew, with these weights."""
    base = model.get_base_model()
    fresh = type(base)(base.config).to(base.dtype).eval()
    assert list(weights) == [name for name, _ in fresh.named_parameters()]
    fresh.load_state_dict(weights, strict=False)
    return fresh


def copied(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in merged_weights(model)}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_weights_have_the_base_model_s_names_and_the_adapter_s_logits(
    adapted: Callable[..., Any], dtype: str, rslora: bool
) -> None:
    model = adapted(dtype, lora_target_modules=NAMES, use_rslora=rslora)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = logits(model)
    weights = copied(model)
    assert {tensor.dtype for tensor in weights.values()} == {getattr(torch, dtype)}
    tolerance = 1e-5 if dtype == "float32" else 0.03 * float(expected.float().abs().max())
    torch.testing.assert_close(logits(loaded(model, weights)), expected, rtol=1e-4, atol=tolerance)
    with model.disable_adapter():
        assert (logits(model) - expected).abs().max() > 10 * tolerance  # the adapter does something
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_rank_stabilized_adapters_are_larger(adapted: Callable[..., Any]) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    plain, stable = (copied(adapted(lora_target_modules=NAMES, use_rslora=flag))[name] for flag in (False, True))
    base = adapted().get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    torch.testing.assert_close(stable - base, (plain - base) * 2)  # the root of rank 4


def test_a_sixteen_bit_weight_is_rounded_once(adapted: Callable[..., Any]) -> None:
    model = adapted("bfloat16")
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    exact = layer.base_layer.weight.double() + layer.scaling["default"] * (
        layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
    )
    found = copied(model)["model.layers.0.self_attn.q_proj.weight"]
    # A float32 sum may be next to a tie, hence not all.
    assert (found == exact.bfloat16()).float().mean() > 0.999


def test_no_weight_is_computed_before_it_is_asked_for(
    adapted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    merge = module._merged
    monkeypatch.setattr(module, "_merged", lambda *args: made.append(1) or merge(*args))
    weights = merged_weights(adapted(lora_target_modules=NAMES))
    for name, _ in weights:
        if "k_proj.weight" in name:
            break
    assert len(made) == 2  # q_proj and k_proj of the first layer


def test_sharded_factors_are_whole_together_with_their_weight(adapted: Callable[..., Any]) -> None:
    """As under ZeRO-3, where a parameter has no elements outside of GatheredParameters."""
    model = adapted(lora_target_modules=["q_proj"])
    expected = copied(model)
    full = {id(parameter): parameter.data for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.data = torch.empty(0)

    @contextmanager
    def whole(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        for parameter in parameters:
            parameter.data = full[id(parameter)]
        yield
        for parameter in parameters:
            parameter.data = torch.empty(0)

    found = {name: tensor.clone() for name, tensor in merged_weights(model, whole)}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_model_without_an_adapter_is_sent_as_it_is(untrained: Path) -> None:
    model = load_model(str(untrained), None, None, None)
    for (name, tensor), (expected, parameter) in zip(merged_weights(model), model.named_parameters(), strict=True):
        assert (name, tensor.data_ptr()) == (expected, parameter.data_ptr())


def test_embeddings_and_an_untied_output_layer() -> None:
    model = lora(tiny(tied=False), "embed_tokens", "lm_head", "up_proj")
    refuse_unmergeable(model)
    torch.testing.assert_close(logits(loaded(model, copied(model))), logits(model), rtol=1e-4, atol=1e-5)


def test_weights_stored_the_other_way_round() -> None:
    """GPT-2's Conv1D."""
    shape = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = lora(AutoModelForCausalLM.from_config(shape), "c_attn", fan_in_fan_out=True)
    refuse_unmergeable(model)
    torch.testing.assert_close(logits(loaded(model, copied(model))), logits(model), rtol=1e-4, atol=1e-5)


def test_quantized_weights_are_unpacked_with_and_without_an_adapter(
    adapted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-in for bitsandbytes, which needs a GPU: a base weight in which a class of that name holds other numbers."""

    class Params4bit(nn.Parameter):
        pass

    model = adapted(lora_target_modules=["q_proj"])
    expected = copied(model)
    layer = model.get_base_model().model.layers[0]
    packed: dict[int, torch.Tensor] = {}
    for linear in (layer.self_attn.q_proj.base_layer, layer.mlp.up_proj):
        whole = linear.weight.data
        linear.weight = Params4bit(torch.zeros(whole.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
        packed[id(linear.weight)] = whole
    monkeypatch.setattr(module, "dequantize_bnb_weight", lambda weight, state: packed[id(weight)])
    found = copied(model)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: lora(tiny(), "q_proj", use_dora=True), "q_proj has an adapter of the type DoRA"),
        (lambda: lora(tiny(), "q_proj", lora_bias=True), "q_proj has an adapter with a bias"),
        (lambda: lora(tiny(), "q_proj", modules_to_save=["lm_head"]), "lm_head has a trained copy (modules_to_save)"),
        (lambda: lora(tiny(), "lm_head"), "lm_head has an adapter of one end of tied embeddings"),
        (lambda: lora(tiny(), "embed_tokens"), "embed_tokens has an adapter of one end of tied embeddings"),
        (
            lambda: get_peft_model(
                tiny(), IA3Config(task_type=TaskType.CAUSAL_LM, target_modules=["k_proj"], feedforward_modules=[])
            ),
            "k_proj has an adapter of the type peft.tuners.ia3.layer.Linear",
        ),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(KitError) as refused:
        refuse_unmergeable(make())
    assert said in refused.value.message
    assert "set use_vllm: false" in refused.value.message


def test_a_recipe_with_vllm_is_refused_before_its_first_step(adapted: Callable[..., Any]) -> None:
    adapted(lora_target_modules=["lm_head"])
    with pytest.raises(KitError, match="lm_head has an adapter of one end of tied embeddings"):
        adapted(lora_target_modules=["lm_head"], use_vllm=True)
    refuse_unmergeable(adapted(lora_target_modules=NAMES, use_vllm=True))
