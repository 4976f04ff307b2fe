"""One process at a time measures a step of a run: several calls on one run share its steps, and repeat none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mini_r1.disk_errors import disk_error
from mini_r1.errors import KitError
from mini_r1.run.files import lock_file
from mini_r1.run.run_dir import RunDir


@contextlib.contextmanager
def claimed(result: Path | None, *, wait: bool) -> Iterator[bool]:
    """Hold a result's place while it is measured; what is given says whether it is held.

    The claim is a lock on a file beside the result, so it goes with the process, however that ends. Where a filesystem
    has no locks everybody holds everything: then a step may be measured twice, and each of its files is still whole.

    Args:
        result: its file; None has no place, and nobody to share it with.
        wait: until another process has let go of it.
    """
    if result is None:
        yield True
        return
    lock = result.with_name(f".{result.stem}.lock")
    with lock.open("w") as handle:
        held = lock_file(handle, wait=wait)
        try:
            yield held
        finally:
            if held:
                lock.unlink(missing_ok=True)


def refuse_unwritable(run: RunDir) -> None:
    """What cannot be written is said before a model is loaded; makes the folder of results.

    Raises:
        KitError: it cannot be made, or not be written.
    """
    fault = None
    try:
        run.evaluation.mkdir(exist_ok=True)
    except OSError as error:
        full = disk_error(error)
        if full is not None:
            raise full from error
        fault = error.strerror
    if fault is None and not os.access(run.evaluation, os.W_OK):
        fault = "not ours to write, or a read-only filesystem"
    if fault is not None:
        raise KitError(
            f"cannot write {run.evaluation}: {fault}. Give this user (uid {os.getuid()}) the right to write there, or "
            f"measure a snapshot as a model, which writes nothing: mini-r1 evaluate {run.snapshots}/step-N "
            f"--problems {run.held_out_file}"
        )
