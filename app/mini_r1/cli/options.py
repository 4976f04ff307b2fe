"""Arguments and options that several commands share."""

import math
import os
from pathlib import Path
from typing import Annotated, Any

import click
from typer import Argument, Option

from mini_r1.run.run_dir import find_run
from mini_r1.tasks.registry import TASKS
from mini_r1.values import expand_path

MOST = 10**9  # of things to count, so that none needs a larger integer than the machine's
MAX_GPUS = 128  # of one node, MIG slices included: a plan has an entry for each


class FiniteRange(click.FloatRange):
    """Finite number in a range: click's own takes NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or fail as click does."""
        number: float = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value!r} is not a finite number.", param, ctx)


class ExpandedPath(click.Path):
    """Path with `~` and environment variables filled in, which a shell does for some arguments, a manifest for none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, or fail as click does."""
        try:
            value = expand_path(os.fspath(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)
        return super().convert(value, param, ctx)


class RunType(ExpandedPath):
    """The path of a run, given as a path or as a name in runs/."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, or fail as click does."""
        return find_run(super().convert(value, param, ctx))


class CountOrAuto(click.ParamType):
    """A number from 1 to MAX_GPUS, or `auto`; kept as text."""

    name = "integer or auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text, or fail as click does."""
        try:
            return "auto" if value == "auto" else str(click.IntRange(1, MAX_GPUS).convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"{value!r} is neither auto nor a number from 1 to {MAX_GPUS}", param, ctx)


def parse_columns(given: list[str] | None) -> dict[str, str]:
    """Return the columns of --column by field; fail as click does for what is no field and its column."""
    pairs = [each.partition("=") for each in given or ()]
    for field, sign, column in pairs:
        if not field or not column:
            text = f"{field + sign + column!r} is not a field and its column, such as nums=numbers."
            raise click.BadParameter(text, param_hint="'--column'")
    return {field: column for field, _, column in pairs}


PATH = ExpandedPath()
TaskName = Annotated[str, Option("--task", click_type=click.Choice(list(TASKS)), help="Task of the rows.")]
RecipeName = Annotated[str, Argument(click_type=PATH, help="Recipe file, or name of a shipped recipe.")]
RunPath = Annotated[Path, Argument(click_type=RunType(), help="Run directory, or its name in runs/.")]
RunPaths = Annotated[list[Path], Argument(click_type=RunType(), help="Run directories, or their names in runs/.")]
Set = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable, dots reach into mappings."),
]
RunDirOption = Annotated[
    Path | None, Option("--run-dir", help="Run directory; default: the recipe's output_dir, else runs/<recipe's name>.")
]
Gpus = Annotated[int | None, Option(min=0, max=MAX_GPUS, help="Use the first N of the GPUs given; default: all.")]
GpuMemory = Annotated[
    float | None, Option(metavar="GIB", click_type=FiniteRange(0.1), help="Memory of a GPU; default: as detected.")
]
DeepSpeed = Annotated[
    str,
    Option(click_type=PATH, help="auto (the plan's choice), none, zero2, zero3, zero3-offload or a JSON file."),
]
VllmDevices = Annotated[
    str,
    Option(
        metavar="N|auto", click_type=CountOrAuto(), help="Node 0's last N devices run vLLM; auto: the plan's choice."
    ),
]
ColumnNames = Annotated[
    list[str] | None,
    Option("--column", metavar="FIELD=COLUMN", help="Column of a field, also nested: nums=metadata.numbers."),
]
Json = Annotated[bool, Option("--json", help="Print JSON, and nothing else, on standard output.")]
