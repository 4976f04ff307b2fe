"""Standard output and standard error on a disk that may be full, to which batch systems redirect them."""

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TextIO


class BestEffortStream:
    """Text stream whose writes may get lost: a full disk under standard error must not end a run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, if possible; raise BrokenPipeError if the reader is gone."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if possible; raise BrokenPipeError if the reader is gone."""
        self._try(self._stream.flush)

    def _try(self, act: Callable[..., object], *arguments: str) -> None:
        try:
            act(*arguments)
        except BrokenPipeError:
            raise
        except OSError:
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def flush_output() -> OSError | None:
    """Flush standard output and return an error, after which it is dropped: Python would retry, and exit with 120."""
    try:
        if sys.stdout is not None:  # None where it is closed
            sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OSError(error.errno, error.strerror, "/dev/stdout")
    return None


def exit_process(code: int) -> NoReturn:
    """End the process with this exit code, with torch loaded without the destructors of native libraries.

    They can abort a finished worker (once in several hundred runs): a gloo thread that waits for the interpreter's lock
    at the interpreter's end is killed in the middle of C++ code.
    """
    if "torch" not in sys.modules:
        sys.exit(code)
    atexit._run_exitfuncs()  # Python's own: logs are flushed, multiprocessing's files are removed
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # full, closed, or None
            stream.flush()
    os._exit(code)
