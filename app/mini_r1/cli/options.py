"""Arguments and options that several commands share."""

import math
from pathlib import Path
from typing import Annotated, Any

import click
from typer import Argument, Option

from mini_r1.run.run_dir import find_run

MAX_GPUS = 128  # of one node, MIG slices included: a plan has an entry for each


class FiniteRange(click.FloatRange):
    """Finite number in a range: click's own takes NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or fail as click does."""
        number: float = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value!r} is not a finite number.", param, ctx)


class RunType(click.ParamType):
    """The path of a run, given as a path or as a name in runs/."""

    name = "path"

    def convert(self, value: str | Path, param: object, ctx: object) -> Path:
        """Return the path."""
        return find_run(value)


RecipeName = Annotated[str, Argument(help="Recipe file, or name of a shipped recipe.")]
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
DeepSpeed = Annotated[str, Option(help="auto (the plan's choice), none, zero2, zero3, zero3-offload or a JSON file.")]
Json = Annotated[bool, Option("--json", help="Print JSON, and nothing else, on standard output.")]
