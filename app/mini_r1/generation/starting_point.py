"""What a run began with: the model before its first step, where it is still to be had."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """The untrained model, or why it is not known."""

    source: str | None
    """Directory or hub id of its weights; None where they cannot be had."""
    revision: str | None
    """Commit on the hub that the run began with."""
    words: str
    """What it is, or why it is not known, for people."""
