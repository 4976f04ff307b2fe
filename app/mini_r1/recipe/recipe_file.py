"""Recipe files: YAML in, a validated recipe out, or all issues of the file together, with line numbers.

    load_recipe(find_recipe("demo-cpu"), ["seed=7", "generator.high=12"])

Values are read one by one, so that one that can't be read doesn't hide the issues of the others.
"""

import os
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML, composer, constructor, error, events, nodes, reader

from mini_r1.errors import KitError
from mini_r1.recipe.fields import DEMO_MODEL, NESTED, Recipe
from mini_r1.recipe.keys import HARMLESS_KEYS, did_you_mean, foreign_keys, unknown_key
from mini_r1.recipe.named_files import with_copies
from mini_r1.recipe.shipped_files import shipped_files
from mini_r1.tasks.registry import task_of_row
from mini_r1.values import describe_value, read_limited

MAX_BYTES = 2**16
"""Largest recipe file; a real one has one or two thousand bytes. The YAML reader takes about 1 s for this many."""
WHOLE_FILE = MAX_BYTES + 1
"""Line number of issues that concern no single line: after all lines, before the overrides, which are numbered on."""
YAML_ERRORS = (error.YAMLError, RecursionError, ValueError, OverflowError, TypeError, AttributeError, LookupError)
"""What ruamel.yaml raises for bad text: its own errors, and Python's from converting a scalar."""

CONSTRAINTS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "finite_number": "must be a finite number",
    "too_short": "must not be empty",
    "int": "must be a whole number",
    "float": "must be a number",
    "string": "must be text (put it in quotes)",
    "list": "must be a list",
    "dict": "must be a mapping of names to values",
    "model": "must be a mapping of names to values",
}
"""pydantic's error types, or their first words, in plain English."""

SAME_KEYS = {"dataset_splits": "dataset_split"}
"""Keys of the original's script with a name of TRL's in a recipe."""

KeyPath = tuple[str | int, ...]  # ("generator", "sizes", 0)


class RecipeError(KitError):
    """Error raised for a recipe that can't be used; the message has one line for each issue."""


class Issue(NamedTuple):
    """Something wrong with a recipe. `line` is a line of the file, WHOLE_FILE, or an override's number after that."""

    line: int
    text: str


class _PlainComposer(composer.Composer):
    """Composer without aliases: they can make a small file expand without end, and a flat recipe has no use for one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.loader.parser.check_event(events.AliasEvent):
            mark = self.loader.parser.peek_event().start_mark
            raise composer.ComposerError(None, None, "aliases (*name) are not allowed", mark)
        node = super().compose_node(parent, index)
        if isinstance(node, nodes.ScalarNode) and any("\ud800" <= char <= "\udfff" for char in node.value):
            # Written as an escape; no file, terminal or pydantic can hold half a surrogate pair.
            raise composer.ComposerError(None, None, "a character that does not exist", node.start_mark)
        return node


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe file with `key=value` overrides, the value in YAML; a later one wins.

    Raises:
        RecipeError: all issues of file and overrides, one a line, sorted by line.
    """
    source, recipe = _Source(overrides, path.parent), None
    if source.read_file(_read_text(path)):
        for number in range(len(overrides)):
            source.override(number)
        recipe = source.validate()
    if source.issues or recipe is None:
        issues = sorted(source.issues, key=lambda issue: issue.line)
        raise RecipeError("\n".join(dict.fromkeys(source.format_issue(issue, path) for issue in issues)))
    return recipe


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a recipe given as a path or as the name of a shipped one (`demo-cpu`).

    Raises:
        RecipeError: there is no such file; the message names the shipped recipes.
    """
    if os.path.isfile(name_or_path):
        return Path(name_or_path)
    found = shipped_files("recipes").get(name_or_path.removesuffix(".yaml"))
    if found is None:
        raise RecipeError(_describe_missing(Path(name_or_path)))
    return found


def dump_recipe(recipe: Recipe) -> str:
    """Return the whole recipe as YAML, defaults included, in the order of the fields; it loads back equal."""
    return dump_yaml(recipe.model_dump())


def dump_yaml(values: dict[str, Any]) -> str:
    """Return values as block-style YAML 1.1."""
    text, yaml = StringIO(), _yaml()
    yaml.dump(values, text)
    return text.getvalue().partition("---\n")[2]  # without the %YAML directive


def differences(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the keys that differ and change what is learned, with both values; HARMLESS_KEYS are left out."""
    before, after = with_copies(old).model_dump(), with_copies(new).model_dump()
    before["rewards"], after["rewards"] = old.resolved_rewards(), new.resolved_rewards()
    before["off_policy"], after["off_policy"] = old.resolved_off_policy, new.resolved_off_policy
    return {key: (before[key], after[key]) for key in before if key not in HARMLESS_KEYS and before[key] != after[key]}


def effective_output_dir(recipe: Recipe, recipe_path: Path) -> Path:
    """Return the run directory: `output_dir`, else `runs/` and the recipe file's name without its suffix."""
    return Path(recipe.output_dir) if recipe.output_dir else Path("runs") / recipe_path.stem


# --- files


def _describe_missing(path: Path) -> str:
    folder, shipped, near, mounted = path.parent, shipped_files("recipes"), dict[str, str](), False
    with suppress(OSError, ValueError):
        near = {entry.stem: str(entry) for entry in sorted(folder.glob("[!.]*.yaml"))}
        mounted = (folder / "..data").is_symlink()  # how the kubelet mounts a ConfigMap
    message = f"{_printable(str(path))}: no such recipe{did_you_mean(path.stem, [*near, *shipped])}"
    if mounted:
        source = "(configs/kustomization.yaml makes that of k8s/)"
        message += f"\n{_printable(str(folder))} is a ConfigMap: add the file to it {source}, and apply again"
    if near:
        message += f"\nrecipes in that directory: {', '.join(near.values())}"
    return f"{message}\nrecipes of the kit: {', '.join(shipped)}" if shipped else message


def _read_text(path: Path) -> str:
    if os.path.isdir(path):
        raise RecipeError(f"{path}: is a directory; name a recipe file in it")
    if not os.path.isfile(path):  # unlike Path.is_file it takes any name, one with a NUL too
        raise RecipeError(_describe_missing(path))
    try:
        data = read_limited(path, MAX_BYTES)
    except ValueError as failed:
        raise RecipeError(f"{path}: {failed}; this is not a recipe") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as failed:
        line = data.count(b"\n", 0, failed.start) + 1
        raise RecipeError(f"{path}:{line}: is not UTF-8 text; save the file as UTF-8") from None


# --- YAML


def _yaml() -> Any:
    """Return a reader and writer of YAML 1.1, as transformers' own: `no` is false, `5e-7` a number."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.version = (1, 1)
    yaml.Composer = _PlainComposer
    yaml.default_flow_style = yaml.sort_base_mapping_type_on_output = False
    yaml.allow_unicode, yaml.width = True, 2**20
    return yaml


def _yaml_issue(raised: Exception, line: int, text: str = "") -> Issue:
    """Return the issue behind an exception of the YAML reader, at its own line if it has one."""
    if isinstance(raised, RecursionError):
        return Issue(line, "is nested too deeply")
    if isinstance(raised, reader.ReaderError):
        return Issue(text.count("\n", 0, raised.position) + 1, "a character that YAML does not allow")
    if isinstance(raised, error.MarkedYAMLError):
        mark, problem = raised.problem_mark or raised.context_mark, str(raised.problem)
        if problem.startswith("but "):
            problem = f"{raised.context}, {problem}"
        if isinstance(raised, constructor.ConstructorError):
            problem += "; write plain values"
        if "'\\t'" in problem:
            problem += "; YAML indents with spaces, not tabs"
        return Issue(mark.line + 1 if mark else line, f"not valid YAML: {problem}")
    return Issue(line, "cannot be read; text that looks like a date or a number goes in quotes")  # such as 2024-99-99


class _Source:
    """What was read so far: the values, the line of each, and the issues found on the way."""

    def __init__(self, overrides: Sequence[str] = (), folder: Path = Path()) -> None:
        self.overrides = overrides
        self.folder = folder  # of the recipe, and of the files that it names
        self.values: dict[str, Any] = {}
        self.lines: dict[KeyPath, int] = {}
        self.issues: list[Issue] = []
        self.unreadable: set[str] = set()

    def read_file(self, text: str) -> bool:
        """Read the values of a file, and return whether it is a mapping at all."""
        values = self.read(text)
        if isinstance(values, dict):
            self.values = values
        elif values is not None:
            self.issues.append(Issue(self.lines[()], "must be a mapping, one 'key: value' a line"))
        elif not self.issues:
            empty = f"is empty; a recipe needs at least model_name_or_path, e.g. {DEMO_MODEL}"
            self.issues.append(Issue(WHOLE_FILE, empty))
        return isinstance(values, dict)

    def read(self, text: str) -> Any:
        """Return the value of a YAML document, or None if it has none."""
        yaml = _yaml()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ruamel.yaml warns of `5e-7` and of anchors
            try:
                root = yaml.compose(text)
            except YAML_ERRORS as raised:
                self.issues.append(_yaml_issue(raised, WHOLE_FILE, text))
                return None
            return None if root is None else self._build(root, (), yaml)

    def _build(self, node: nodes.Node, path: KeyPath, yaml: Any) -> Any:
        """Return the value of a node, and note the line of everything in it."""
        line = self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, nodes.MappingNode) and str(node.tag).endswith(":map"):
            values: dict[str, Any] = {}
            for key_node, item in node.value:
                line, key = key_node.start_mark.line + 1, key_node.value
                if not path and isinstance(key, str):
                    key = SAME_KEYS.get(key, key)
                if not isinstance(key_node, nodes.ScalarNode):
                    self.issues.append(Issue(line, "a key must be a plain word"))
                elif key in values:
                    first = self.lines[(*path, key)]
                    self.issues.append(Issue(line, f"duplicate key '{key[:60]}', first in line {first}"))
                else:
                    self.lines[(*path, key)] = line
                    values[key] = self._build(item, (*path, key), yaml)
            return values
        if isinstance(node, nodes.SequenceNode) and str(node.tag).endswith(":seq"):
            return [self._build(item, (*path, index), yaml) for index, item in enumerate(node.value)]
        try:
            return yaml.constructor.construct_object(node, deep=True)
        except YAML_ERRORS as raised:
            issue = _yaml_issue(raised, line)
            self.issues.append(Issue(issue.line, f"{path[0]}: {issue.text}" if path else issue.text))
            self.unreadable.add(str(path[0]) if path else "")
            return None

    def override(self, number: int) -> None:
        """Put the value of one override in place of the file's."""
        dotted, sign, text = self.overrides[number].partition("=")
        number += WHOLE_FILE + 1
        first, *further = dotted.strip().split(".")
        if first == "rewards" and further:
            further = [".".join(further)]  # my_rewards.py:closeness is one name
        path: KeyPath = (SAME_KEYS.get(first, first), *further)
        if not sign or not all(path) or not dotted.isprintable():
            self.issues.append(Issue(number, "write it as key=value"))
            return
        inner = _Source()
        value = inner.read(text)
        if inner.issues:
            self.issues += [Issue(number, issue.text) for issue in inner.issues]
            return
        target: Any = self.values
        for depth, part in enumerate(path[:-1], 1):
            if target.get(part) is None:
                # A reward that is added joins the default pair; it does not silently replace it.
                target[part] = task_of_row(self.values).default_rewards() if path[:depth] == ("rewards",) else {}
                self.lines[path[:depth]] = number
            target = target[part]
            if not isinstance(target, dict):
                self.issues.append(Issue(number, f"'{'.'.join(map(str, path[:depth]))}' is not a mapping"))
                return
        target[path[-1]] = value
        self.lines = {known: line for known, line in self.lines.items() if known[: len(path)] != path}
        self.lines[path] = number

    def validate(self) -> Recipe | None:
        """Return the recipe, or None with the issues noted."""
        wrong = set(self.unreadable)
        while True:
            values = {key: value for key, value in self.values.items() if key not in wrong}
            if "model_name_or_path" in wrong:
                values["model_name_or_path"] = DEMO_MODEL
            try:
                return Recipe.model_validate(values, context={"folder": self.folder})
            except RecursionError:
                self.issues.append(Issue(WHOLE_FILE, "is nested too deeply"))
                return None
            except ValidationError as invalid:
                details = invalid.errors(include_url=False)
            wrong_names = {detail["loc"][:-1] for detail in details if detail["loc"][-1:] == ("[key]",)}
            for detail in details:
                if detail["loc"] in wrong_names:  # the value of a name that doesn't exist
                    continue
                keys: tuple[str, ...] = detail["ctx"]["keys"] if detail["type"] == "cross_check" else ()
                if not wrong.intersection(keys):
                    self._add_invalid(detail, keys)
            found = {str(detail["loc"][0]) for detail in details if detail["loc"]}
            if not found:
                return None
            # pydantic checks across keys only when each key alone is right: do it again with those that are.
            wrong |= found

    def _add_invalid(self, detail: ErrorDetails, keys: tuple[str, ...]) -> None:
        path: KeyPath = detail["loc"]
        if keys:  # the first key that somebody wrote; a default can't be pointed at
            path = next(((key,) for key in keys if key in self.values), keys[:1])
        prefixes = (path[:length] for length in range(len(path), 0, -1))
        line = next((self.lines[prefix] for prefix in prefixes if prefix in self.lines), WHOLE_FILE)
        key, text = ".".join(str(part) for part in path if part != "[key]"), _describe_error(detail)
        if path[-1:] == ("[key]",) and re.fullmatch(r"[^:]+:[\d.]*", str(path[-2])):  # `{format:1}` is one name in YAML
            text = "write a space after the colon"
        # `--set x=1` names the key already, unless the issue is further inside its value.
        named = line > WHOLE_FILE and self.overrides[line - WHOLE_FILE - 1].partition("=")[0].strip() == key
        self.issues.append(Issue(line, text if named or detail["type"] == "extra_forbidden" else f"{key}: {text}"))

    def format_issue(self, issue: Issue, path: Path) -> str:
        """Return an issue with its place as one line; a token is never shown."""
        place = f"{path}:{issue.line}" if issue.line < WHOLE_FILE else str(path)
        if issue.line > WHOLE_FILE:
            key, sign, value = self.overrides[issue.line - WHOLE_FILE - 1].partition("=")
            if any(word in key.lower() for word in ("token", "secret", "password", "api_key")):
                value = "***"
            place = f"--set {key[:80]}{sign}{value if len(value) <= 80 else value[:77] + '...'}"
        return _printable(f"{place}: {issue.text}")


# --- text of issues


def _printable(line: str) -> str:
    """Return the text on one line that any terminal takes: a key or a path may hold line breaks and worse."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def _describe_error(detail: ErrorDetails) -> str:
    """Return one of pydantic's errors in plain English."""
    kind, path, context, value = detail["type"], detail["loc"], detail.get("ctx", {}), detail["input"]
    if isinstance(value, str) and (answer := foreign_keys()["values"].get(path[0] if path else "", {}).get(value)):
        return f"'{value}' {answer}"
    if kind == "extra_forbidden":
        inside = str(path[0]) if len(path) > 1 else ""
        return unknown_key(str(path[-1]), NESTED.get(inside, Recipe).model_fields, inside, value)
    if kind == "missing":
        return f"is missing: name a hub id, a local directory, or {DEMO_MODEL}"
    if kind in ("value_error", "cross_check"):
        return str(context.get("error", context.get("text")))
    if kind == "literal_error":
        allowed = [word.strip("'") for word in str(context["expected"]).replace(" or ", ", ").split(", ")]
        guess = did_you_mean(value[:60], allowed) if isinstance(value, str) else ""
        return f"must be one of {', '.join(allowed)}, not {describe_value(value)}{guess}"
    constraint = CONSTRAINTS.get(kind) or CONSTRAINTS.get(kind.partition("_")[0])
    if constraint is not None:
        bounds = {name: f"{bound:g}" if isinstance(bound, float) else bound for name, bound in context.items()}
        return constraint.format_map(bounds) + ("" if kind == "too_short" else f", not {describe_value(value)}")
    return detail["msg"][:1].lower() + detail["msg"][1:]
