"""Where a result comes from: versions, code revision, time."""

import importlib.metadata
import os
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the installed version of each package, None if it is not installed."""
    found: dict[str, str | None] = dict.fromkeys(packages)
    for package in found:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def code_revision() -> str | None:
    """Return the commit of this code's checkout, with `+changes` if files differ; None outside a checkout."""
    if given := os.environ.get("MINI_R1_REVISION"):  # set by the build of an image, which contains no checkout
        return given
    try:
        revision = subprocess.run(  # noqa: S603
            ["git", "describe", "--always", "--dirty=+changes", "--abbrev=40", "--exclude=*"],  # noqa: S607
            cwd=Path(__file__).resolve().parent, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.stdout.strip() or None


def utc_now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
