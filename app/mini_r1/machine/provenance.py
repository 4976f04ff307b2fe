"""Where a result comes from: versions, code revision, time."""

import os
import subprocess
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the installed version of each package, None if it is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def code_revision() -> str | None:
    """Return the commit of the checkout this code runs from, with `+changes` if files differ; None outside a checkout.

    An image contains no checkout: its build sets MINI_R1_REVISION.
    """
    if given := os.environ.get("MINI_R1_REVISION"):
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
