"""A small filesystem of a test's own, and how it is filled."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = 4096
"""Bytes by which a file on a tmpfs grows."""


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a tmpfs of `size` (such as 64m) there; skip the test where this user may not."""
    folder.mkdir(exist_ok=True)
    if shutil.which("mount") is None:
        pytest.skip("this system has no mount")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"mounting needs root, or `unshare -rm` before the command: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, leave: int) -> None:
    """Leave this number of bytes free; if fewer are free, change nothing."""
    with (disk / "filler").open("wb") as filler:
        filler.write(bytes(max(0, shutil.disk_usage(disk).free - leave)))


def make_room(disk: Path) -> None:
    """Undo `fill`."""
    (disk / "filler").unlink()
