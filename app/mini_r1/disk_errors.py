"""Errors of a disk as one sentence: which file, what is wrong, how much room there is, what to do.

A disk that is full, read-only or gone may be well again later, so the exit code is always RETRY.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mini_r1.console import shown_bytes
from mini_r1.errors import ExitCode, KitError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
BROKEN = frozenset({errno.EIO, errno.ESTALE})
"""I/O error, stale network file."""
DENIED = frozenset({errno.EACCES, errno.EPERM})
LOST = DENIED | {errno.ENOENT, errno.ENOTDIR, errno.ENOTCONN, errno.ENODEV}
"""Errors of the disk only where a file could be used before; elsewhere a wrong path looks the same."""
LEFT_BYTES = 1 << 20
"""With less than this left after a failed write, a disk is called full."""

_RUST = re.compile(r"\(os error ([0-9]+)\)|Os \{ code: ([0-9]+)")
"""How safetensors 0.5 and tokenizers 0.21 write an error of the operating system into their messages."""
_TORCH = ("inline_container", "PytorchStreamWriter", "Parent directory", "cannot be opened")
"""Parts of the messages of torch 2.5.1's writer, such as
"[enforce fail at inline_container.cc:603] . unexpected pos 384 vs 342"."""


def disk_error(error: OSError, folder: Path | None = None, then: str = "") -> KitError | None:
    """Return the sentence for an error of the disk, with exit code RETRY; None for another error.

    Call it before the room that a failed write took is freed: the sentence says how much is left.

    Args:
        error: an error of the operating system.
        folder: a folder that could be used when the command began, such as the run directory.
        then: what the same command does when it is run again.
    """
    given = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    path = given or folder
    room = f"{error.strerror} ({_room(path)})" if path else f"{error.strerror}"
    what = path or "a file"
    if error.errno in FULL:
        why, todo = f"cannot write {what}: {room}", "Make room on that disk"
    elif error.errno == errno.EROFS:
        why, todo = f"cannot write {what}: {room}", "Make that filesystem writable"
    elif error.errno in BROKEN:
        why, todo = f"cannot use {what}: {room}", "Check that disk and its mount"
    elif folder is None or error.errno not in LOST or not _could_be_used(given, folder):
        return None
    elif error.errno in DENIED:
        why, todo = f"cannot use {path}: {room}", f"Give this user (uid {os.getuid()}) the right to read and write it"
    elif not os.path.isdir(folder):
        why, todo = f"{folder} is gone: it was renamed, removed or unmounted meanwhile", "Put it back"
    else:
        why, todo = f"cannot use {path}: {room}", "Put back what was renamed or removed meanwhile"
    return KitError(f"{why}. {todo}, then run the same command again{f': {then}' if then else ''}.", ExitCode.RETRY)


@contextmanager
def disk_errors(folder: Path, then: Callable[[], str]) -> Iterator[None]:
    """Raise errors of the disk as `disk_error` describes them; `then` is called after the error.

    Raises:
        KitError: retryable.
    """
    try:
        yield
    except OSError as error:
        described = disk_error(error, folder, then())
        if described is None:
            raise
        raise described from error


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Give errors the name of the file that is written: a failed write has none, a scratch file's says nothing."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def hidden_disk_error(error: Exception, folder: Path) -> OSError | None:
    """Return the failed write behind an error, with the name of a file or the folder; None for another error.

    safetensors, tokenizers and torch.save raise no OSError, and torch does not say what was wrong: a small file shows
    it.

    Args:
        error: what was raised.
        folder: where it was writing.
    """
    found = _RUST.search(str(error))
    if isinstance(error, OSError):
        if error.filename is not None or error.errno is None:
            return error
        number = error.errno
    elif found is not None:
        number = int(found[1] or found[2])
    elif isinstance(error, RuntimeError) and any(part in str(error) for part in _TORCH):
        number = _what_fails_a_write(folder)
    else:
        return None
    return OSError(number, os.strerror(number), str(folder))


def existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    path = path.absolute()
    return next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))


def _could_be_used(path: Path | None, folder: Path) -> bool:
    """Return whether a path that can't be used now could be when the command began; None is one that isn't known."""
    return path.absolute().is_relative_to(folder.absolute()) if path else not os.path.isdir(folder)


def _what_fails_a_write(folder: Path) -> int:
    """Return the error number of a write there; EIO if there is none, because a write has just failed."""
    probe = folder / f".probe.{os.getpid()}.tmp"
    try:
        with probe.open("xb", buffering=0) as handle:
            written = handle.write(bytes(LEFT_BYTES))
            return errno.EIO if written == LEFT_BYTES else errno.ENOSPC
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        with suppress(OSError):
            probe.unlink()


def _room(path: Path) -> str:
    try:
        place = existing(path)
        free, inodes = shutil.disk_usage(place).free, os.statvfs(place)
    except OSError as error:
        return f"how much room its disk has is not known: {error.strerror}"
    if inodes.f_files and not inodes.f_favail:
        return f"its disk has {shown_bytes(free)} left, and no inodes"
    return f"its disk has {shown_bytes(free)} left"
