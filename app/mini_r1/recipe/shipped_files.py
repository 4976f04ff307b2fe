"""The files of configs/ that come with the kit: in an installed wheel, or in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_files(folder: str, suffix: str) -> dict[str, Path]:
    """Return the files of a folder of configs/, by name without the suffix, in order."""
    for configs in (_PACKAGE / "_configs", _PACKAGE.parents[1] / "configs"):
        if (configs / folder).is_dir():
            return {path.stem: path for path in sorted((configs / folder).glob(f"*{suffix}"), key=lambda p: p.stem)}
    return {}


def shipped_recipes() -> dict[str, Path]:
    """Return names and files of the shipped recipes."""
    return shipped_files("recipes", ".yaml")


def shipped_deepspeed() -> dict[str, Path]:
    """Return names and files of the shipped DeepSpeed configurations."""
    return shipped_files("deepspeed", ".json")
