"""Exit codes, the causes that have them, and the error that the command line prints as a sentence.

The codes are an interface: schedulers decide by them whether to restart a job (docs/exit-codes.md).
"""

from enum import Enum, IntEnum


class ExitCode(IntEnum):
    """What a command's exit status means."""

    FINISHED = 0  # the work is done; the same command does nothing more
    FAILED = 1  # any other error
    CONFIG = 78  # the recipe, the data or the command is wrong (EX_CONFIG of sysexits.h): don't retry
    INTERRUPTED = 143  # stopped on request (128 + SIGTERM) with what can be kept; the same command resumes
    RETRY = 150  # the node, a peer, the disk or a service failed; the last checkpoint is complete; retry, bounded


class Cause(Enum):
    """What ends a command, as docs/exit-codes.md lists it: the one map from causes to exit codes."""

    DONE = "the work is done", ExitCode.FINISHED
    DEFECT = "a defect of the kit", ExitCode.FAILED
    WRONG = "the recipe, the data, the command or the setup is wrong", ExitCode.CONFIG
    LIMIT = "a limit on failures, restarts or hours is reached", ExitCode.CONFIG
    STOPPED = "a signal, a drain, a preemption or a time limit", ExitCode.INTERRUPTED
    HUB_DOWN = "the hub does not answer, or answers with 408, 425, 429 or 500 and above", ExitCode.RETRY
    DISK = "a disk is full, read-only, gone or broken", ExitCode.RETRY
    NODE = "a GPU, the driver or a process of the node failed", ExitCode.RETRY
    PEER = "another node did not come, left or failed", ExitCode.RETRY
    RUN_HELD = "in a job: another process holds the run directory", ExitCode.RETRY
    INDEX_HELD = "in a job: another process has this node's index", ExitCode.RETRY
    HANG = "no sign of life for hang_timeout_s", ExitCode.RETRY

    def __init__(self, text: str, exit_code: ExitCode) -> None:
        self.text, self.exit_code = text, exit_code


STOPPING = "saving what is done, then exiting; a second signal exits without saving"
"""What is printed at the first request to stop, after the signal's name."""


class KitError(Exception):
    """Error that a user can act on; the message has a sentence, or a line for each error found."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.CONFIG) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


class Stopped(KitError):
    """Error raised when work was asked to stop; the message has what is kept and what to run."""

    def __init__(self, message: str = "stopped") -> None:
        super().__init__(message, ExitCode.INTERRUPTED)


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, at most 240 characters; its type's name if it has none."""
    return next((line.strip()[:240] for line in str(error).splitlines() if line.strip()), type(error).__name__)
