"""Loading a model: what is refused, in which words, and that nothing of a repository's own code runs meanwhile."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_r1.errors import ExitCode, KitError
from mini_r1.generation.model import describe, device, eos_token_ids, load_model, load_tokenizer, refuse_misfit
from mini_r1.recipe.model_kinds import FIRST_VERSION, TRANSFORMERS
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, __version__

Variant = Callable[..., str]


@pytest.fixture
def variant(untrained: Path, tmp_path: Path) -> Variant:
    """A copy of the untrained model with keys of one of its JSON files replaced, or taken out where None."""

    def make(file: str = "config.json", **changes: Any) -> str:
        folder = tmp_path / "variant"
        if not folder.exists():
            shutil.copytree(untrained, folder)
        values = {**json.loads((folder / file).read_text()), **changes}
        (folder / file).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        return str(folder)

    return make


@pytest.fixture(autouse=True)
def _nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks "Do you wish to run the custom code?" where trust_remote_code is left open."""

    def asked(question: str = "") -> str:
        pytest.fail(f"asked at the terminal: {question}")

    monkeypatch.setattr("builtins.input", asked)


def refusal(load: Callable[..., Any], *arguments: Any) -> str:
    """One sentence, with the exit code of a recipe that is wrong."""
    with pytest.raises(KitError) as caught:
        load(*arguments)
    assert caught.value.exit_code == ExitCode.CONFIG
    assert "\n" not in caught.value.message
    return caught.value.message


def refused(name: str, revision: str | None = None) -> str:
    return refusal(load_model, name, revision, None, None)


def test_no_kind_of_the_table_is_known_to_the_pinned_transformers() -> None:
    assert __version__ == TRANSFORMERS
    assert len(FIRST_VERSION) > 20
    assert [kind for kind in FIRST_VERSION if kind in CONFIG_MAPPING] == []
    assert FIRST_VERSION["qwen3"] == "4.51.0"


def test_a_kind_of_model_that_came_later_is_named_with_its_version(variant: Variant) -> None:
    name = variant(model_type="qwen3", architectures=["Qwen3ForCausalLM"])
    assert refused(name) == (
        f"{name} is a 'qwen3' model; transformers 4.48.1, which this kit is pinned to, does not know it: "
        "transformers 4.51.0 was the first that does. Use a model of a known kind, e.g. Qwen2.5"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "qwen9"}, "'qwen9' model; transformers 4.48.1, .* does not know it: a later version may"),
        (
            {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}},
            "'mine' model; .* does not know it: its repository brings code, which the kit never runs",
        ),
        ({"model_type": None}, "is missing or has no model_type"),
        ({"model_type": 5}, "is missing or has no model_type"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "'t5' model, an encoder-decoder"),
        ({"model_type": "vit"}, "'vit' model, which writes no text"),
        ({"architectures": ["Qwen2Model"]}, "holds the weights of a Qwen2Model, which is no causal language model"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "weights of a Qwen2ForSequenceClassification"),
        ({"hidden_size": 128}, "cannot load the model from .*size mismatch for model.embed_tokens.weight"),
        ({"hidden_act": "none"}, "holds something that transformers cannot use .KeyError: 'none'"),
        ({"hidden_size": "64"}, "holds something that transformers cannot use .TypeError: "),
        ({"pad_token_id": 9999}, "cannot use .AssertionError: Padding_idx must be within num_embeddings"),
        ({"num_hidden_layers": 3}, "incomplete: 12 tensors of its Qwen2ForCausalLM are missing, model.layers.2"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_configuration_that_cannot_be_loaded(variant: Variant, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(KitError, match=said):
        load_model(variant(**changes), None, None, None)


def test_code_in_the_folder_of_a_known_model_is_ignored(variant: Variant) -> None:
    """The model is of a kind that transformers has a class for: that class loads it, and code.py is never looked at."""
    name = variant(auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    (Path(name) / "code.py").write_text("raise SystemExit('ran')")
    assert describe(load_model(name, None, None, None))["class"] == "Qwen2ForCausalLM"
    name = variant("tokenizer_config.json", tokenizer_class="T", auto_map={"AutoTokenizer": ["code.T", None]})
    assert "needs code from its repository, which the kit never runs" in refusal(load_tokenizer, name, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "is not a valid JSON file"), ("{", "is not a valid JSON file"), ("[]", "holds something that transformers")],
)
def test_a_config_that_is_no_json_object(variant: Variant, content: str, said: str) -> None:
    name = variant()
    (Path(name) / "config.json").write_text(content)
    assert said in refused(name)


def test_pickled_weights_on_the_hub_are_not_sent_to_be_converted(
    untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers 4.48.1 would have a web service convert them, and load what it offers as a pull request."""
    config = json.loads((untrained / "config.json").read_text())
    monkeypatch.setattr("transformers.PretrainedConfig.get_config_dict", lambda *_, **__: (dict(config), {}))
    monkeypatch.setattr("transformers.modeling_utils.auto_conversion", lambda *_, **__: pytest.fail("asked a service"))
    said = refused("nobody/pickles", "main")
    assert "nobody/pickles has no safetensors weights" in said
    assert "pickled ones (pytorch_model.bin) are not read, because loading them can run code" in said


def test_an_empty_directory(tmp_path: Path) -> None:
    assert "is missing or has no model_type" in refused(str(tmp_path))


def test_a_directory_without_weights_and_one_with_pickles(variant: Variant) -> None:
    name = variant()
    weights = Path(name) / "model.safetensors"
    torch.save(load_file(weights), Path(name) / "pytorch_model.bin")
    weights.unlink()
    said = refused(name)
    assert "has no safetensors weights; pickled ones (pytorch_model.bin) are not read" in said
    assert "safe_serialization=True" in said
    (Path(name) / "pytorch_model.bin").unlink()
    assert "has no weights: there is no model.safetensors in it" in refused(name)


@pytest.mark.parametrize(
    "damage", [b"", b"\x00" * 100, b"<html>not found</html>", None], ids=["0", "zeros", "html", "cut"]
)
def test_damaged_weights(variant: Variant, damage: bytes | None) -> None:
    name = variant()
    weights = Path(name) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10] if damage is None else damage)
    assert f"the weights of {name} are damaged" in refused(name)


def test_weights_that_lack_a_tensor_are_not_filled_up_at_random(variant: Variant) -> None:
    name = variant()
    weights = load_file(Path(name) / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, Path(name) / "model.safetensors", metadata={"format": "pt"})
    assert "1 tensors of its Qwen2ForCausalLM are missing, model.norm.weight among them" in refused(name)


def test_a_missing_shard(variant: Variant) -> None:
    name = variant()
    (Path(name) / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (Path(name) / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors" in refused(name)


def test_a_name_that_cannot_be_had() -> None:
    assert "cannot load the model from /no/such/model" in refused("/no/such/model")
    assert "cannot load the model nobody/nothing" in refused("nobody/nothing")
    assert "cannot load the tokenizer nobody/nothing" in refusal(load_tokenizer, "nobody/nothing", "main")


def test_a_tokenizer_without_a_padding_token_pads_with_its_end_token(variant: Variant) -> None:
    name = variant("tokenizer_config.json", pad_token=None)
    variant("special_tokens_map.json", pad_token=None)
    tokenizer = load_tokenizer(name, None)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    variant("tokenizer_config.json", eos_token=None)
    variant("special_tokens_map.json", eos_token=None)
    assert "has neither a padding nor an end token" in refusal(load_tokenizer, name, None)


def test_a_damaged_tokenizer(variant: Variant) -> None:
    name = variant()
    (Path(name) / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "nothing"}}')
    assert f"cannot load the tokenizer from {name}" in refusal(load_tokenizer, name, None)
    for file in Path(name).glob("tokenizer*"):
        file.unlink()
    assert f"{name} has no tokenizer in it" in refusal(load_tokenizer, name, None)


def test_a_tokenizer_with_ids_that_the_model_has_no_embedding_for(untrained: Path) -> None:
    model, tokenizer = load_model(str(untrained), None, None, None), load_tokenizer(str(untrained), None)
    size = len(tokenizer)
    refuse_misfit(model, tokenizer)
    tokenizer.add_tokens(["<more>", "<and more>"])
    said = refusal(refuse_misfit, model, tokenizer)
    assert f"the tokenizer has {size + 2} tokens and the model has embeddings for {size}" in said
    tokenizer.pad_token = "<more>"
    said = refusal(refuse_misfit, model, tokenizer)
    assert f"the padding token '<more>' has the id {size} and the model has embeddings for {size} tokens" in said
    model.resize_token_embeddings(size + 2)
    refuse_misfit(model, tokenizer)


def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device().type == "cpu"
    monkeypatch.setenv("MINI_R1_ACCELERATOR", "cuda")
    with pytest.raises(KitError, match="torch sees no GPU") as raised:
        device()
    assert raised.value.exit_code == ExitCode.RETRY


def test_what_runs_is_described(untrained: Path) -> None:
    model = load_model(str(untrained), None, "bfloat16", "eager")
    assert describe(model) == {
        "class": "Qwen2ForCausalLM",
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": "bfloat16",
        "attention": "eager",
        "revision": None,
        "quantization": None,
    }
    model.generation_config.eos_token_id = [0, 2]
    assert eos_token_ids(model, load_tokenizer(str(untrained), None)) == [0, 2]


def test_an_adapter_cannot_have_a_module_imported(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_model(str(untrained), None, None, None)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    values = {**json.loads(file.read_text()), "megatron_config": {"any": 1}, "megatron_core": "chosen_by_a_stranger"}
    file.write_text(json.dumps(values))
    (tmp_path / "chosen_by_a_stranger.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "megatron_config in its adapter_config.json" in refused(str(tmp_path / "adapter"))
    assert "chosen_by_a_stranger" not in sys.modules
