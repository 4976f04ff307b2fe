"""No key of a recipe is accepted and not acted on: each changes something, or loading refuses or warns of it."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from mini_r1.recipe.fields import NESTED, Recipe
from mini_r1.recipe.recipe_file import RecipeError, load_recipe
from mini_r1.tasks.countdown.generator import GeneratorSpec

from tests.conftest import REPO

PACKAGE = REPO / "app" / "mini_r1"
DEMO = "builtin:demo"

REFUSED: dict[str, object] = {"trust_remote_code": True, "logging_strategy": "no"}
"""Keys with one possible value, and another one."""
IGNORED: dict[str, object] = {"vllm_device": "cuda:1"}
"""Keys that have no effect, which a warning says."""
TO_TRL: dict[str, object] = {
    "num_train_epochs": 2.0, "per_device_train_batch_size": 2, "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False}, "learning_rate": 1e-5, "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 1.0}, "warmup_ratio": 0.1, "warmup_steps": 3, "optim": "adamw_torch_fused",
    "weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.99, "adam_epsilon": 1e-6, "max_grad_norm": 0.5,
    "bf16": True,
    "beta": 0.1, "temperature": 0.7, "num_generations": 4, "max_prompt_length": 100, "max_completion_length": 200,
    "logging_steps": 3, "logging_first_step": True, "run_name": "a-name", "seed": 7, "ddp_timeout": 60,
    "dataloader_num_workers": 1,
}  # fmt: skip
"""Keys that reach TRL's configuration as they are, each with a value other than the default."""


def attributes(tree: ast.AST) -> set[str]:
    """Names that are read of an object, also by `getattr` with a literal."""
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return names


def read_names() -> set[str]:
    """Names read outside of `recipe/`, and those that a method of the recipe reads which is called there."""
    files = [file for file in PACKAGE.rglob("*.py") if file.parent.name != "recipe"]
    names = set().union(*(attributes(ast.parse(file.read_text())) for file in files))
    for file in ("fields.py", "nested.py", "recipe_file.py"):
        for node in ast.walk(ast.parse((PACKAGE / "recipe" / file).read_text())):
            if isinstance(node, ast.FunctionDef) and node.name in names | {"effective_output_dir"}:
                names |= attributes(node)
    return names


READ = read_names()


@pytest.mark.parametrize("key", sorted(Recipe.model_fields))
def test_every_key_changes_something_or_is_refused(key: str, tmp_path: Path) -> None:
    default = Recipe(model_name_or_path=DEMO)
    if key in REFUSED:
        file = tmp_path / "x.yaml"
        file.write_text(json.dumps({"model_name_or_path": DEMO, key: REFUSED[key]}))
        with pytest.raises(RecipeError, match=f"{key}: must be "):
            load_recipe(file)
    elif key in IGNORED:
        changed = Recipe.model_validate({"model_name_or_path": DEMO, key: IGNORED[key]})
        assert any(key in warning and "ignored" in warning for warning in changed.warnings())
        assert default.warnings() == []
    else:
        assert key in READ or key in TO_TRL


@pytest.mark.parametrize(
    ("mapping", "key"), [(mapping, key) for mapping, model in NESTED.items() for key in model.model_fields]
)
def test_every_key_of_a_mapping_is_read(mapping: str, key: str) -> None:
    if mapping == "generator":  # handed over as a whole
        assert key in {field.name for field in dataclasses.fields(GeneratorSpec)}
    else:
        written = (PACKAGE / "recipe" / "nested.py").read_text() + (PACKAGE / "training" / "watch.py").read_text()
        assert key in READ or f'"{key}"' in written


def test_keys_of_trl_arrive_in_its_configuration(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from mini_r1.training.arguments import grpo_config
    from mini_r1.training.schedule import Schedule

    def configured(**values: Any) -> Any:
        recipe = Recipe.model_validate({"model_name_or_path": DEMO, "max_steps": 10, **values})
        return grpo_config(recipe, tmp_path, Schedule(8, 8, 10), evaluate_first=False, deepspeed=None)

    default = configured()
    for key, value in TO_TRL.items():
        changed = getattr(configured(**{key: value}), key)
        assert changed == value, key
        assert changed != getattr(default, key), key
