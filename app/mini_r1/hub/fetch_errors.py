"""What goes wrong while files are fetched from the hub, in words: the hub's refusals, the network and the disk."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mini_r1.console import shown_bytes
from mini_r1.disk_errors import existing
from mini_r1.errors import ExitCode, KitError
from mini_r1.hub import hub_access
from mini_r1.hub.hub_access import Kind
from mini_r1.hub.hub_answers import NETWORK, cause
from mini_r1.tasks.countdown.problem import DataError

AGAIN: Final = "start the same command again: it goes on from what is here"


@contextmanager
def in_words(kind: Kind, name: str, revision: str | None, cache: Path) -> Iterator[None]:
    """What huggingface_hub raises becomes a sentence, and the disk's errors are told from the network's.

    Args:
        kind: of the repository that is asked for or fetched.
        name: of it.
        revision: of it.
        cache: where its files go.

    Raises:
        KitError: 78 where the recipe or a token is at fault, 150 where hub, network or disk are.
    """
    try:
        yield
    except (DataError, OSError, RuntimeError, ValueError) as error:
        began = cause(error)
        if "hf_transfer" in str(began):
            raise _transfer_error(name, began) from error
        if isinstance(began, OSError) and began.errno is not None:  # the network's have none
            raise disk_error(cache, began) from error
        if isinstance(began, OSError) and "Consistency check failed" in str(began):
            raise cut_short(name) from error
        if isinstance(began, NotImplementedError):  # filelock's word for it
            raise KitError(
                f"the filesystem of {cache} has no locks, which huggingface_hub needs to fetch: set HF_HOME to a "
                "folder on another one, and copy it from there where the job needs it",
                ExitCode.RETRY,
            ) from error
        if not isinstance(began, OSError | ValueError):
            raise
        finding = hub_access.refused(kind, name, revision, began)
        if finding.cause == "node":
            raise KitError(f"{finding.detail}: {NETWORK} and {AGAIN}", ExitCode.RETRY) from error
        raise KitError(f"{finding.detail}: {finding.fix}") from error


def cut_short(what: str) -> KitError:
    """The sentence for a file that is not the one that was announced."""
    return KitError(f"{what} did not arrive whole: the hub or the network stopped. To go on, {AGAIN}", ExitCode.RETRY)


def _transfer_error(name: str, error: Exception) -> KitError:
    return KitError(
        f"hf_transfer, which HF_HUB_ENABLE_HF_TRANSFER asks for, could not fetch {name} ({type(error).__name__}): "
        "unset that variable, and start the same command again",
        ExitCode.CONFIG if isinstance(error, ValueError) else ExitCode.RETRY,
    )


def disk_error(folder: Path, error: OSError) -> KitError:
    """The sentence for a folder that cannot be made or written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(existing(folder)).free
        return KitError(
            f"the disk of {folder} is full ({shown_bytes(free)} free): free some, and {AGAIN}", ExitCode.RETRY
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return KitError(f"{folder}: this or something above it is a file: set HF_HOME to a folder")
    return KitError(
        f"{folder} cannot be written here ({error.strerror}): give this user the right to, mount the volume, or set "
        "HF_HOME to another folder, here and in the job",
        ExitCode.RETRY,
    )
