"""The fields of a task in the columns of a data set, which may have other names and be nested.

A path such as `reward_model.ground_truth.numbers` leads through nested columns; one of them may be JSON in text.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from .data_errors import DataError, list_columns

MAX_DEPTH = 4
"""Nested columns that a suggestion goes through."""
MISSING = object()
T = TypeVar("T")


class MissingColumn(DataError):
    """Error raised for a row without a column that a task needs."""


@dataclass(frozen=True, slots=True)
class Field:
    """A value that a task needs of each row."""

    name: str
    other_names: tuple[str, ...]  # its names in public data sets, for suggestions only
    fits: Callable[[object], bool]  # whether a value of a row can be this one


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a task finds its fields: in the columns of their names, or where `paths` says, by field."""

    fields: Sequence[Field]
    paths: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.paths:
            if name not in self.names:
                raise DataError(f"'{name}' is not a field of the task: its fields are {' and '.join(self.names)}")

    @property
    def names(self) -> list[str]:
        """The names of the fields."""
        return [each.name for each in self.fields]

    def mapped(self, paths: Mapping[str, str]) -> "Columns":
        """Return the same fields in other columns."""
        return replace(self, paths=paths)

    def pick(self, row: object, place: str) -> object:
        """Return the fields of a row by their own names; a value that is no mapping is returned as it is.

        Raises:
            MissingColumn: for a column that is not there, with those that are and a mapping that would fit.
        """
        if not isinstance(row, Mapping) or (not self.paths and all(name in row for name in self.names)):
            return row
        found = {each.name: _follow(row, self.path(each.name)) for each in self.fields}
        if missing := [name for name, value in found.items() if value is MISSING]:
            raise MissingColumn(f"{place}: {self._describe_missing(missing[0], row)}")
        return found

    def own_names_first(self, read: Callable[["Columns"], T]) -> T:
        """Return what `read` makes of a file: with the fields' own names, or if they are not there with `paths`."""
        try:
            return read(self.mapped({}))
        except MissingColumn:
            if not self.paths:
                raise
            return read(self)

    def path(self, name: str) -> str:
        """Return the column of a field, as a dotted path."""
        return self.paths.get(name, name)

    def are_in(self, row: Mapping[str, object]) -> bool:
        """Return whether a row has all fields."""
        return all(_follow(row, self.path(each.name)) is not MISSING for each in self.fields)

    def outer(self, names: Sequence[str]) -> list[str]:
        """Return the columns out of `names` that hold the fields, the fields themselves or what they are nested in."""
        row = dict.fromkeys(names)
        return list(dict.fromkeys(head for each in self.fields for head, _ in _heads(row, self.path(each.name))))

    def _describe_missing(self, name: str, row: Mapping[str, object]) -> str:
        path, why = self.path(name), f", which dataset_columns names for '{name}'" if name in self.paths else ""
        text = f"there is no column '{path}'{why}; the columns are: {list_columns(row)}"
        if (fitting := self._suggest(row)) is None:
            return text
        if not fitting:
            return f"{text}. The columns have the fields' own names: take dataset_columns out"
        pairs = ", ".join(f"{name}: {path}" for name, path in fitting.items())
        options = " ".join(f"--column {name}={path}" for name, path in fitting.items())
        return f"{text}. Set dataset_columns: {{{pairs}}} (`data inspect`, `evaluate`: {options})"

    def _suggest(self, row: Mapping[str, object]) -> dict[str, str] | None:
        """Return the paths of all fields that have other names, or None if a field is nowhere."""
        leaves, found = dict(_leaves(row)), dict[str, str]()
        for each in self.fields:
            if _follow(row, self.path(each.name)) is not MISSING:
                found |= {each.name: self.paths[each.name]} if each.name in self.paths else {}
                continue
            fitting = [path for path, value in leaves.items() if each.fits(value) and path not in found.values()]
            names = (each.name, *each.other_names)
            named = [path for known in names for path in fitting if path.rpartition(".")[2].lower() == known]
            if not named and len(fitting) != 1:
                return None
            found[each.name] = (named or fitting)[0]
        return {name: path for name, path in found.items() if name != path}


def _heads(row: Mapping[str, object], path: str) -> Iterator[tuple[str, str]]:
    """Yield each column that begins a path, and the rest of the path; the names of columns may hold dots."""
    if path in row:
        yield path, ""
    for index, char in enumerate(path):
        if char == "." and path[:index] in row:
            yield path[:index], path[index + 1 :]


def _follow(value: object, path: str) -> object:
    """Return the value at a path, or MISSING."""
    row = _nested(value)
    for head, rest in _heads(row, path):
        if not rest:
            return row[head]
        if (found := _follow(row[head], rest)) is not MISSING:
            return found
    return MISSING


def _nested(value: object) -> Mapping[str, object]:
    """Return the columns in a value: a mapping, or the JSON text of one."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, Mapping) else {}


def _leaves(row: Mapping[str, object], prefix: str = "", depth: int = MAX_DEPTH) -> Iterator[tuple[str, object]]:
    for name, value in row.items():
        if (inner := _nested(value)) and depth:
            yield from _leaves(inner, f"{prefix}{name}.", depth - 1)
        else:
            yield f"{prefix}{name}", value
