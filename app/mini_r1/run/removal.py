"""Delete runs: `mini-r1 runs rm`. No torch."""

import shutil
from pathlib import Path

from mini_r1.errors import KitError
from mini_r1.run.files import folder_bytes, lock_file
from mini_r1.run.health import check_health
from mini_r1.run.manifest import GONE
from mini_r1.run.run_dir import RunDir, open_run


def check_removable(path: Path, now: float) -> Path:
    """Return the real path of a run that may be deleted; a KitError if it is no run, a link, or in progress."""
    if path.is_symlink():
        raise KitError(f"{path} is a link to {path.readlink()}: name that directory, or delete the link with rm")
    run = open_run(path.resolve(), begun=False)
    if not (run.state_file.is_file() or run.attempts.is_dir()):  # any folder may have a recipe.yaml
        raise KitError(f"{path} holds no run (no state.json or attempts in it)")
    if inner := sorted([*run.path.glob("*/state.json"), *run.path.glob("*/*/state.json")]):
        raise KitError(f"{path} holds other runs, such as {inner[0].parent}: delete them first")
    health = check_health(run.path, now)
    if health.state == "running" or not _is_unlocked(run):
        raise KitError(f"{health.sentence}: stop it before you delete it")
    return run.path


def remove_run(path: Path) -> int:
    """Delete a run that `check_removable` returned; return the bytes freed. Links are deleted, not what they name."""
    size = folder_bytes(path)
    gone = path.rename(path.with_name(GONE + path.name))  # half of it must not look like a run
    shutil.rmtree(gone)
    return size


def _is_unlocked(run: RunDir) -> bool:
    if run.lock_path.is_symlink() or not run.lock_path.is_file():
        return True
    with run.lock_path.open() as handle:
        return lock_file(handle)
