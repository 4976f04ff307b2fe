"""Values read from files that may be incomplete: a wrong type counts as absent. And values as text."""

import os
import re
from pathlib import Path
from typing import Any, TypeGuard

GIB = 2**30  # bytes
MAX_FIGURE = 1e100  # larger figures count as absent: no run logs one, and sums and axes of them overflow


def number(value: object) -> float | None:
    """Return a number of at most MAX_FIGURE, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        known = float(value)
    except OverflowError:
        return None
    return known if abs(known) <= MAX_FIGURE else None  # not NaN


def is_step(value: object) -> TypeGuard[int]:
    """Return whether a value can be a step."""
    return type(value) is int and 0 <= value < 2**53  # a bool is an int too


def interval(value: object) -> tuple[float, float] | None:
    """Return a pair of finite numbers in order, or None."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None or low > high else (low, high)


def duration(seconds: float) -> str:
    """Format seconds: 45 s, 12 min, 3.4 h, 2.1 d."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5_400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} d"


def mapping(value: object) -> dict[str, Any]:
    """Return the value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def read_limited(path: Path, limit: int) -> bytes:
    """Return a file's content; raise ValueError with what is wrong, such as "is larger than 64 KiB"."""
    try:
        if not path.is_file():  # a pipe may never answer, and a device has no end
            raise ValueError("is not a file")
        with path.open("rb") as handle:
            data = handle.read(limit + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if len(data) > limit:
        size = f"{limit >> 20} MiB" if limit >> 20 else f"{limit >> 10} KiB"
        raise ValueError(f"is larger than {size}")
    return data


def expand_path(text: str) -> str:
    """Return a path with `~` and environment variables filled in; raise ValueError for one that is not set."""
    if not text:
        raise ValueError("the path is empty")
    expanded = os.path.expanduser(os.path.expandvars(text))
    if unset := re.search(r"\$(\w+|\{\w+\})", expanded):
        raise ValueError(f"the environment variable {unset[0]} is not set")
    if expanded.startswith("~"):
        raise ValueError(f"there is no home directory for {expanded.partition('/')[0]}")
    return expanded


def describe_value(value: object) -> str:
    """Return a short, printable form of a value that may be hostile or huge."""
    if value is None or isinstance(value, bool | float):
        return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
    if isinstance(value, int):
        # str() of an integer beyond 4300 digits raises, so a large one is described and not printed.
        return str(value) if value.bit_length() <= 64 else f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 else f"{value[:40]!r}..."
    kind = type(value).__name__
    return {"dict": "a mapping", "list": "a list"}.get(kind, f"a value of type {kind}")
