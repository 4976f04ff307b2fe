"""SIGTERM and Ctrl-C end a command in order, with a sentence that says what is kept. No torch."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

from mini_r1.errors import Stopped


@contextlib.contextmanager
def stopped_in_order(words: Callable[[], str]) -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, and tell either with `words`; for the main thread.

    Raises:
        Stopped: one of the two came.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(words()) from None
    finally:
        signal.signal(signal.SIGTERM, before)
