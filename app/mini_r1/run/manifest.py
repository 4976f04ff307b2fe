"""Complete checkpoints and snapshots: a directory counts only with its manifest, which has each file's size and hash.

The manifest is written last, after every file has reached the disk, and only then does the directory get its final
name. Resuming reads pickles (optimizer and random states), so a file that is not in the manifest of this very run is
never loaded. No torch.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from mini_r1.run.files import read_object, sync_path, write_json

MANIFEST = "manifest.json"
ASIDE = ".old-"  # prefix of a directory that is being replaced
GONE = ".gone-"  # prefix of a directory that is being deleted
BLOCK = 1 << 20  # bytes read at a time for a hash

Files = dict[str, dict[str, Any]]  # `size` and `sha256` of each file, by its path inside the directory


@dataclass(frozen=True, slots=True)
class Saved:
    """A complete checkpoint or snapshot."""

    path: Path
    step: int
    facts: dict[str, Any] = field(default_factory=dict)
    """The rest of the manifest: `run_id`; of a checkpoint `world_size`, `zero_stage` (0 is without DeepSpeed) and
    `evaluation_due`: a stop interrupted the evaluation of this step."""


def digests(folder: Path, names: Iterable[str]) -> Files:
    """Return size and hash of files in `folder`, after waiting until they are on the disk."""
    files = {}
    for name in names:
        with (folder / name).open("rb") as handle:
            files[name] = {"size": os.fstat(handle.fileno()).st_size, "sha256": _digest(handle)}
            os.fsync(handle.fileno())
    return files


def seal(scratch: Path, final: Path, *, run_id: str, files: Files | None = None, **facts: Any) -> None:
    """Write the manifest of a directory and move the directory to its final name.

    After a kill at any point `complete` finds the old directory of that name or the new one, and it is whole. `files`
    has digests from the ranks that wrote the files; an OSError if they and the directory differ: a part is missing.
    """
    entries = sorted(scratch.rglob("*"))
    names = {_name(path, scratch) for path in entries if _is_content(path)} - {MANIFEST}
    files = digests(scratch, sorted(names)) if files is None else files
    for name in sorted(names ^ files.keys()):
        raise OSError(errno.EIO, "the parts of this save do not fit together", str(scratch / name))
    for folder in (path for path in entries if not _is_content(path)):
        sync_path(folder)
    write_json(scratch / MANIFEST, {"run_id": run_id, **facts, "files": dict(sorted(files.items()))})
    aside = final.with_name(f"{ASIDE}{final.name}")
    if final.exists():  # the step was saved before, and the run resumed from an older checkpoint
        discard(aside)
        final.rename(aside)
    scratch.rename(final)
    sync_path(final.parent)
    sync_path(final.parent.parent)
    discard(aside)


def verify(saved: Saved, run_id: str) -> str | None:
    """Return what is wrong with a directory; None if it is this run's and its files are as in its manifest."""
    if saved.facts.get("run_id", "") != run_id:
        return "it belongs to another run"
    manifest = _read_manifest(saved.path)
    if manifest is None:
        return "its manifest cannot be read"
    files: Files = manifest["files"]
    for path in sorted(saved.path.rglob("*")):
        name = _name(path, saved.path)
        if path.is_symlink():
            return f"{name} is a link"
        if _is_content(path) and name not in files and name != MANIFEST:
            return f"{name} is not in its manifest"
    for name, expected in files.items():
        plain = PurePosixPath(name)
        if plain.is_absolute() or ".." in plain.parts or plain.as_posix() != name:
            return f"its manifest names {name!r}, which is no path inside"
        try:
            difference = _compare(saved.path / name, expected)
        except OSError as error:  # a bad block: another checkpoint may be whole
            difference = f"cannot be read: {error.strerror}"
        if difference is not None:
            return f"{name} {difference}"
    return None


def complete(parent: Path) -> list[Saved]:
    """Return the `step-N` directories that have a manifest, newest first."""
    found: dict[int, Saved] = {}
    # `seal` leaves the second kind when it is killed between its two moves.
    for path in [*parent.glob("step-*"), *parent.glob(f"{ASIDE}step-*")]:
        number = path.name.rpartition("step-")[2]
        manifest = _read_manifest(path)
        if number.isdecimal() and manifest is not None:
            facts = {key: value for key, value in manifest.items() if key != "files"}
            found.setdefault(int(number), Saved(path, int(number), facts))
    return [found[step] for step in sorted(found, reverse=True)]


def tidy(parent: Path) -> None:
    """Finish or delete what a killed save left; only for the one writer, before its first save."""
    for saved in complete(parent):
        whole = parent / f"step-{saved.step}"
        if saved.path != whole:
            discard(whole)
            saved.path.rename(whole)
    for pattern in ("checkpoint-*", ".step-*", f"{ASIDE}*", f"{GONE}*"):
        for path in parent.glob(pattern):
            discard(path)


def discard(path: Path) -> None:
    """Delete a directory if it exists. It is renamed first, so that it never looks complete while it is deleted."""
    gone = path if path.name.startswith(GONE) else path.with_name(f"{GONE}{path.name}")
    if gone != path and path.exists():
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _read_manifest(path: Path) -> dict[str, Any] | None:
    manifest = read_object(path / MANIFEST)
    try:
        entries = manifest["files"].values()
        valid = all(isinstance(entry["size"], int) and isinstance(entry["sha256"], str) for entry in entries)
    except (KeyError, TypeError, AttributeError):
        return None
    return manifest if valid else None


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _is_content(path: Path) -> bool:
    """Return whether a manifest has to name it: a file, or anything else that is not a folder."""
    return path.is_symlink() or not path.is_dir()


def _compare(path: Path, expected: dict[str, Any]) -> str | None:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != expected["size"]:
        return f"has {size} bytes, not {expected['size']}"
    with path.open("rb") as handle:
        return None if _digest(handle) == expected["sha256"] else "does not have the hash of its manifest"


def _digest(handle: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := handle.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()
