"""LoRA: what is trained, what is saved and loaded again, what is refused; and a whole run that was cut off."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_r1.cli.training_commands import train
from mini_r1.errors import ExitCode, KitError
from mini_r1.evaluation.evaluate_run import evaluate_run_or_model
from mini_r1.generation.model import describe, eos_token_ids, load_model, load_tokenizer, refuse_misfit
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.reader import read_completions, read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.training.adapters import quantization, with_adapter
from peft import PeftModel, PrefixTuningConfig
from safetensors.torch import load, load_file
from transformers import BitsAndBytesConfig

from tests.conftest import REPO, disk_full_at

IDS = torch.tensor([[5, 9, 20, 33, 7, 12]])
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Every test of this file."""


@pytest.fixture
def recipe(untrained: Path) -> Callable[..., Recipe]:
    def make(**changes: Any) -> Recipe:
        return Recipe(**{"model_name_or_path": str(untrained), "use_peft": True, "lora_r": 4, "seed": 7, **changes})

    return make


def base(untrained: Path, dtype: str | None = None) -> Any:
    return load_model(str(untrained), None, dtype, None)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def trained(model: Any) -> Any:
    """After three steps of gradient descent on a fixed text."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        model.train()(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture
def saved(untrained: Path, tmp_path: Path, recipe: Callable[..., Recipe]) -> tuple[Any, Path]:
    """A trained adapter, and the folder that it and the tokenizer were saved in."""
    model = trained(with_adapter(base(untrained), recipe(lora_target_modules=["all-linear"])))
    model.save_pretrained(tmp_path / "adapter")
    load_tokenizer(str(untrained), None).save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"


# --- the adapter ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_the_adapter_is_trained_and_in_float32(untrained: Path, recipe: Callable[..., Recipe], dtype: str) -> None:
    model = with_adapter(base(untrained, dtype), recipe())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    training = {name for name, p in model.named_parameters() if p.requires_grad}
    assert training == {name for name in before if "lora_" in name}
    assert len(training) == 2 * 2 * 2  # layers, q_proj and v_proj (peft's choice for Qwen2), A and B
    assert {before[name].dtype for name in training} == {torch.float32}
    assert {before[name].dtype for name in set(before) - training} == {getattr(torch, dtype)}
    trained(model)
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == training


def test_the_first_policy_is_the_reference_with_or_without_dropout(
    untrained: Path, recipe: Callable[..., Recipe]
) -> None:
    model = with_adapter(base(untrained), recipe(lora_dropout=0.5))
    expected = logits(base(untrained))
    assert torch.equal(logits(model), expected)
    assert torch.equal(model.train()(IDS).logits, expected)
    trained(model)
    assert not torch.equal(logits(model), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)


def test_the_adapter_depends_only_on_the_recipes_seed(untrained: Path, recipe: Callable[..., Recipe]) -> None:
    def drawn(seed: int, disturbance: int) -> torch.Tensor:
        torch.manual_seed(disturbance)
        model = with_adapter(base(untrained), recipe(seed=seed))
        return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])

    assert torch.equal(drawn(1, 5), drawn(1, 6))
    assert not torch.equal(drawn(1, 5), drawn(2, 5))


@pytest.mark.parametrize(
    ("names", "adapted"),
    [
        (None, ["q_proj", "v_proj"]),
        (["k_proj"], ["k_proj"]),  # TRL 0.14.0 makes a regular expression of a list of one, which matches nothing
        (["mlp.up_proj", "o_proj"], ["o_proj", "up_proj"]),
        (["all-linear"], sorted(LAYERS)),
    ],
)
def test_the_named_modules_get_an_adapter(
    untrained: Path, recipe: Callable[..., Recipe], names: list[str] | None, adapted: list[str]
) -> None:
    model = with_adapter(base(untrained), recipe(lora_target_modules=names, lora_r=3, lora_alpha=12))
    found = {name.split(".")[-4]: p.shape for name, p in model.named_parameters() if "lora_A" in name}
    assert sorted(found) == adapted
    assert {shape[0] for shape in found.values()} == {3}
    facts = describe(model)["adapter"]
    assert (facts["rank"], facts["alpha"], facts["dropout"]) == (3, 12, 0.05)
    assert facts["parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("names", "unknown"),
    [
        (["q_proj", "query"], "query"),  # peft would adapt q_proj and say nothing
        (["proj"], "proj"),
        (["mlp", "input_layernorm"], "mlp, input_layernorm"),  # there, and not linear
        (["all-linear", "q_proj"], "all-linear"),
    ],
)
def test_an_unknown_module_is_refused_with_the_known_ones(
    untrained: Path, recipe: Callable[..., Recipe], names: list[str], unknown: str
) -> None:
    with pytest.raises(KitError) as caught:
        with_adapter(base(untrained), recipe(lora_target_modules=names))
    assert caught.value.message == (
        f"lora_target_modules: the model has no layer called {unknown}: name some of embed_tokens, "
        f"{', '.join(LAYERS)}, lm_head, or all-linear alone"
    )


def test_a_model_type_without_a_default_of_peft_is_refused(untrained: Path, recipe: Callable[..., Recipe]) -> None:
    model = base(untrained)
    model.config.model_type = "mine"
    with pytest.raises(KitError, match="peft has no default for a 'mine' model: name some of embed_tokens"):
        with_adapter(model, recipe())


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_pass_through_checkpointed_layers(
    untrained: Path, recipe: Callable[..., Recipe], reentrant: bool
) -> None:
    def gradients(checkpointing: bool) -> torch.Tensor:
        kwargs = {"use_reentrant": reentrant}
        changes = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": kwargs} if checkpointing else {}
        model = with_adapter(base(untrained), recipe(lora_dropout=0.0, **changes))
        if checkpointing:
            model.gradient_checkpointing_enable(kwargs)  # as the trainer does
        model.train()(IDS, labels=IDS).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    expected = gradients(False)
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradients(True), expected)


def test_without_use_peft_the_model_is_unchanged(untrained: Path, recipe: Callable[..., Recipe]) -> None:
    model = base(untrained)
    assert with_adapter(model, recipe(use_peft=False)) is model
    assert all(p.requires_grad for p in model.parameters())


# --- saved and loaded ---


def test_a_saved_adapter_loads_back_with_its_base(untrained: Path, saved: tuple[Any, Path]) -> None:
    model, folder = saved
    loaded = load_model(str(folder), None, None, "eager")
    assert isinstance(loaded, PeftModel)
    torch.testing.assert_close(logits(loaded), logits(model))
    assert not torch.allclose(logits(loaded), logits(base(untrained)))
    assert not any(p.requires_grad for p in loaded.parameters())
    facts = describe(loaded)
    assert (facts["class"], facts["dtype"], facts["attention"]) == ("Qwen2ForCausalLM", "float32", "eager")
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["adapter"] == describe(model)["adapter"]
    assert facts["adapter"]["target_modules"] == sorted(LAYERS)
    tokenizer = load_tokenizer(str(folder), None)
    assert eos_token_ids(loaded, tokenizer) == [tokenizer.eos_token_id]


def test_an_adapter_names_its_base(
    untrained: Path, tmp_path: Path, recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(untrained.parent)
    model = load_model(untrained.name, None, None, None)
    model.config._commit_hash = "c" * 40  # as of a model from the hub
    with_adapter(model, recipe()).save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (str(untrained), "c" * 40)
    monkeypatch.chdir(tmp_path)
    asked, model = [], base(untrained)
    monkeypatch.setattr(
        "mini_r1.generation.model._load_base", lambda name, revision, *_: asked.append((name, revision)) or model
    )
    load_model("adapter", "any", None, None)
    assert asked == [(str(untrained), "c" * 40)]


@pytest.mark.parametrize("names", [None, ["embed_tokens", "q_proj"]])
def test_saving_needs_no_network_and_copies_no_embeddings(
    untrained: Path,
    tmp_path: Path,
    recipe: Callable[..., Recipe],
    names: list[str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = base(untrained)
    model.name_or_path = "someone/base"  # as of a model from the hub
    asked: list[str] = []
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda name, _: asked.append(name))
    adapted = with_adapter(model, recipe(lora_target_modules=names))
    adapted.save_pretrained(tmp_path / "adapter", state_dict=adapted.state_dict())  # as the transformers Trainer does
    assert asked == []
    refuse_misfit(adapted, load_tokenizer(str(untrained), None))  # sees through an adapter on the embeddings
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert weights
    assert all("lora_" in name for name in weights)


def test_an_adapter_that_cannot_be_loaded_is_refused(saved: tuple[Any, Path]) -> None:
    _, folder = saved
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    content = weights.read_bytes()
    settings = json.loads(config.read_text())

    def refusal() -> str:
        with pytest.raises(KitError) as caught:
            load_model(str(folder), None, None, None)
        assert caught.value.exit_code == ExitCode.CONFIG
        return caught.value.message

    weights.write_bytes(content[:-4])
    assert f"the weights of {folder} are damaged" in refusal()
    torch.save(load(content), folder / "adapter_model.bin")
    weights.unlink()
    assert "has no adapter_model.safetensors: only safetensors are read" in refusal()
    weights.write_bytes(content)
    config.write_text(json.dumps({**settings, "base_model_name_or_path": "/no/such/base"}))
    assert f"{folder} is an adapter of /no/such/base, which it needs: cannot load the model from" in refusal()
    config.write_text(json.dumps({**settings, "r": 5}))
    assert "size mismatch" in refusal()
    PrefixTuningConfig(base_model_name_or_path="x", num_virtual_tokens=1).save_pretrained(folder)
    assert "is an adapter of another kind than LoRA" in refusal()
    config.write_text("{")
    assert f"cannot load the model from {folder}" in refusal()


def test_an_adapter_is_not_trained_further(saved: tuple[Any, Path], recipe: Callable[..., Recipe]) -> None:
    loaded = load_model(str(saved[1]), None, None, None)
    for use_peft in (True, False):
        with pytest.raises(KitError, match="is an adapter of .* and is not trained further"):
            with_adapter(loaded, recipe(use_peft=use_peft))


# --- QLoRA ---


@pytest.mark.parametrize("key", ["load_in_4bit", "load_in_8bit"])
def test_quantized_weights_need_a_gpu(recipe: Callable[..., Recipe], key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINI_R1_ACCELERATOR", "cpu")
    monkeypatch.setattr("mini_r1.training.adapters.is_bitsandbytes_available", lambda: False)
    with pytest.raises(KitError) as caught:
        quantization(recipe(**{key: True}))
    assert caught.value.message == (
        f"{key} needs an NVIDIA GPU and bitsandbytes: this process has no GPU and bitsandbytes is not installed. "
        f"Set {key}: false to train the adapter on unquantized weights"
    )
    assert quantization(recipe()) is None


def test_the_recipe_decides_how_weights_are_quantized(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine with a GPU and bitsandbytes: only the settings, nothing is quantized here."""
    monkeypatch.setattr("mini_r1.training.adapters.device", lambda: torch.device("cuda"))
    monkeypatch.setattr("mini_r1.training.adapters.is_bitsandbytes_available", lambda: True)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.45.0")
    four = quantization(recipe(load_in_4bit=True, use_bnb_nested_quant=True))
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert four.bnb_4bit_compute_dtype == torch.bfloat16
    for changes, dtype in (
        ({"torch_dtype": "auto"}, torch.bfloat16),
        ({"torch_dtype": "float32"}, torch.float32),
        ({"fp16": True}, torch.float16),
    ):
        assert quantization(recipe(load_in_4bit=True, **changes)).bnb_4bit_compute_dtype == dtype
    assert quantization(recipe(load_in_4bit=True, bnb_4bit_quant_type="fp4")).bnb_4bit_quant_type == "fp4"
    eight = quantization(recipe(load_in_8bit=True))
    assert (eight.load_in_8bit, eight.load_in_4bit) == (True, False)


def test_a_quantized_base_is_loaded_onto_the_device_of_its_rank(
    untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def from_pretrained(_: str, **options: Any) -> Any:
        asked.update(options)
        raise ValueError("seen enough")

    monkeypatch.setattr("mini_r1.generation.model.AutoModelForCausalLM.from_pretrained", from_pretrained)
    monkeypatch.setenv("LOCAL_RANK", "2")
    how = BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(KitError, match="seen enough"):
        load_model(str(untrained), None, "bfloat16", None, how)
    assert (asked["quantization_config"], asked["device_map"]) == (how, {"": 2})
    assert asked["torch_dtype"] == torch.bfloat16
    assert (asked["use_safetensors"], asked["trust_remote_code"]) == (True, False)


def test_unquantized_parts_of_a_qlora_base_are_float32(untrained: Path, recipe: Callable[..., Recipe]) -> None:
    """peft's preparation, on a base that is not really quantized: norms and embeddings of the demo model."""
    model = with_adapter(base(untrained, "bfloat16"), recipe(load_in_4bit=True, gradient_checkpointing=True))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())


def test_the_notebooks_recipe_has_the_notebooks_values() -> None:
    notebook = load_recipe(REPO / "configs" / "recipes" / "qlora-notebook.yaml")
    assert notebook.model_name_or_path == "Qwen/Qwen2.5-0.5B-Instruct"
    assert (notebook.load_in_4bit, notebook.use_peft, notebook.prompt_style) == (True, True, "notebook")
    assert (notebook.per_device_train_batch_size, notebook.gradient_accumulation_steps) == (1, 1)
    assert (notebook.num_generations, notebook.max_steps) == (2, 100)
    assert notebook.warnings() == []


# --- a whole run ---


def test_an_adapter_needs_no_second_model_as_reference(
    small_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr("mini_r1.training.prepare.create_reference_model", made.append)
    run = RunDir(tmp_path / "run")
    assert train(str(small_recipe(use_peft=True, max_steps=2)), [], run.path) == ExitCode.FINISHED
    assert made == []
    assert read_metrics(run)[1]["kl"] > 0  # taken to the model without its adapter


def test_a_killed_run_with_an_adapter_resumes_exactly(
    small_recipe: Callable[..., Path], untrained: Path, tmp_path: Path
) -> None:
    recipe = str(small_recipe(use_peft=True, lora_r=4, lora_dropout=0.05, lora_target_modules="all-linear"))
    whole, cut = RunDir(tmp_path / "whole"), RunDir(tmp_path / "cut")
    assert train(recipe, [], whole.path) == ExitCode.FINISHED
    with disk_full_at(4), pytest.raises(KitError, match="No space left on device"):
        train(recipe, [], cut.path)
    assert [found.step for found in cut.complete_checkpoints()] == [2]
    assert train(recipe, [], cut.path) == ExitCode.FINISHED

    assert [row["step"] for row in read_metrics(cut)] == [1, 2, 3, 4]
    assert [row["kl"] for row in read_metrics(cut)] == [row["kl"] for row in read_metrics(whole)]
    assert [row["grad_norm"] for row in read_metrics(cut)] == [row["grad_norm"] for row in read_metrics(whole)]
    assert read_metrics(cut)[0]["kl"] == pytest.approx(0.0, abs=1e-6)  # a new adapter's output is zero
    assert read_metrics(cut)[-1]["kl"] > 0
    assert list(read_completions(cut)) == list(read_completions(whole))

    checkpoint, snapshot = cut.checkpoints / "step-4", cut.snapshots / "step-4"
    weights = load_file(checkpoint / "adapter_model.safetensors")
    expected = load_file(whole.checkpoints / "step-4" / "adapter_model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    published = load_file(snapshot / "adapter_model.safetensors")
    assert {name: tensor.bfloat16() for name, tensor in weights.items()}.keys() == published.keys()
    assert all(torch.equal(published[name], tensor.bfloat16()) for name, tensor in weights.items())
    for folder in (checkpoint, snapshot):
        assert not (folder / "model.safetensors").exists()  # the base is not copied
    described = cut.read_record()["attempts"][-1]["model"]
    assert (described["class"], described["adapter"]["rank"]) == ("Qwen2ForCausalLM", 4)

    result = evaluate_run_or_model(str(cut.path), samples=1, limit=8).evaluations[-1]
    assert result["provenance"]["step"] == 4
    assert result["provenance"]["model"]["adapter"] == described["adapter"]
