"""Files of a run: replaced atomically, appended to, locked, and read when they may be damaged. No torch."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from mini_r1.disk_errors import named
from mini_r1.values import read_limited

SCRATCH = ".*.tmp"  # scratch files of `replacing`, which a kill leaves behind
MAX_OBJECT_BYTES = 16 << 20  # an evaluation has some ten thousand bytes, run.json a thousand for each attempt


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Replace a file atomically: yield a scratch file to write, which then takes the file's name.

    A reader gets the old file or the new one, never half of either; with `sync`, also after a power cut. An error
    removes the scratch file; an OSError has the name of `path`.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with named(path):
            scratch.unlink(missing_ok=True)  # in a stranger's run it may be a link to one of the user's files
            yield scratch
            if sync:
                sync_path(scratch)
            scratch.replace(path)
            if sync:
                sync_path(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()  # on a full disk the next attempt needs its space
        raise


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Replace a text file as `replacing` does."""
    with replacing(path, sync=sync) as scratch, scratch.open("x", encoding="utf-8") as handle:
        handle.write(text)


def format_json(value: Any) -> str:
    """Return a value as the text of a JSON file."""
    return json.dumps(value, indent=2, default=str) + "\n"


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """Replace a JSON file as `replacing` does."""
    write_text(path, format_json(value), sync=sync)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace a JSONL file as `replacing` does. Lone surrogates are written as JSON escapes."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


class AppendFile:
    """An unbuffered file, made if it is missing: what `write` returned from survives a kill.

    A buffer would keep what a full disk refused, and fail again when it is closed. Opening and writing raise OSError
    with the file's name.
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

    def write_rows(self, *rows: dict[str, Any]) -> None:
        """Append rows of JSONL. Lone surrogates, NUL and line separators are written as JSON escapes."""
        self.write(b"".join(json.dumps(row).encode("ascii") + b"\n" for row in rows))

    def close(self) -> None:
        """Close the file without raising: nothing is written here."""
        with contextlib.suppress(OSError):
            self._handle.close()


def load_object(path: Path, limit: int = MAX_OBJECT_BYTES) -> dict[str, Any]:
    """Return the object in a JSON file of at most `limit` bytes; else a ValueError has what is wrong: "is not JSON"."""
    data = read_limited(path, limit)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or {} if `load_object` can't."""
    try:
        return load_object(path)
    except ValueError:
        return {}


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file, with one line in memory at a time; none if there is no such file.

    Other lines are skipped: a kill cuts the last one short, and a power cut leaves blocks of NUL. Bytes that aren't
    UTF-8 become U+FFFD.
    """
    if not path.is_file():  # a pipe may never answer, and a device has no end
        return
    with path.open("rb") as handle:
        for line in handle:
            try:
                row = json.loads(line.decode("utf-8", errors="replace"))
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield row


def lock_file(handle: IO[str], *, wait: bool = False) -> bool:
    """Lock an open file until the process ends, and return False if another process holds it.

    With `wait`, wait for that process. Some network filesystems have no locks: there it returns True, and the user has
    to see to it that one process writes.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder; links are not followed."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # deleted meanwhile
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def make_folder(path: Path) -> None:
    """Make a folder and its parents so that they survive a power cut."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        with contextlib.suppress(PermissionError):  # a folder may be writable and not readable
            sync_path(folder.parent)


def sync_path(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
