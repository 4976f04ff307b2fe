"""One branch of a repository as it is to be: its files, and whether the hub has them already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_r1.console import shown_bytes


@dataclass(frozen=True, slots=True)
class File:
    """A file of a branch.

    Args:
        name: its path in the repository.
        content: where it is, or what it holds.
        sha256: of its content, where a manifest says it.
        of_snapshot: whether it comes out of a snapshot, whose manifest has to vouch for it before it is sent.
    """

    name: str
    content: Path | bytes
    sha256: str | None = None
    of_snapshot: bool = False

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @property
    def is_weights(self) -> bool:
        """Whether it holds tensors alone: nobody wrote text into it."""
        return self.name.endswith(".safetensors")

    def read(self) -> bytes:
        """All of it."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()

    def equals(self, remote: Any) -> bool:
        """Whether the hub's entry for this name (huggingface_hub's RepoSibling) has this content.

        Large files are told by their SHA-256, which the manifest has: they are not read again. Others by git's hash.
        """
        from huggingface_hub.utils.sha import git_hash, sha_fileobj

        if remote.size != self.size:
            return False
        if remote.lfs is None:
            return bool(remote.blob_id == git_hash(self.read()))
        if self.sha256 is not None:
            return bool(remote.lfs["sha256"] == self.sha256)
        if isinstance(self.content, bytes):
            import hashlib

            return bool(remote.lfs["sha256"] == hashlib.sha256(self.content).hexdigest())
        with self.content.open("rb") as handle:
            return bool(remote.lfs["sha256"] == sha_fileobj(handle).hex())


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch of the repository and what it is to hold.

    Args:
        name: `main` or `step-N`.
        step: of the snapshot in it.
        files: what it holds.
        left_out: names in the run directory of what is not sent because it is a link that leads out of it.
    """

    name: str
    step: int
    files: tuple[File, ...]
    left_out: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    def missing(self, remote: Mapping[str, Any]) -> list[File]:
        """The files that the hub does not have, or has otherwise; `remote` is its entries by name."""
        return [file for file in self.files if file.name not in remote or not file.equals(remote[file.name])]

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        files = [{"name": file.name, "bytes": file.size} for file in self.files]
        left_out = list(self.left_out)
        return {"branch": self.name, "step": self.step, "bytes": self.size, "files": files, "left_out": left_out}

    def line(self) -> str:
        """For people."""
        return f"{self.name}: the model of step {self.step}, {len(self.files)} files, {shown_bytes(self.size)}"

    def remarks(self) -> list[str]:
        """For people: what is not sent, and why."""
        return [f"left out: {name} is a link that leads out of the run directory" for name in self.left_out]


def names_holding(token: str, files: Iterable[File]) -> list[str]:
    """The files that the token stands in. Weights are not looked into: they are numbers, and large."""
    return [file.name for file in files if not file.is_weights and token.encode() in file.read()]
