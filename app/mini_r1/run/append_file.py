"""Files that a run appends to: logs, completions, TensorBoard events."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any

from mini_r1.disk_errors import named


class AppendFile:
    """A file without a buffer: what `write` has returned from survives a kill.

    A buffer would keep what a full disk refused, and fail again when it is closed.

    Args:
        path: the file, made if it is missing.

    Raises:
        OSError: with the name of the file, here and in `write`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with named(path):
            self._handle = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Append all of it."""
        with named(self._path):
            while data:
                data = data[self._handle.write(data) :]

    def close(self) -> None:
        """Close the file; nothing is written here, so nothing is raised."""
        with contextlib.suppress(OSError):
            self._handle.close()


class JsonLines:
    """An append-only JSONL file; each call's rows reach the kernel before it returns, so a kill loses none of them."""

    def __init__(self, path: Path) -> None:
        self._file = AppendFile(path)

    def write(self, *rows: dict[str, Any]) -> None:
        """Append rows. Lone surrogates, NUL and line separators in text arrive as JSON escapes."""
        self._file.write(b"".join(json.dumps(row).encode("ascii") + b"\n" for row in rows))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
