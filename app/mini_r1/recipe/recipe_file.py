"""Recipe files: YAML in, a validated recipe out, or every fault of the file at once, each with its line.

    load_recipe(find_recipe("demo-cpu"), ["seed=7", "generator.high=12"])

Values are read one key at a time, so that one that cannot be read does not hide the faults of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mini_r1.errors import KitError
from mini_r1.recipe.fields import DEFAULT_REWARDS, DEMO_MODEL, GeneratorRecipe, Recipe, WarmStartRecipe, WatchRecipe
from mini_r1.recipe.keys import HARMLESS_KEYS, did_you_mean, unknown_key
from mini_r1.recipe.shipped_files import shipped_recipes

MAX_BYTES = 2**16
"""Of a recipe file; a real one has one or two thousand. The pure-Python YAML reader takes about 1 s for this many."""
NESTED: dict[str, type[BaseModel]] = {"generator": GeneratorRecipe, "warm_start": WarmStartRecipe, "watch": WatchRecipe}

PLAIN_WORDS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "string_type": "must be text (put it in quotes)",
    "list_type": "must be a list",
    "too_short": "must not be empty",
    "dict_type": "must be a mapping of names to values",
    "model_type": "must be a mapping of names to values",
}
"""pydantic's error types as a user would say them."""

Place = tuple[str | int, ...]  # where a value stands: ("generator", "sizes", 0)


class RecipeError(KitError):
    """A recipe that cannot be used; the message has one line for each fault."""


class _Loader(yaml.SafeLoader):
    """Plain values only. An alias can make a small file expand without end, and a flat recipe has no use for one."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:  # type: ignore[override]
        if self.check_event(yaml.AliasEvent):  # type: ignore[no-untyped-call]
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and any("\ud800" <= char <= "\udfff" for char in node.value):
            # Written as an escape; no file, terminal or pydantic can hold half a surrogate pair.
            raise yaml.composer.ComposerError(None, None, "a character that does not exist", node.start_mark)
        return node


def _printable(line: str) -> str:
    """A key or a path may hold line breaks and worse: one fault stays one line that any terminal takes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


class _Source:
    """What was read so far: the values, where each came from, and the faults found on the way."""

    def __init__(self, label: str, given: Sequence[str]) -> None:
        self.label = label
        self.given = given
        self.values: dict[str, Any] = {}
        self.origins: dict[Place, int | str] = {}  # a line of the file, or a --set as it was given
        self.overridden: dict[str, Place] = {}
        self.readable = True
        self.faults: list[tuple[int, str]] = []

    def fault(self, where: int | str | None, text: str) -> None:
        """Keep a fault with its place in the order: lines, then the whole file, then --set as given."""
        if isinstance(where, str):
            order, line = MAX_BYTES + 2 + self.given.index(where), f"--set {_redacted(where)}: {text}"
        else:
            order, line = where or MAX_BYTES + 1, f"{self.label}{f':{where}' if where else ''}: {text}"
        self.faults.append((order, _printable(line)))

    def origin(self, path: Place) -> int | str | None:
        """Where the value at `path` was written, or the nearest mapping or list around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return None


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe file.

    Args:
        path: the YAML file.
        overrides: `key=value` strings, the value in YAML; dots reach into mappings; a later one wins.

    Raises:
        RecipeError: all faults of file and overrides, one a line, sorted by line.
    """
    source = _Source(str(path), overrides)
    _read_file(_text(path), source)
    for override in overrides:
        _override(override, source)
    recipe = _validate(source)
    if source.faults or recipe is None:
        ordered = sorted(source.faults, key=lambda fault: fault[0])
        raise RecipeError("\n".join(dict.fromkeys(text for _, text in ordered)))
    return recipe


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe given as a path or as the bare name of a shipped one (`demo-cpu`).

    Raises:
        RecipeError: there is no such file; the message names the shipped recipes.
    """
    path = Path(name_or_path)
    if _is_file(path):
        return path
    shipped = shipped_recipes()
    for name in (name_or_path, name_or_path.removesuffix(".yaml")):
        if name in shipped:
            return shipped[name]
    raise RecipeError(_missing(path))


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included, in the order of the fields; it loads back equal."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True)


def differences(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """The keys that differ and change what is learned, with both values; HARMLESS_KEYS are left out."""
    before, after = old.model_dump(), new.model_dump()
    before["rewards"], after["rewards"] = old.resolved_rewards(), new.resolved_rewards()
    return {key: (before[key], after[key]) for key in before if key not in HARMLESS_KEYS and before[key] != after[key]}


def effective_output_dir(recipe: Recipe, recipe_path: Path) -> Path:
    """The run directory: `output_dir`, else `runs/` and the recipe file's name without its ending."""
    return Path(recipe.output_dir) if recipe.output_dir else Path("runs") / recipe_path.stem


# --- files


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a NUL in it
        return False


def _missing(path: Path) -> str:
    shipped = shipped_recipes()
    try:
        near = {entry.stem: str(entry) for entry in sorted(path.parent.glob("[!.]*.yaml"))}
        mounted = (path.parent / "..data").is_symlink()  # how the kubelet mounts a ConfigMap
    except (OSError, ValueError):
        near, mounted = {}, False
    sentence = f"{_printable(str(path))}: no such recipe"
    sentence += did_you_mean(path.stem, [*near, *shipped])
    if mounted:
        sentence += f"\n{_printable(str(path.parent))} is a ConfigMap: add the file to it (that of k8s/ is made by"
        sentence += " configs/kustomization.yaml), and apply again"
    if near:
        sentence += f"\nrecipes beside it: {', '.join(near.values())}"
    if shipped:
        sentence += f"\nrecipes of the kit: {', '.join(shipped)}"
    return sentence


def _text(path: Path) -> str:
    if not _is_file(path):
        try:
            if path.is_dir():
                raise RecipeError(f"{path}: is a directory; name a recipe file in it")
        except (OSError, ValueError):
            pass
        raise RecipeError(_missing(path))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{path}: is larger than 64 KiB; this is not a recipe")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}: is not UTF-8 text; save the file as UTF-8") from None


# --- YAML


def _compose(text: str) -> tuple[_Loader, yaml.Node | None]:
    loader = _Loader(text)
    return loader, loader.get_single_node()  # type: ignore[no-untyped-call]


def _yaml_fault(error: Exception, text: str) -> tuple[int | None, str]:
    """Line and sentence for what the YAML reader raised."""
    if isinstance(error, RecursionError):
        return None, "is nested too deeply"
    if isinstance(error, yaml.reader.ReaderError):
        return text.count("\n", 0, error.position) + 1, "a character that YAML does not allow"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        hint = "; YAML indents with spaces, not tabs" if "'\\t'" in str(error.problem) else ""
        if isinstance(error, yaml.constructor.ConstructorError):
            hint = "; write plain values"
        problem = str(error.problem)
        if problem.startswith("but "):
            problem = f"{error.context}, {problem}"
        return mark.line + 1 if mark else None, f"not valid YAML: {problem}{hint}"
    return None, "cannot be read; text that looks like a date or a number goes in quotes"  # e.g. 2024-99-99


YAML_FAULTS = (yaml.YAMLError, RecursionError, ValueError, OverflowError, TypeError, AttributeError, LookupError)
"""What PyYAML's safe loader raises for bad text: its own errors, and Python's from converting a scalar."""


def _read_file(text: str, source: _Source) -> None:
    source.readable = False
    try:
        loader, root = _compose(text)
    except YAML_FAULTS as error:
        source.fault(*_yaml_fault(error, text))
        return
    if root is None or (isinstance(root, yaml.ScalarNode) and root.tag == "tag:yaml.org,2002:null"):
        source.fault(None, f"is empty; a recipe needs at least model_name_or_path, e.g. {DEMO_MODEL}")
        return
    if not isinstance(root, yaml.MappingNode):
        source.fault(root.start_mark.line + 1, "must be a mapping, one 'key: value' a line")
        return
    source.readable = True
    for key, node in _entries(root, (), source):
        _locate(node, (key,), source)
        try:
            source.values[key] = loader.construct_object(node, deep=True)  # type: ignore[no-untyped-call]
        except YAML_FAULTS as error:
            line, sentence = _yaml_fault(error, text)
            source.fault(line or node.start_mark.line + 1, f"{key}: {sentence}")


def _entries(mapping: yaml.MappingNode, path: Place, source: _Source) -> Iterator[tuple[str, yaml.Node]]:
    """Keys and value nodes of a mapping; keys get their origin, bad and double ones a fault."""
    for key_node, node in mapping.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            source.fault(line, "a key must be a plain word")
            continue
        key = key_node.value
        if (*path, key) in source.origins:
            source.fault(line, f"key '{key[:60]}' stands here again, first in line {source.origins[(*path, key)]}")
            continue
        source.origins[(*path, key)] = line
        yield key, node


def _locate(node: yaml.Node, path: Place, source: _Source) -> None:
    """Note the line of everything inside a value, for the errors of the validation."""
    if isinstance(node, yaml.MappingNode):
        for key, item in _entries(node, path, source):
            _locate(item, (*path, key), source)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            source.origins[(*path, index)] = item.start_mark.line + 1
            _locate(item, (*path, index), source)


def _redacted(override: str) -> str:
    """An override as it may be shown: a token never is."""
    key, sign, value = override.partition("=")
    if any(word in key.lower() for word in ("token", "secret", "password", "api_key")):
        return f"{key}{sign}***"
    return f"{key[:80]}{sign}{value if len(value) <= 80 else value[:77] + '...'}"


def _override(override: str, source: _Source) -> None:
    """Put one `key=value` in place of what the file says."""
    dotted, sign, text = override.partition("=")
    path: Place = tuple(dotted.strip().split("."))
    if not sign or not all(path) or not dotted.isprintable():
        source.fault(override, "write it as key=value")
        return
    try:
        loader, node = _compose(text)
        value = loader.construct_document(node) if node else None  # type: ignore[no-untyped-call]
    except YAML_FAULTS as error:
        source.fault(override, _yaml_fault(error, text)[1])
        return
    target = source.values
    for depth, part in enumerate(path[:-1], 1):
        # A reward that is added joins the default pair; it does not silently replace it.
        default = dict(DEFAULT_REWARDS) if path[:depth] == ("rewards",) else {}
        if target.get(str(part)) is None:
            target[str(part)] = default
            source.origins[path[:depth]] = override
        target = target[str(part)]
        if not isinstance(target, dict):
            source.fault(override, f"'{'.'.join(map(str, path[:depth]))}' is not a mapping")
            return
    target[str(path[-1])] = value
    for known in [known for known in source.origins if known[: len(path)] == path]:
        del source.origins[known]
    source.origins[path] = override
    source.overridden[override] = path


# --- validation


def _validate(source: _Source) -> Recipe | None:
    """The recipe, or None with the faults noted."""
    broken = {str(path[0]) for path in source.origins if path[0] not in source.values}  # unreadable: noted already
    if not source.readable:
        return None
    try:
        return Recipe.model_validate(source.values)
    except ValidationError as error:
        details = error.errors(include_url=False)
    except RecursionError:
        source.fault(None, "is nested too deeply")
        return None
    wrong = {str(detail["loc"][0]) for detail in details if detail["loc"]} | broken
    _report([detail for detail in details if not detail["loc"] or detail["loc"][0] not in broken], source)
    if not any(detail["type"] == "cross_check" for detail in details):
        # pydantic checks across keys only when each key alone is right: do it again with those that are.
        rest = {key: value for key, value in source.values.items() if key not in wrong}
        try:
            Recipe.model_validate({"model_name_or_path": DEMO_MODEL, **rest})
        except ValidationError as error:
            again = error.errors(include_url=False)
            _report([d for d in again if d["type"] == "cross_check" and not wrong & set(d["ctx"]["keys"])], source)
    return None


def _report(details: Sequence[ErrorDetails], source: _Source) -> None:
    for detail in details:
        path: Place = detail["loc"]
        if detail["type"] == "cross_check":
            keys: tuple[str, ...] = detail["ctx"]["keys"]
            # The first key that somebody wrote; a default cannot be pointed at.
            path = next(((key,) for key in keys if key in source.values), (keys[0],))
        where = source.origin(path)
        sentence = _sentence(detail)
        key = ".".join(str(part) for part in path if part != "[key]")
        # `--set x=1` names the key itself, unless the fault is further inside its value.
        if detail["type"] != "extra_forbidden" and not (isinstance(where, str) and source.overridden[where] == path):
            sentence = f"{key}: {sentence}"
        source.fault(where, sentence)


def _sentence(detail: ErrorDetails) -> str:
    """One of pydantic's errors in plain words."""
    kind, path, context = detail["type"], detail["loc"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        inside = str(path[0]) if len(path) > 1 else ""
        model = NESTED.get(inside, Recipe)
        return unknown_key(str(path[-1]), model.model_fields, inside)
    if kind == "missing":
        return f"is missing: name a hub id, a local directory, or {DEMO_MODEL}"
    if kind in ("value_error", "cross_check"):
        return str(context.get("error", context.get("text")))
    if kind == "literal_error":
        allowed = [word.strip("'") for word in str(context["expected"]).replace(" or ", ", ").split(", ")]
        guess = did_you_mean(str(detail["input"])[:60], allowed) if isinstance(detail["input"], str) else ""
        return f"must be one of {', '.join(allowed)}{_not(detail['input'])}{guess}"
    if kind in PLAIN_WORDS:
        found = "" if kind == "too_short" else _not(detail["input"])
        return PLAIN_WORDS[kind].format_map(_Numbers(context)) + found
    return detail["msg"][:1].lower() + detail["msg"][1:]


class _Numbers(dict[str, Any]):
    """Bounds as a person writes them: 0, not 0.0."""

    def __init__(self, context: Mapping[str, Any]) -> None:
        super().__init__({k: f"{v:g}" if isinstance(v, float) else v for k, v in context.items()})


def _not(value: object) -> str:
    """What was found instead, when it is short enough to help."""
    if value is None:
        return ", not null"
    if isinstance(value, bool):
        return f", not {str(value).lower()}"
    if isinstance(value, int) and abs(value) > 10**15:
        return ""
    if isinstance(value, int | float | str):
        shown = repr(value)
        return f", not {shown}" if len(shown) <= 40 else ""
    return ", not a mapping" if isinstance(value, dict) else ", not a list" if isinstance(value, list) else ""
