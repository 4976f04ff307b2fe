"""What huggingface_hub raises, read in one place for who fetches and who publishes: what began it, and common words.

Whose fault it is and what to do about it they say themselves: one names the keys of a recipe, the other a repository to
be written to.
"""

from __future__ import annotations

from typing import Final

from mini_r1.console import printable

NETWORK: Final = "give this machine a network (HTTPS_PROXY, HF_ENDPOINT)"
SHOWN_CHARACTERS: Final = 200
"""Of the hub's own words."""


def cause(error: Exception) -> Exception:
    """The error that began it, an answer of the hub where there was one.

    huggingface_hub wraps what failed in a thread of its own in a RuntimeError, and an answer that did not come in an
    error of the file; who reads data, in one of the data.
    """
    while getattr(error, "response", None) is None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def status(error: Exception) -> int | None:
    """Of the hub's answer; None where there was none."""
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def unanswered(error: Exception, what: str = "") -> str:
    """No answer, or none that helps; `what` was asked for. No address is told: those of uploads are signed."""
    return f"the hub does not answer{f' for {what}' if what else ''} ({type(error).__name__})"


def not_there(what: str) -> str:
    """The hub says the same of what is not there and of what is not to be seen."""
    return f"the hub has no {what}, or shows it to others only"


def no_name(name: str, error: Exception) -> str:
    """huggingface_hub itself refused the name; its reason repeats it."""
    return f"{printable(name)} is no name that the hub knows ({first_line(str(error))})"


def first_line(text: str) -> str:
    """Of words from outside, as text; what follows a line that ends in a colon is what it announces."""
    lines = [line.strip() for line in printable(text).splitlines() if line.strip()]
    return (lines[-1] if lines and lines[0].endswith(":") else lines[0] if lines else "")[:SHOWN_CHARACTERS]
