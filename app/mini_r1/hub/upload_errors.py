"""What goes wrong between here and the hub, in words, and whether trying again can help."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import random
from typing import Final, TypeVar

from mini_r1.errors import ExitCode, KitError
from mini_r1.hub.hub_answers import NETWORK, cause, first_line, no_name, not_there, status, unanswered

T = TypeVar("T")

AGAIN: Final = "the same command again sends only what is missing"
WAITS_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between two tries: about a minute in all, in which a hub that is restarted comes back."""
LONGEST_WAIT_S: Final = 300.0
"""Of what the hub may ask for: its rate limits are counted in windows of five minutes."""
OFFLINE: Final = (
    "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, and publishing needs the hub: unset it for this command"
)
_PASSING: Final = frozenset({408, 409, 412, 425, 429})
"""Answers that another try may not get: timeout, two commits at once, too early, too many. 5xx besides."""


def failure(error: Exception, repo: str) -> KitError:
    """The hub's or the network's error as a sentence: exit code 150 where another try may help, else 78.

    An address is never told: those of uploads are signed, and whoever has one can write.
    """
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
    from requests import RequestException

    if isinstance(error, KitError):
        return error
    began = cause(error)
    if isinstance(began, OfflineModeIsEnabled):
        return KitError(OFFLINE)
    code = status(began)
    if code is not None:
        return _answer(code, began, repo)
    if isinstance(began, HFValidationError):
        return KitError(no_name(repo, began))
    if isinstance(began, RequestException):
        return KitError(f"{unanswered(began)}: {NETWORK}; {AGAIN}", ExitCode.RETRY)
    if isinstance(began, OSError) and began.errno is not None:
        return KitError(f"{began.filename or 'a file of the run'}: {began.strerror}; {AGAIN}", ExitCode.RETRY)
    if isinstance(error, RuntimeError):  # huggingface_hub's word for an upload that failed, hf_transfer's too
        return KitError(f"an upload to {repo} failed ({type(began).__name__}); {AGAIN}", ExitCode.RETRY)
    if isinstance(began, ValueError):  # the hub refused a file, or its answer made no sense
        return KitError(f"the hub refuses {repo}: {first_line(str(began))}")
    raise error


def _answer(code: int, error: Exception, repo: str) -> KitError:
    said = first_line(getattr(error, "server_message", None) or "")
    said = f" ({said})" if said else ""
    if code == 401:
        return KitError(f"the hub does not take this token{said}: make a new one, and set HF_TOKEN to it")
    if code == 403:
        return KitError(
            f"this token may not write to {repo}{said}: take one with the right to write there, or another name"
        )
    if code == 404:
        return KitError(not_there(f"repository {repo}") + said)
    if code in _PASSING or code >= 500:
        return KitError(f"the hub answers {code}{said}; {AGAIN}", ExitCode.RETRY)
    return KitError(f"the hub refuses {repo} with {code}{said}")


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
            failed = failure(error, repo)
            if failed.exit_code != ExitCode.RETRY:
                raise failed from error
            pause = max(wait * (0.5 + random()), _asked_for(error))
            say(f"{failed.message.removesuffix(f'; {AGAIN}')}; trying again in {pause:.0f} s")
            sleep(pause)
    try:
        return action()
    except Exception as error:
        raise failure(error, repo) from error


def _asked_for(error: Exception) -> float:
    """Seconds that the hub asks for in its Retry-After; 0 where it asks for nothing."""
    response = getattr(cause(error), "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(asked), LONGEST_WAIT_S) if asked.isdecimal() else 0.0
