"""What the keys of a recipe mean, from their fields: a commented recipe, a JSON schema, and docs/recipe.md."""

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from mini_r1.recipe.fields import NESTED, Recipe
from mini_r1.recipe.keys import foreign_keys
from mini_r1.recipe.recipe_file import SAME_KEYS, dump_yaml

SECTIONS = {
    "model_name_or_path": "Model",
    "dataset_id_or_path": "Data",
    "task": "Task",
    "max_steps": "Length and batch",
    "learning_rate": "Optimizer",
    "beta": "GRPO and generation",
    "use_peft": "Adapters",
    "logging_strategy": "Logging and saving",
    "eval_strategy": "Evaluation during training",
    "watch": "Run",
    "push_to_hub": "Hub",
    "warm_start": "Built-in models",
}
"""Headings by the field that each begins with."""
COLUMNS = 100  # width of comments
BOUNDS = {
    "ge": ("minimum", "≥"),
    "gt": ("exclusiveMinimum", ">"),
    "le": ("maximum", "≤"),
    "lt": ("exclusiveMaximum", "<"),
    "multiple_of": ("multipleOf", "multiple of"),
}
"""pydantic's names of bounds, each with JSON schema's and the sign in docs/recipe.md."""
TABLE = ("", "| key | values | default | meaning |", "| --- | --- | --- | --- |")
HEAD = """\
# Recipe keys

<!-- Written by `mini-r1 recipes reference > docs/recipe.md`; edit the fields in app/mini_r1/recipe/ instead. -->

A recipe is a flat YAML file with the key names of TRL and transformers. Only `model_name_or_path` is required.

```bash
mini-r1 recipes show demo-cpu                     # a recipe with all keys and comments
mini-r1 recipes schema > recipe.schema.json       # JSON schema for editors
mini-r1 plan demo-cpu --set num_generations=16    # what a change costs
```

A path may begin with `~` and hold environment variables, here and on the command line.

All errors in a file are reported together, with line numbers. `--set KEY=VALUE` overrides a key; dots reach into
mappings (`--set watch.kl=stop`). Keys of TRL, transformers, open-r1 and verl that the kit does not have are refused
with what to write in their place.
"""


def annotate_recipe(recipe: Recipe) -> str:
    """Return the whole recipe as YAML with its descriptions as comments; it loads back equal."""
    return "\n".join(_annotate(recipe, "")).lstrip() + "\n"


def _annotate(values: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(values).model_fields.items():
        if name in SECTIONS and not indent:
            yield f"\n# === {SECTIONS[name]}\n"
        comment = f"{indent}# "
        yield from textwrap.wrap(
            field.description or "", COLUMNS, initial_indent=comment, subsequent_indent=comment, break_on_hyphens=False
        )
        value = getattr(values, name)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _annotate(value, f"{indent}  ")
        else:
            yield textwrap.indent(dump_yaml({name: value}), indent).rstrip("\n")


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of recipe files."""
    schema = _with_standard_names(Recipe.model_json_schema())
    schema["properties"] |= {key: schema["properties"][meant] for key, meant in SAME_KEYS.items()}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Mini-R1 recipe"}


def _with_standard_names(schema: Any) -> Any:
    """Return a schema with JSON schema's names for bounds: pydantic leaves its own on types with a validator."""
    if isinstance(schema, dict):
        return {BOUNDS[key][0] if key in BOUNDS else key: _with_standard_names(value) for key, value in schema.items()}
    return [_with_standard_names(item) for item in schema] if isinstance(schema, list) else schema


def recipe_reference() -> str:
    """Return docs/recipe.md: every key with its values, default and description."""
    lines = [HEAD.rstrip("\n")]
    for name, row in _rows(Recipe):
        lines += ["", f"## {SECTIONS[name]}", *TABLE, row] if name in SECTIONS else [row]
    for key, model in NESTED.items():
        rows = [row for _, row in _rows(model)]
        lines += ["", f"## Keys of `{key}`", "", str(model.__doc__), *TABLE, *rows]
    lines += ["", "## Refused keys", "", "| key | why |", "| --- | --- |"]
    foreign = foreign_keys()
    lines += [f"| `{key}` | it is called `{ours}` here |" for key, ours in foreign["renamed"].items()]
    lines += [f"| `{key}` | {why} |" for key, why in foreign["answers"].items()]
    return "\n".join(lines) + "\n"


def _rows(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    properties = _with_standard_names(model.model_json_schema()["properties"])
    for name, field in model.model_fields.items():
        value = {} if isinstance(field.default, BaseModel) else field.default
        default = "required" if field.is_required() else f"`{json.dumps(value)}`"
        cells = (f"`{name}`", _describe_values(properties[name]), default, " ".join((field.description or "").split()))
        yield name, f"| {' | '.join(cells)} |"


def _describe_values(schema: dict[str, Any]) -> str:
    """Return the values that a JSON schema allows, in Markdown."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_describe_values, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "object")
    if kind == "array":
        return f"list of {_describe_values(schema['items'])}"
    kind = {"string": "text", "boolean": "`true`, `false`", "object": "mapping", "null": "`null`"}.get(kind, kind)
    bounds = (f"{sign} {schema[name]:,}" for name, sign in BOUNDS.values() if name in schema)
    return ", ".join([kind, *bounds])
