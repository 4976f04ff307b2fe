"""Whether a scheduler restarts this process, and how long it waits for what another process still holds."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mini_r1.console import printable
from mini_r1.errors import Cause, KitError, Stopped
from mini_r1.machine.paths import in_pod

JOB_ID = "MINI_R1_JOB_ID"
"""The job of this process in its scheduler, the same at every restart; the batch scripts and manifests set it."""
WAIT_MINUTES = "MINI_R1_WAIT_MINUTES"
DEFAULT_WAIT_MINUTES = 10.0  # less than the 15 minutes that the other nodes wait (MEET_TIMEOUT_S)
LOOK_EVERY_S = 1.0


def is_scheduled(environment: Mapping[str, str]) -> bool:
    """Return whether this process is part of a job: on Slurm, or in a pod."""
    return bool(environment.get(JOB_ID) or environment.get("SLURM_JOB_ID")) or in_pod(environment)


def read_limit(environment: Mapping[str, str], name: str) -> float | None:
    """Return a limit's value, None if it is not set; a KitError for anything but a number from 0."""
    text = environment.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise KitError(f"{name}={printable(text)}: must be a number from 0")
    return value


@dataclass(frozen=True)
class Patience:
    """How long to wait for what another process holds: minutes in a job, which then retries; not at all elsewhere."""

    environment: Mapping[str, str]
    say: Callable[[str], None] = print
    stop: Callable[[], bool] = lambda: False

    @property
    def seconds(self) -> float:
        """The limit of the wait: MINI_R1_WAIT_MINUTES in a job, 0 on a workstation."""
        minutes = read_limit(self.environment, WAIT_MINUTES)
        minutes = DEFAULT_WAIT_MINUTES if minutes is None else minutes
        return 60 * minutes if is_scheduled(self.environment) else 0.0

    def wait_until(self, free: Callable[[], bool], held: str, cause: Cause) -> None:
        """Wait until `free()`; if that takes too long raise a KitError with `held` as its message.

        Raises Stopped if this process was asked to stop meanwhile.
        """
        end, reported = time.monotonic() + self.seconds, False
        while not free():
            if self.stop():
                raise Stopped("stopped while waiting; nothing was started")
            if time.monotonic() >= end:
                raise KitError(held, (cause if is_scheduled(self.environment) else Cause.WRONG).exit_code)
            if not reported:
                self.say(f"waiting up to {self.seconds / 60:g} minutes ({WAIT_MINUTES}): {held}")
                reported = True
            time.sleep(min(LOOK_EVERY_S, self.seconds))
