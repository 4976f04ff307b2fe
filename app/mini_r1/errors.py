"""Exit codes and the one exception the command line turns into a sentence.

The codes are an interface: schedulers decide by them whether to run a job again (docs/exit-codes.md).
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit status means."""

    FINISHED = 0
    """The work is done; starting it again says so and does nothing."""
    FAILED = 1
    """Anything not named below."""
    CONFIG = 78
    """The recipe, the data or the command is wrong (EX_CONFIG of sysexits.h): running it again cannot help."""
    INTERRUPTED = 143
    """Asked to stop (128 + SIGTERM) and stopped in order; run the same command again and it goes on."""
    RETRY = 150
    """The node, a peer, the disk or a service failed; the last complete checkpoint stands. Retry, bounded."""


class KitError(Exception):
    """An error a user can act on: what is wrong, where, and what to do.

    Args:
        message: one sentence (or several lines, one for each fault found).
        exit_code: the status the process ends with.
    """

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.CONFIG) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


class Stopped(KitError):
    """Raised where work was asked to stop: what can be kept is kept, and the command exits 143.

    Args:
        message: what was stopped, what is kept, and what to run.
    """

    def __init__(self, message: str = "stopped") -> None:
        super().__init__(message, ExitCode.INTERRUPTED)


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, at most 240 characters; its type's name if it has none."""
    return next((line.strip()[:240] for line in str(error).splitlines() if line.strip()), type(error).__name__)
