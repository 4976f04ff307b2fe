"""Errors of the hub and on the way to it, as one sentence, what to do, and an exit code. The only place that maps them.

Exit code 150 means that a retry may help (the hub, the network or the disk), 78 that it can't (a name, a token).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mini_r1.console import printable
from mini_r1.disk_errors import disk_error
from mini_r1.errors import ExitCode, KitError
from mini_r1.hub_outages import OVERLOADED

if TYPE_CHECKING:
    from mini_r1.hub.hub_access import RepoKind

RESUMES: Final = "run the same command again to resume"
NOT_FOUND: Final = "the hub has no {}, or your token has no access to it"
"""One sentence for both: the hub gives the same answer."""
SHOWN_CHARACTERS: Final = 200  # longest part of the hub's message that is shown
_PASSING: Final = OVERLOADED | {409, 412}
"""Statuses below 500 that a retry may not get; 409 and 412 are two commits at once."""


class HubError(KitError):
    """An error of the hub: `detail` is what is wrong, `fix` what to do."""

    def __init__(self, detail: str, fix: str, exit_code: ExitCode = ExitCode.CONFIG) -> None:
        super().__init__(f"{detail}: {fix}", exit_code)
        self.detail, self.fix = detail, fix


def hub_error(error: Exception, name: str, kind: RepoKind | None = None, revision: str | None = None) -> KitError:
    """Return what an error of huggingface_hub means for a repository; another error is raised again.

    A repository with a `kind` is read because a recipe names it, one without is written to. No address is shown:
    those of uploads are signed.
    """
    from huggingface_hub.errors import HFValidationError

    if isinstance(error, KitError):
        return error
    began = cause(error)
    response = getattr(began, "response", None)
    if isinstance(began, HFValidationError):
        fix = f"check {kind.key}" if kind else "use another name"
        return HubError(f"{printable(name)} is not a valid name on the hub ({_first_line(str(began))})", fix)
    if any("hf_transfer" in str(each) for each in _chain(error)):
        return HubError(
            f"hf_transfer failed for {name} ({type(began).__name__})",
            f"unset HF_HUB_ENABLE_HF_TRANSFER, then {RESUMES}",
            ExitCode.CONFIG if isinstance(began, ValueError) else ExitCode.RETRY,
        )
    refusal = None
    if response is not None:
        refusal = _refused_read(began, name, kind, revision) if kind else _refused_write(began, name)
    elif isinstance(began, OSError) and "Consistency check failed" in str(began):
        refusal = cut_short(name)
    elif isinstance(began, OSError) and began.errno is not None:  # the network's errors have none
        refusal = HubError(f"{began.filename or 'a file'}: {began.strerror}", RESUMES, ExitCode.RETRY)
    elif not isinstance(began, OSError | ValueError):
        raise error
    elif kind is None and not isinstance(began, OSError):  # the hub refused a file, or its answer made no sense
        refusal = HubError(f"the hub refuses {name}", _first_line(str(began)))
    no_answer = f"the hub does not answer for {name} ({type(began).__name__})"
    fix = f"give this machine a network (HTTPS_PROXY, HF_ENDPOINT) and {RESUMES}"
    return refusal or HubError(no_answer, fix, ExitCode.RETRY)


def _refused_read(error: Any, name: str, kind: RepoKind, revision: str | None) -> HubError | None:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return HubError(f"{name} is gated", "accept its terms on the hub, and set HF_TOKEN to a token of yours")
    if isinstance(error, RepositoryNotFoundError):
        return HubError(NOT_FOUND.format(f"{kind.type} {name}"), f"check {kind.key}; for a private one set HF_TOKEN")
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"{name} has no revision {revision}", f"check the revision of {kind.key}")
    if error.response.status_code in (401, 403):
        return HubError(f"the hub gives this user no access to {name}", "check HF_TOKEN, or unset it")
    return None


def _refused_write(error: Any, name: str) -> HubError:
    status, message = error.response.status_code, _first_line(getattr(error, "server_message", None) or "")
    reason = f" ({message})" if message else ""
    if status in _PASSING or status >= 500:
        return HubError(f"the hub answers {status}{reason}", RESUMES, ExitCode.RETRY)
    what, fix = {
        401: ("the hub doesn't accept this token", "make a new one, and set HF_TOKEN to it"),
        403: (f"this token can't write to {name}", "use one that can write there, or another repository"),
        404: (NOT_FOUND.format(f"repository {name}"), "check its name and HF_TOKEN"),
    }.get(status, (f"the hub refuses {name} with {status}", "check the files and the name"))
    return HubError(f"{what}{reason}", fix)


def cut_short(what: str) -> HubError:
    """Return the error for a file that has another size than the hub announced."""
    return HubError(f"{what} did not arrive whole", f"the hub or the network stopped; {RESUMES}", ExitCode.RETRY)


@contextmanager
def fetch_errors(cache: Path, kind: RepoKind, name: str, revision: str | None) -> Iterator[None]:
    """Raise an error of fetching files into the cache as `hub_error` or `cache_error` describes it."""
    try:
        yield
    except NotImplementedError as error:  # filelock's, on a filesystem without locks
        raise HubError(
            f"the filesystem of {cache} has no locks, which huggingface_hub needs to fetch",
            "set HF_HOME to a folder on another one, and copy it to where the job needs it",
            ExitCode.RETRY,
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        began = cause(error)
        if isinstance(began, OSError) and began.errno is not None:
            raise cache_error(cache, began) from error
        raise hub_error(error, name, kind, revision) from error


def cache_error(folder: Path, error: OSError) -> KitError:
    """Return the error for a folder of the cache that can't be made or written."""
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return KitError(f"{folder} or a folder above it is a file: set HF_HOME to a folder")
    return disk_error(error, folder, "it resumes where it stopped") or KitError(
        f"cannot write {folder} ({error.strerror}): give this user write access, mount the volume, or set HF_HOME to "
        "another folder, here and in the job",
        ExitCode.RETRY,
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def cause(error: Exception) -> Exception:
    """Return the hub's answer behind an error, or else the first of its causes.

    huggingface_hub wraps an error of a thread in a RuntimeError, and a missing answer in an error of the file.
    """
    causes = [each for each in _chain(error) if isinstance(each, Exception)]
    return next((each for each in causes if getattr(each, "response", None) is not None), causes[-1])


def _first_line(text: str) -> str:
    """Return the first line of text from outside; after a line that ends in a colon the last one."""
    lines = [line.strip() for line in printable(text).splitlines() if line.strip()] or [""]
    return lines[-1 if lines[0].endswith(":") else 0][:SHOWN_CHARACTERS]
