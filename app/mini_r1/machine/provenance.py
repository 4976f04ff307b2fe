"""What a result came from: versions, code revision, time. Nothing here imports torch."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Installed version of each package, None where it is not installed."""
    return {package: _version(package) for package in packages}


def code_revision() -> str | None:
    """Commit of the checkout this code runs from, with `+changes` when files differ; None outside a checkout.

    An image has no checkout in it: MINI_R1_REVISION, which its build sets, says what it was made from.
    """
    if told := os.environ.get("MINI_R1_REVISION"):
        return told
    try:
        revision = subprocess.run(  # noqa: S603
            ["git", "describe", "--always", "--dirty=+changes", "--abbrev=40", "--exclude=*"],  # noqa: S607
            cwd=Path(__file__).resolve().parent, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.stdout.strip() or None


def utc_now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
