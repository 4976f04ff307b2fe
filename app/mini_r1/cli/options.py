"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(help="Recipe file, or name of a shipped recipe.")]
RunPath = Annotated[Path, typer.Argument(help="Run directory.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable, dots reach into mappings."),
]
RunDirOption = Annotated[
    Path | None,
    typer.Option("--run-dir", help="Run directory; default: the recipe's output_dir, else runs/<recipe's name>."),
]
Gpus = Annotated[int | None, typer.Option(help="Use the first N of the GPUs given; default: all.")]
GpuMemory = Annotated[
    float | None, typer.Option("--gpu-memory", metavar="GIB", help="Memory of a GPU; default: the driver's value.")
]
DeepSpeed = Annotated[
    str, typer.Option(help="auto (the plan's choice), none, zero2, zero3, zero3-offload or a JSON file.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
