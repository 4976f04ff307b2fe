"""What goes wrong between here and the hub, in words, and whether trying again can help."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import random
from typing import Final, TypeVar

from mini_r1.errors import ExitCode
from mini_r1.hub.hub_errors import RESUMES, cause, hub_error

T = TypeVar("T")

WAITS_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between two tries: about a minute in all, in which a hub that is restarted comes back."""
LONGEST_WAIT_S: Final = 300.0
"""Of what the hub may ask for: its rate limits are counted in windows of five minutes."""
OFFLINE: Final = (
    "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, and publishing needs the hub: unset it for this command"
)


def retrying(
    action: Callable[[], T], repo: str, say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep
) -> T:
    """Do it, and again after a wait where that may help: twice as long each time, and never all at one moment.

    Raises:
        KitError: it failed for good (78), or after the last try (150).
    """
    for wait in WAITS_S:
        try:
            return action()
        except Exception as error:
            failed = hub_error(error, repo)
            if failed.exit_code != ExitCode.RETRY:
                raise failed from error
            pause = max(wait * (0.5 + random()), _asked_for(error))
            say(f"{failed.message.removesuffix(f': {RESUMES}')}; trying again in {pause:.0f} s")
            sleep(pause)
    try:
        return action()
    except Exception as error:
        raise hub_error(error, repo) from error


def _asked_for(error: Exception) -> float:
    """Seconds that the hub asks for in its Retry-After; 0 where it asks for nothing."""
    response = getattr(cause(error), "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(asked), LONGEST_WAIT_S) if asked.isdecimal() else 0.0
