"""What a scheduler gives a run between the request to stop and SIGKILL, against what the plan says that it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from mini_r1.errors import KitError
from mini_r1.plan.timing import Timing

VARIABLE: Final = "MINI_R1_GRACE_S"
"""Set in a pod to its terminationGracePeriodSeconds, which it cannot see otherwise."""


def given_grace(environment: Mapping[str, str], asked: float | None = None) -> tuple[float, str] | None:
    """Return the seconds that a run is given, and what gives them; None where nobody says.

    Args:
        environment: of this process.
        asked: of the option --grace, which counts first.

    Raises:
        KitError: not a number of seconds.
    """
    if asked is not None:
        if not (math.isfinite(asked) and asked >= 0):
            raise KitError(f"--grace {asked:g}: must be seconds, 0 or more")
        return asked, "the grace period (--grace)"
    text = environment.get(VARIABLE, "")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise KitError(f"{VARIABLE} is {text!r}: set it to the pod's terminationGracePeriodSeconds, or unset it")
    return seconds, f"terminationGracePeriodSeconds ({VARIABLE})"


def time_to_stop(timing: Timing) -> str:
    """Return how long a run needs from a request to stop to the end of its save."""
    return f"{timing.stop_s:.0f} s (update {timing.update:.0f}, save {timing.whole_save:.0f})"


def too_short(timing: Timing | None, given: tuple[float, str] | None) -> str | None:
    """Return a sentence where a run is given less time to stop than it needs, None where it has enough."""
    if timing is None or given is None or given[0] >= timing.stop_s:
        return None
    seconds, what = given
    return (
        f"asked to stop, the run needs up to {time_to_stop(timing)}, and {what} is {seconds:g} s: a run that is killed "
        f"before it has saved repeats the steps since its last checkpoint: {remedy(timing, what)}"
    )


def remedy(timing: Timing, what: str) -> str:
    """Return what to set where `what` is too short."""
    return (
        f"set {what} to {math.ceil(timing.stop_s / 10) * 10} s or more, or bound the loss with save_minutes or a "
        "smaller save_steps"
    )
