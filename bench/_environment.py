"""A Python environment that a bench installs once, in the kit's cache folder, outside the checkout."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


def environment_folder(cache: Path, name: str, requirements: str) -> Path:
    """Return the folder of an environment: another list of requirements, or another Python, has another one.

    Args:
        cache: the kit's cache folder.
        name: of the environment, e.g. `trl-1.16.0`.
        requirements: in the format of a requirements file.
    """
    key = hashlib.sha256(f"{sys.version_info[:2]}{requirements}".encode()).hexdigest()[:8]
    return cache / "bench" / f"{name}-{key}"


def install_commands(folder: Path, requirements: Path, options: Sequence[str]) -> list[list[str]]:
    """Return the commands that install the environment; `options` are pip's."""
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *options]
    return [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*pip, "--requirement", str(requirements)],
    ]


def environment_python(
    cache: Path, name: str, requirements: str, size: str, options: Callable[[], Sequence[str]] = tuple
) -> Path:
    """Return the Python of an environment; install it at first use. Exits with a sentence if that fails.

    Args:
        cache: the kit's cache folder.
        name: of the environment.
        requirements: in the format of a requirements file; they need Python 3.11.
        size: what is downloaded, for the message.
        options: pip's, asked for only if something is installed.
    """
    folder = environment_folder(cache, name, requirements)
    python, finished = folder / "bin" / "python", folder / "finished"
    if finished.is_file():
        return python
    bench = Path(sys.argv[0]).stem
    if sys.version_info < (3, 11):
        sys.exit(f"{bench}: {name} needs Python 3.11 or newer. Make .venv with it: make install PYTHON=python3.11")
    print(f"Installing {name} into {folder}, once: {size}", file=sys.stderr, flush=True)
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(requirements)
            file.flush()
            for command in install_commands(folder, Path(file.name), options()):
                subprocess.run(command, check=True)
    except subprocess.CalledProcessError as failed:
        sys.exit(
            f"{bench}: installing {name} failed (exit code {failed.returncode}, the reason is printed above). "
            "It needs the package registry. Nothing was measured; run the same command again."
        )
    finished.touch()
    return python
