"""Shapes of models: compared with transformers' own, read from files, and unknown ones."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mini_r1.errors import KitError
from mini_r1.plan.shapes import KNOWN, ModelShape, UnknownShape, builtin_shape, find_shape
from mini_r1.recipe.builtin_models import BUILTIN_MODELS, DEMO_MODEL
from mini_r1.training.from_scratch import save_untrained
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config
from transformers.models.qwen2 import Qwen2ForCausalLM

INSTRUCT_3B = "Qwen/Qwen2.5-3B-Instruct"


def on_meta(shape: ModelShape) -> Qwen2ForCausalLM:
    """Return the model without any memory."""
    config = Qwen2Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied, max_position_embeddings=shape.max_positions,
    )  # fmt: skip
    with torch.device("meta"):
        return Qwen2ForCausalLM(config)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_parameters_are_those_of_transformers_own_model(name: str) -> None:
    shape = KNOWN[name]
    model = on_meta(shape)
    assert shape.parameters == model.num_parameters()
    layer = model.model.layers[0]
    assert layer.self_attn.head_dim == shape.head_size
    linears = {n.rsplit(".", 1)[-1]: m for n, m in layer.named_modules() if isinstance(m, torch.nn.Linear)}
    assert shape.linears == {n: (m.in_features, m.out_features) for n, m in linears.items()}
    largest = max(model.parameters(), key=lambda p: p.numel())
    assert shape.embedding_parameters == shape.largest_parameter == largest.numel()


def test_with_a_small_vocabulary_a_linear_layer_is_the_largest_parameter() -> None:
    shape = replace(KNOWN[INSTRUCT_3B], vocabulary=1_000)
    assert shape.largest_parameter == max(p.numel() for p in on_meta(shape).parameters()) == 2_048 * 11_008


def test_published_parameter_counts() -> None:
    assert KNOWN["Qwen/Qwen2.5-0.5B"].parameters == 494_032_768
    assert KNOWN[INSTRUCT_3B].parameters == 3_085_938_688


@pytest.mark.parametrize("name", BUILTIN_MODELS)
def test_a_built_in_model_has_the_planned_shape(name: str, tmp_path: Path) -> None:
    kind = BUILTIN_MODELS[name]
    of_files = find_shape(str(save_untrained(tmp_path / "model", kind=kind)), "main")
    for field in ("hidden", "layers", "heads", "kv_heads", "head_size", "intermediate", "vocabulary", "tied",
                  "max_positions", "dtype", "qkv_bias", "parameters"):  # fmt: skip
        assert getattr(of_files, field) == getattr(builtin_shape(kind), field), field


@pytest.mark.parametrize("modules", [None, ["all-linear"], ["q_proj", "model.layers.0.mlp.down_proj"]])
def test_an_adapter_has_as_many_parameters_as_peft_makes(modules: list[str] | None) -> None:
    shape = builtin_shape(BUILTIN_MODELS[DEMO_MODEL])
    targets = (
        "all-linear" if modules == ["all-linear"] else [m.rsplit(".", 1)[-1] for m in modules] if modules else None
    )
    model = get_peft_model(on_meta(shape), LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    assert shape.adapter_parameters(4, modules) == model.get_nb_trainable_parameters()[0]


def test_a_llama_is_read_from_its_directory(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=1000, hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, torch_dtype="bfloat16",
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = find_shape(str(tmp_path), "main")
    assert (shape.parameters, shape.dtype, shape.tied) == (model.num_parameters(), "bfloat16", False)


def test_a_model_in_the_hub_s_cache_is_read_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "a" * 40
    folder = tmp_path / "models--somebody--small"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    Qwen2Config(num_hidden_layers=5).save_pretrained(folder / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_shape("somebody/small", "main").layers == 5
    with pytest.raises(UnknownShape):
        find_shape("somebody/small", "other")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Qwen/Qwen2.5-3B-Instuct", "did you mean 'Qwen/Qwen2.5-3B-Instruct'?"),
        ("nobody/nothing", "the shape of nobody/nothing is not known here"),
        ("/no/such/model", "/no/such/model is not on this machine"),
        ("not a name/at all", "is not known here"),
    ],
)
def test_an_unknown_model_is_a_warning(name: str, said: str) -> None:
    with pytest.raises(UnknownShape, match=re.escape(said)):
        find_shape(name, "main")


@pytest.mark.parametrize("name", ["Qwen/Qwen3-1.7B", "google/gemma-3-1b-it", "openai/gpt-oss-20b"])
def test_a_kind_newer_than_the_pinned_transformers_is_refused_by_name(name: str) -> None:
    with pytest.raises(KitError, match="transformers 4.48.1, which this kit is pinned to, does not know it") as caught:
        find_shape(name, "main")
    assert "Use a model of a known kind, e.g. Qwen2.5" in caught.value.message


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "qwen3"}, "transformers 4.51.0 was the first that does"),
        ({"model_type": "qwen2", "num_attention_heads": 4}, "hidden_size must be a whole number above 0, found None"),
        ({"model_type": "qwen2", "num_attention_heads": 0}, "num_attention_heads must be a whole number above 0"),
        ("[" * 100_000, "config.json is not JSON: copy the model again"),
        ("[]", "config.json is not a JSON object: copy the model again"),
        (None, "has no config.json"),
    ],
    ids=["later kind", "size missing", "no heads", "deep", "list", "none"],
)
def test_a_directory_that_cannot_be_used_is_an_error(tmp_path: Path, config: object, said: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(KitError, match=re.escape(said)):
        find_shape(str(tmp_path), "main")


def test_an_adapter_is_not_trained_further(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(KitError, match="is an adapter and is not trained further"):
        find_shape(str(tmp_path), "main")


def test_a_kind_of_another_layout_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(UnknownShape, match="memory and time are known for qwen2, llama, mistral only"):
        find_shape(str(tmp_path), "main")
