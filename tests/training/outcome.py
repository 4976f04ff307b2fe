"""The parts of a finished run that must not depend on how often it was stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mini_r1.run.manifest import verify
from mini_r1.run.reader import read_completions, read_metrics
from mini_r1.run.run_dir import RunDir

from tests.conftest import without_times

STATE = ("model.safetensors", "optimizer.pt", "scheduler.pt")
"""Files of a checkpoint, besides the random states of every rank."""


def outcome(run: RunDir) -> dict[str, Any]:
    """Return everything that must equal an uninterrupted run's, by name."""
    last, snapshot = run.complete_checkpoints()[0], run.complete_snapshots()[0]
    assert verify(last, run.run_id) is None
    assert verify(snapshot, run.run_id) is None
    names = [*STATE, *sorted(path.name for path in last.path.glob("rng_state*.pth"))]
    return {
        "metrics": without_times(read_metrics(run)),
        "completions": list(read_completions(run)),
        "samples": {path.name: path.read_text() for path in run.completion_samples.iterdir()},
        "state at the end": {name: hash_of(last.path / name) for name in names},
        "snapshot": hash_of(snapshot.path / "model.safetensors"),
        "watch": json.loads((last.path / "window.json").read_text())["watch"],
        "checkpoints": [saved.step for saved in run.complete_checkpoints()],
        "snapshots": [saved.step for saved in run.complete_snapshots()],
        "state": [run.read_state()[key] for key in ("state", "step", "exit_code")],
    }


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
