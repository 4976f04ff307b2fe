"""A hub that is down, as opposed to one that refuses: nothing is wrong with the recipe, and a retry may help."""

from mini_r1.errors import Cause, KitError

OVERLOADED = frozenset({408, 425, 429})
"""Statuses below 500 that mean "later": timeout, too early, rate limit."""
_NO_ANSWER = frozenset({"ConnectionError", "Timeout", "ConnectTimeout", "ReadTimeout", "ProxyError", "SSLError"})
"""Exceptions of requests for a server that does not answer; the file name of their module tells them from others."""


def hub_outage(error: BaseException, what: str) -> KitError | None:
    """Return the error for what could not be fetched from a hub that is down; None for any other error.

    transformers, datasets and huggingface_hub wrap the reason in errors of the file, so the whole chain is searched.
    """
    for each in _chain(error):
        status = getattr(getattr(each, "response", None), "status_code", None)
        if status is not None:
            if status < 500 and status not in OVERLOADED:
                return None
            why = f"it answers {status}"
        elif type(each).__name__ in _NO_ANSWER and type(each).__module__.startswith("requests."):
            why = type(each).__name__
        else:
            continue
        return KitError(
            f"the hub does not answer for {what} ({why}): run the same command again, give this machine a network "
            "(HTTPS_PROXY, HF_ENDPOINT), or use `mini-r1 prefetch RECIPE` and set HF_HUB_OFFLINE=1",
            Cause.HUB_DOWN.exit_code,
        )
    return None


def _chain(error: BaseException | None) -> list[BaseException]:
    """Return an error and its causes, the first cause first: it has the reason."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found[::-1]
