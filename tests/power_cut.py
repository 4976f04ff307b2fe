"""What a power cut leaves of a folder: what was synced, and nothing else.

A model of a disk that keeps no promise it did not make: a file has the content of its last fsync, and is empty without
one; a folder has the names of its last fsync, each for the file that it meant then.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

Content = bytes | dict[str, int]
"""Content of a file, or of a folder: the inode of each name."""


@dataclass
class Recording:
    """The fsyncs of this process, in their order.

    Args:
        folder: which is there after a power cut; only what is below it matters.
    """

    folder: Path
    synced: list[tuple[int, Content]] = field(default_factory=list)
    """Inode and content at each fsync."""
    promises: list[tuple[int, int]] = field(default_factory=list)
    """How many fsyncs there had been when the checkpoint of a step was called complete, and that step."""
    _held: dict[int, int] = field(default_factory=dict)
    """A descriptor of each inode seen, so that no other file gets its number."""

    def promise(self, step: int) -> None:
        """Note that the checkpoint of this step is complete."""
        self.promises.append((len(self.synced), step))

    def promised(self, count: int) -> int:
        """Return the newest step that was promised before the `count`-th fsync, 0 if there is none."""
        return max((step for before, step in self.promises if before <= count), default=0)

    def cut(self, count: int, to: Path) -> None:
        """Write to a new folder what is left if the power goes after the first `count` fsyncs."""
        left = dict(self.synced[:count])
        self._restore(os.stat(self.folder).st_ino, left, to)

    def _restore(self, inode: int, left: dict[int, Content], to: Path) -> None:
        content = left.get(inode, b"")
        if inode not in self._held or not stat.S_ISDIR(os.fstat(self._held[inode]).st_mode):
            assert isinstance(content, bytes)
            to.write_bytes(content)
            return
        to.mkdir()
        for name, child in dict(content).items() if content else ():
            self._restore(child, left, to / name)

    def note(self, descriptor: int) -> None:
        """Take the place of os.fsync."""
        path = Path(f"/proc/self/fd/{descriptor}")
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self.synced.append((self._hold(path), path.read_bytes()))
            return
        names = {entry.name: self._hold(Path(entry.path)) for entry in os.scandir(path.resolve())}
        self.synced.append((self._hold(path), names))

    def _hold(self, path: Path) -> int:
        inode = os.stat(path).st_ino
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_PATH)
        return inode

    def close(self) -> None:
        """Let the inodes go."""
        for descriptor in self._held.values():
            os.close(descriptor)


@contextmanager
def recorded_syncs(folder: Path) -> Iterator[Recording]:
    """Record every os.fsync of this process, in place of doing it."""
    recording = Recording(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", recording.note)
        recording._hold(folder)
        yield recording
