"""SIGTERM and Ctrl-C end an evaluation in order, with a sentence that says what is kept. No torch."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from mini_r1.errors import ExitCode, KitError


@contextlib.contextmanager
def stopped_in_order(words: str) -> Iterator[None]:
    """From here on SIGTERM does what Ctrl-C does, and either is told as `words`; for the main thread.

    Raises:
        KitError: one of the two came; INTERRUPTED.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise KitError(words, ExitCode.INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)
