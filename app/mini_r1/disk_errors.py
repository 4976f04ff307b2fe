"""Disk errors as one sentence: which file, what is wrong, how much space is left, what to do.

A disk that is full, read-only or gone may work again later, so the exit code is always RETRY.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mini_r1.console import shown_bytes
from mini_r1.errors import ExitCode, KitError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
TODO = {
    **dict.fromkeys(FULL, "Free space on that disk"),
    errno.EROFS: "Make that filesystem writable",
    errno.EIO: "Check that disk and its mount",
    errno.ESTALE: "Check that disk and its mount",
}
DENIED = frozenset({errno.EACCES, errno.EPERM})
WRONG_PATH = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST})
"""Errors of a path that a user gave: the kit makes no such path."""
LOST = DENIED | {errno.ENOENT, errno.ENOTDIR, errno.ENOTCONN, errno.ENODEV}
"""Disk errors only for a file that could be used before; elsewhere a wrong path looks the same."""
LEFT_BYTES = 1 << 20  # with less than this left after a failed write, a disk counts as full

_RUST = re.compile(r"\(os error ([0-9]+)\)|Os \{ code: ([0-9]+)")
"""How safetensors 0.5 and tokenizers 0.21 write an error of the operating system into their messages."""
_TORCH = ("inline_container", "PytorchStreamWriter", "Parent directory", "cannot be opened")
"""Parts of the messages of torch 2.5.1's writer, such as
"[enforce fail at inline_container.cc:603] . unexpected pos 384 vs 342"."""


def disk_error(error: OSError, folder: Path | None = None, then: str = "") -> KitError | None:
    """Return a KitError for a disk error, with exit code RETRY; None for another error.

    Call it before the space that a failed write took is freed: the sentence has what is left. `folder` could be used
    when the command began, such as the run directory; `then` is what the same command does when it is run again.
    """
    given = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    path = given or folder
    space = f" ({_describe_space(path)})" if path else ""
    verb = "write" if error.errno in FULL | {errno.EROFS} else "use"
    why = f"cannot {verb} {path or 'a file'}: {error.strerror}{space}"
    if error.errno in TODO:
        todo = TODO[error.errno]
    elif folder is None or error.errno not in LOST or not _was_usable(given, folder):
        return None
    elif error.errno in DENIED:
        todo = f"Give this user (uid {os.getuid()}) the right to read and write it"
    elif not os.path.isdir(folder):
        why, todo = f"{folder} is gone: it was renamed, removed or unmounted meanwhile", "Put it back"
    else:
        todo = "Put back what was renamed or removed meanwhile"
    return KitError(f"{why}. {todo}, then run the same command again{f': {then}' if then else ''}.", ExitCode.RETRY)


@contextmanager
def disk_errors(folder: Path, then: Callable[[], str]) -> Iterator[None]:
    """Raise disk errors as `disk_error` describes them, retryable; `then` is called after the error."""
    try:
        yield
    except OSError as error:
        described = disk_error(error, folder, then())
        if described is None:
            raise
        raise described from error


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Give errors the name of the file that is written: a failed write has none, or a scratch file's."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def hidden_disk_error(error: Exception, folder: Path) -> OSError | None:
    """Return the failed write in `folder` behind an error, with a file name; None for another error.

    safetensors, tokenizers and torch.save raise no OSError, and torch's message has no reason: a small file shows it.
    """
    found = _RUST.search(str(error))
    if isinstance(error, OSError):
        if error.filename is not None or error.errno is None:
            return error
        number = error.errno
    elif found is not None:
        number = int(found[1] or found[2])
    elif isinstance(error, RuntimeError) and any(part in str(error) for part in _TORCH):
        number = _probe_write(folder)
    else:
        return None
    return OSError(number, os.strerror(number), str(folder))


def existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    path = path.absolute()
    return next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))


def _was_usable(path: Path | None, folder: Path) -> bool:
    """Return whether a path that can't be used now could be used when the command began; None: not known."""
    return path.absolute().is_relative_to(folder.absolute()) if path else not os.path.isdir(folder)


def _probe_write(folder: Path) -> int:
    """Return the error number of a write there; EIO if it succeeds, because a write has just failed."""
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


def _describe_space(path: Path) -> str:
    try:
        disk = os.statvfs(existing(path))
    except OSError as error:
        return f"the free space of its disk is not known: {error.strerror}"
    no_inodes = ", and no inodes" if disk.f_files and not disk.f_favail else ""
    return f"its disk has {shown_bytes(disk.f_bavail * disk.f_frsize)} left{no_inodes}"
