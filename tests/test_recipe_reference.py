"""`mini-r1 recipes show`, `schema` and `reference`: all from the recipe's fields, and docs/recipe.md is current."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from mini_r1.recipe.fields import NESTED, Recipe
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.recipe.reference import SECTIONS, annotate_recipe, recipe_reference, recipe_schema
from mini_r1.recipe.shipped_files import shipped_files

from tests.conftest import ASSETS, REPO

Kit = Callable[..., subprocess.CompletedProcess[str]]
RECIPES = [*shipped_files("recipes").values(), ASSETS / "recipes" / "published-3b.yaml"]


def test_docs_recipe_md_is_current() -> None:
    current = "run `mini-r1 recipes reference > docs/recipe.md`"
    assert (REPO / "docs" / "recipe.md").read_text(encoding="utf-8") == recipe_reference(), current


def test_the_reference_has_every_key_and_every_section() -> None:
    assert set(SECTIONS) <= set(Recipe.model_fields)
    lines = recipe_reference().splitlines()
    for model in (Recipe, *NESTED.values()):
        for key, field in model.model_fields.items():
            assert any(
                line.startswith(f"| `{key}` | ") and " ".join(field.description.split()) in line for line in lines
            )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_commented_recipe_loads_back_equal(tmp_path: Path, path: Path) -> None:
    recipe = load_recipe(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(annotate_recipe(recipe))
    assert load_recipe(copy) == recipe
    comments = [line for line in copy.read_text().splitlines() if line.lstrip().startswith("#")]
    assert len(comments) >= len(Recipe.model_fields)
    assert max(map(len, comments)) <= 100


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid_under_the_schema(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(yaml.safe_load(path.read_text()), recipe_schema())


@pytest.mark.parametrize(
    "change",
    [{"num_generation": 8}, {"beta": -1}, {"scoring": "mine"}, {"generator": {"low": 0}}, {"watch": {"kl": "stopp"}}],
)
def test_the_schema_finds_what_the_kit_refuses(change: dict[str, object]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"model_name_or_path": "builtin:demo", **change}, recipe_schema())


def test_the_commands_of_the_reference_run(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```bash\n(.*?)^```$", recipe_reference(), re.MULTILINE | re.DOTALL)
    script = f'mini-r1() {{ {shlex.quote(sys.executable)} -m mini_r1 "$@"; }}\n{block}'
    done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "recipe.schema.json").read_text()) == recipe_schema()


def test_recipes_commands(mini_r1: Kit) -> None:
    shown = mini_r1("recipes", "show", "demo-cpu", "--set", "seed=7", "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout) == load_recipe(shipped_files("recipes")["demo-cpu"], ["seed=7"]).model_dump()
    assert mini_r1("recipes", "show", "demo-cpu").stdout == annotate_recipe(
        load_recipe(shipped_files("recipes")["demo-cpu"])
    )
    assert json.loads(mini_r1("recipes", "schema").stdout) == recipe_schema()
    before = mini_r1("recipes", "--json", "show", "demo-cpu")
    assert (before.returncode, "options go after the subcommand" in before.stderr) == (78, True)
    unknown = mini_r1("recipes", "show", "demo-gpu", "--json")
    assert unknown.returncode == 78
    assert "did you mean 'demo-cpu'" in unknown.stderr
    assert json.loads(unknown.stdout)["exit_code"] == 78
