"""Complete or not: a directory counts only with its manifest, which names every file with its size and hash.

The manifest is written last, after every file has reached the disk, and the directory takes its final name only then.
Resume reads pickles (optimizer and random states), so what is not in the manifest of this very run is never loaded.
No torch: cluster scripts and reports look at checkpoints too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from mini_r1.run.files import sync_path

MANIFEST = "manifest.json"
UNFINISHED = ".manifest.json"
"""The manifest while it is being written."""
ASIDE = ".old-"
"""Before the name of a directory that is being replaced."""
GONE = ".gone-"
"""Before the name of a directory that is being deleted."""
BLOCK = 1 << 20
"""Bytes read at a time for a hash."""

Files = dict[str, dict[str, Any]]
"""`size` and `sha256` of each file, by its path inside the directory."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A complete checkpoint or snapshot."""

    path: Path
    step: int
    facts: dict[str, Any] = field(default_factory=dict)
    """What the manifest says besides: `run_id`; of a checkpoint `world_size`, `zero_stage` (0 is without DeepSpeed) and
    `evaluation_due`: a stop abandoned the evaluation of this step."""


def digests(folder: Path, names: Iterable[str]) -> Files:
    """Size and hash of files in `folder`, each of them on the disk when this returns."""
    files = {}
    for name in names:
        path = folder / name
        files[name] = {"size": path.stat().st_size, "sha256": _hash_and_sync(path)}
    return files


def seal(scratch: Path, final: Path, *, run_id: str, files: Files | None = None, **facts: Any) -> None:
    """Make a written directory complete and move it to its final name.

    Killed at any point, `complete` finds the old directory of that name or the new one, each of them whole.

    Args:
        scratch: the directory, on the same filesystem as `final`.
        final: replaced if it is there: a step saved again after a resume from an older checkpoint.
        run_id: of the run whose files these are.
        files: digests made already, by the ranks that wrote the files; None makes them here.
        facts: kept in the manifest as they are.

    Raises:
        OSError: a file is not in `files`, or one of them is not there: a rank's part is missing.
    """
    entries = sorted(scratch.rglob("*"))
    unsealed = {scratch / MANIFEST, scratch / UNFINISHED}
    names = {_name(path, scratch) for path in entries if _is_content(path) and path not in unsealed}
    if files is None:
        files = digests(scratch, sorted(names))
    for name in sorted(names ^ files.keys()):
        raise OSError(errno.EIO, "the parts of this save do not fit together", str(scratch / name))
    for folder in (path for path in entries if not _is_content(path)):
        sync_path(folder)
    manifest = scratch / UNFINISHED
    manifest.write_text(json.dumps({"run_id": run_id, **facts, "files": dict(sorted(files.items()))}, indent=2) + "\n")
    sync_path(manifest)
    manifest.rename(scratch / MANIFEST)
    sync_path(scratch)
    aside = final.with_name(f"{ASIDE}{final.name}")
    if final.exists():
        discard(aside)
        final.rename(aside)
    scratch.rename(final)
    sync_path(final.parent)
    sync_path(final.parent.parent)
    discard(aside)


def verify(saved: Saved, run_id: str) -> str | None:
    """None when the directory is this run's and every file is as its manifest says, else what is wrong."""
    if saved.facts.get("run_id", "") != run_id:
        return "it belongs to another run"
    manifest = _read(saved.path)
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
            fault = _differs(saved.path / name, expected)
        except OSError as error:  # a bad block: another checkpoint may be whole
            fault = f"cannot be read: {error.strerror}"
        if fault is not None:
            return f"{name} {fault}"
    return None


def complete(parent: Path) -> list[Saved]:
    """The `step-N` directories that have a manifest, newest first."""
    found: dict[int, Saved] = {}
    # The second kind is what `seal` was about to replace when it was killed between two moves.
    for path in [*parent.glob("step-*"), *parent.glob(f"{ASIDE}step-*")]:
        number = path.name.rpartition("step-")[2]
        manifest = _read(path)
        if number.isdecimal() and manifest is not None:
            facts = {key: value for key, value in manifest.items() if key != "files"}
            found.setdefault(int(number), Saved(path, int(number), facts))
    return [found[step] for step in sorted(found, reverse=True)]


def tidy(parent: Path) -> None:
    """Finish or delete what a killed save left; for the only writer, before its first save."""
    for saved in complete(parent):
        whole = parent / f"step-{saved.step}"
        if saved.path != whole:
            discard(whole)
            saved.path.rename(whole)
    for pattern in ("checkpoint-*", ".step-*", f"{ASIDE}*", f"{GONE}*"):
        for path in parent.glob(pattern):
            discard(path)


def discard(path: Path) -> None:
    """Delete a directory, if it is there. It loses its name first: half deleted, it never looks complete."""
    gone = path if path.name.startswith(GONE) else path.with_name(f"{GONE}{path.name}")
    if gone != path and path.exists():
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _read(path: Path) -> dict[str, Any] | None:
    """A directory's manifest; None when there is none that can be read."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        files = manifest["files"].values()
        sound = all(isinstance(entry["size"], int) and isinstance(entry["sha256"], str) for entry in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if sound else None


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _is_content(path: Path) -> bool:
    """Whether a manifest has to name it: files, and whatever else is no folder."""
    return path.is_symlink() or not path.is_dir()


def _differs(path: Path, expected: dict[str, Any]) -> str | None:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != expected["size"]:
        return f"has {size} bytes, not {expected['size']}"
    with path.open("rb") as handle:
        return None if _digest(handle) == expected["sha256"] else "does not have the hash of its manifest"


def _hash_and_sync(path: Path) -> str:
    with path.open("rb") as handle:
        digest = _digest(handle)
        os.fsync(handle.fileno())
    return digest


def _digest(handle: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := handle.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()
