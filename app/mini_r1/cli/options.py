"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

RecipeName = Annotated[str, Argument(help="Recipe file, or name of a shipped recipe.")]
RunPath = Annotated[Path, Argument(help="Run directory.")]
Set = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable, dots reach into mappings."),
]
RunDirOption = Annotated[
    Path | None, Option("--run-dir", help="Run directory; default: the recipe's output_dir, else runs/<recipe's name>.")
]
Gpus = Annotated[int | None, Option(help="Use the first N of the GPUs given; default: all.")]
GpuMemory = Annotated[
    float | None, Option("--gpu-memory", metavar="GIB", help="Memory of a GPU; default: as detected.")
]
DeepSpeed = Annotated[str, Option(help="auto (the plan's choice), none, zero2, zero3, zero3-offload or a JSON file.")]
Json = Annotated[bool, Option("--json", help="Print JSON, and nothing else, on standard output.")]
