"""Standard output and standard error as files on a disk that may be full: batch systems redirect both."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO


class BestEffortStream:
    """A text stream whose writes may get lost: a full disk under standard error must not end a run.

    Args:
        stream: the stream; everything but `write` and `flush` is its own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, if possible.

        Raises:
            BrokenPipeError: the reader is gone.
        """
        with _lossy():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if possible.

        Raises:
            BrokenPipeError: the reader is gone.
        """
        with _lossy():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def flush_output() -> OSError | None:
    """Write what standard output still holds; return the error of a failure.

    After one, standard output is dropped: Python would try again at its end, and replace the exit code with 120.
    """
    try:
        if sys.stdout is not None:  # None where it is closed
            sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OSError(error.errno, error.strerror, "/dev/stdout")
    return None


def exit_process(code: int) -> NoReturn:
    """End the process with this exit code; one that has loaded torch skips the destructors of native libraries.

    A finished worker died of them (SIGSEGV after "finished", seen once in several hundred runs): a thread of gloo that
    asks for the interpreter's lock while the interpreter ends is ended in the middle of C++ code, which aborts.
    """
    if "torch" not in sys.modules:
        sys.exit(code)
    atexit._run_exitfuncs()  # Python's own: logs are flushed, multiprocessing's files are removed
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # full, closed, or None
            stream.flush()
    os._exit(code)


@contextmanager
def _lossy() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError:
        return
