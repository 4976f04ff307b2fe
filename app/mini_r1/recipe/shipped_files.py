"""The files of configs/ that come with the kit: in an installed wheel, or in a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_files(folder: str) -> dict[str, Path]:
    """Return the files of `recipes` or `deepspeed`, a folder of configs/, by name without the suffix, in order."""
    for configs in (_PACKAGE / "_configs", _PACKAGE.parents[1] / "configs"):
        if (configs / folder).is_dir():
            return {path.stem: path for path in sorted((configs / folder).glob("[!.]*"), key=lambda path: path.stem)}
    return {}
