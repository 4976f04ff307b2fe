"""A user's reward: a function in a Python file, or of an importable module, with the signature that TRL gives it.

    def closeness(completions, target, **kwargs) -> list[float]:

It is called by keyword with lists of one length, `prompts` (rendered), `completions` (the model's text after the
prefill) and the columns of the task, and returns a finite float for each completion.
"""

import ast
import importlib
import inspect
import io
import logging
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.machinery import PathFinder, SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from mini_r1.console import printable, text
from mini_r1.errors import KitError, first_line

logger = logging.getLogger(__name__)

ALLOW = "MINI_R1_ALLOW_RECIPE_CODE"
"""Environment variable that forbids code of recipes if it is 0."""
SUFFIX = ".py"
MOST_LOGGED = 100
"""Lines that one call may print to the log."""
SHOWN = 200
"""Characters of a completion in an error."""


def is_code(name: str) -> bool:
    """Return whether a recipe's reward is code: `my_rewards.py:closeness` or `package.module:closeness`."""
    source, colon, function = name.rpartition(":")
    module = source.endswith(SUFFIX) or all(part.isidentifier() for part in source.split("."))
    return bool(colon) and module and function.isidentifier()


def short_name(name: str) -> str:
    """Return the name of a reward in logs and records: without the folder of its file."""
    source, colon, function = name.rpartition(":")
    return f"{Path(source).name if source.endswith(SUFFIX) else source}{colon}{function}"


def source_file(name: str) -> Path:
    """Return the file that a reward's function is in, without running code; a KitError if there is none."""
    source = name.rpartition(":")[0]
    if source.endswith(SUFFIX):
        return Path(source)
    found, path, parts = None, None, source.split(".")
    for end in range(1, len(parts) + 1):
        found = PathFinder.find_spec(".".join(parts[:end]), path)
        if found is None:
            break
        path = found.submodule_search_locations
    if found is None or found.origin is None or not found.origin.endswith(SUFFIX):
        raise KitError(f"there is no module {source} here: install its package, or set PYTHONPATH")
    return Path(found.origin)


def refuse_code(names: Iterable[str], environment: Mapping[str, str]) -> None:
    """Raise KitError if there are names and the environment forbids code of recipes."""
    if (listed := ", ".join(map(short_name, names))) and environment.get(ALLOW) == "0":
        raise KitError(f"the recipe names code ({listed}), and {ALLOW} is 0: take it out of rewards, or unset {ALLOW}")


def check_source(name: str) -> None:
    """Raise KitError if a reward's file cannot be read or parsed or defines no such function; it is not run."""
    file, function = source_file(name), name.rpartition(":")[2]
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except OSError as error:
        raise KitError(f"{file}: cannot be read ({error.strerror})") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise KitError(f"{file}{line}: not valid Python ({first_line(error)})") from error
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    # A name that is assigned, imported or made in an `if` is found when the file is imported.
    if f"'{function}'" not in ast.dump(tree) and not any(isinstance(node, ast.ImportFrom) for node in tree.body):
        raise KitError(f"{file} has no function {function}; it has: {', '.join(defined[:10]) or 'none'}")


@dataclass(frozen=True, slots=True)
class CodeReward:
    """A user's function, imported."""

    name: str  # see `short_name`
    function: Callable[..., Any]
    arguments: tuple[str, ...]  # the keywords that it takes

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]], step: int
    ) -> list[float]:
        """Return the reward of each completion; `columns` have a value for each. What it prints goes to the log.

        Raises:
            KitError: the function raised or returned something else; the message names completion and step.
        """
        given = {"prompts": list(prompts), "completions": list(completions)}
        given |= {name: list(values) for name, values in columns.items()}
        try:
            values = self._call(given)
        except (Exception, SystemExit) as error:
            raise KitError(
                f"the reward {self.name} raised {type(error).__name__}: {text(first_line(error), SHOWN)} "
                f"{self._find_raising(given)}, step {step}: fix it, and repeat the command, with another "
                "--run-dir if this run has a checkpoint"
            ) from error
        if values is None:
            raise KitError(f"the reward {self.name} must return a list, a float for each completion (step {step})")
        if len(values) != len(completions):
            raise KitError(
                f"the reward {self.name} returned {len(values)} values for {len(completions)} completions, "
                f"step {step}: it must return one for each"
            )
        return [self._number(value, completion, step) for value, completion in zip(values, completions, strict=True)]

    def _call(self, given: Mapping[str, list[Any]]) -> list[Any] | None:
        """Call the function and return its values; None if they are no list."""
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):
                values = self.function(**{name: given[name] for name in self.arguments})
                if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
                    return None
                return list(values)
        finally:
            for line in printed.getvalue().splitlines()[:MOST_LOGGED]:
                logger.info("%s: %s", self.name, printable(line))

    def _find_raising(self, given: Mapping[str, list[Any]]) -> str:
        """Return which completion the function raises for, if it does for one alone."""
        for index, completion in enumerate(given["completions"]):
            try:
                self._call({name: values[index : index + 1] for name, values in given.items()})
            except (Exception, SystemExit):
                return f"for the completion '{text(completion, SHOWN)}'"
        return f"for {len(given['completions'])} completions together, and for none of them alone"

    def _number(self, value: Any, completion: str, step: int) -> float:
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except Exception:  # of any class
            number = math.nan
        if math.isfinite(number):
            return number
        raise KitError(
            f"the reward {self.name} returned {text(repr(value), SHOWN)} for the completion "
            f"'{text(completion, SHOWN)}', step {step}: it must return finite numbers"
        )


def load_reward(name: str, columns: Sequence[str], environment: Mapping[str, str]) -> CodeReward:
    """Import a reward's function, which runs its file.

    Raises:
        KitError: code is forbidden, the file cannot be imported, it has no such function, or the function needs
            something else than prompts, completions and the columns.
    """
    refuse_code([name], environment)
    check_source(name)
    source, _, attribute = name.rpartition(":")
    try:
        module = _run_file(Path(source)) if source.endswith(SUFFIX) else importlib.import_module(source)
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {text(first_line(error), SHOWN)}"
        raise KitError(f"the reward {short_name(name)} cannot be imported ({why}): fix {source}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise KitError(f"{source} has no function {attribute}")
    parameters = inspect.signature(function).parameters.values()
    known = ("prompts", "completions", *columns)
    for each in parameters:
        needed = each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        if needed and (each.name not in known or each.kind is each.POSITIONAL_ONLY):
            raise KitError(
                f"the reward {short_name(name)} needs '{each.name}': a reward gets {', '.join(known)} by keyword"
            )
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters)
    taken = tuple(known if takes_all else (each.name for each in parameters if each.name in known))
    return CodeReward(short_name(name), function, taken)


class _Loader(SourceFileLoader):
    """Loader that neither reads nor writes `__pycache__` next to the user's file."""

    def path_stats(self, path: str) -> Any:
        raise OSError


def _run_file(file: Path) -> ModuleType:
    # Registered, because dataclasses and pickle look their module up.
    name = f"mini_r1_recipe_{file.stem}"
    spec = spec_from_loader(name, _Loader(name, str(file)))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
