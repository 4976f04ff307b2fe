"""The logs of the steps before a checkpoint: on the disk before its manifest is, and checked by a resume.

Metrics, completions and the two text files of samples. TensorBoard's events repeat the metrics and are left out.
"""

from __future__ import annotations

import os
from pathlib import Path

from mini_r1.run.manifest import Saved, sync_path
from mini_r1.run.run_dir import RunDir
from mini_r1.values import mapping

LOGS = "logs"
"""Fact of a checkpoint's manifest: bytes of each log when it was saved, by the path in the run directory."""


def sync_logs(run: RunDir) -> dict[str, int]:
    """Wait until the logs are on the disk, and return their sizes in bytes.

    Logs of earlier attempts are among them: one that was killed left rows that no checkpoint waited for.
    """
    logs = [path for name in ("metrics.jsonl", "completions.jsonl") for path in run.attempts.glob(f"*/{name}")]
    logs += _samples(run)
    for path in [*logs, *sorted({path.parent for path in logs}), run.attempts, run.path]:
        sync_path(path)
    return {path.relative_to(run.path).as_posix(): path.stat().st_size for path in sorted(logs)}


def lost_logs(run: RunDir, saved: Saved) -> str | None:
    """Return a warning that logs are shorter than when the checkpoint was saved, None if they are not."""
    lost = []
    for name, size in mapping(saved.facts.get(LOGS)).items():
        path = run.path / name
        found = path.stat().st_size if path.is_file() else 0
        if isinstance(size, int) and found < size:
            lost.append(f"{name} has {found:,} of {size:,} bytes")
    if not lost:
        return None
    return (
        f"logs of steps up to {saved.step} are incomplete, because a file was changed or its disk lost data: "
        f"{', '.join(lost)}. Training continues without them"
    )


def cut_samples(run: RunDir, resume: Saved | None) -> None:
    """Cut the text files of samples to where they were at the checkpoint: the steps after it are taken again."""
    sizes = {} if resume is None else mapping(resume.facts.get(LOGS))
    for path in _samples(run):
        kept = 0 if resume is None else sizes.get(path.relative_to(run.path).as_posix())
        if isinstance(kept, int) and kept < path.stat().st_size:
            os.truncate(path, kept)


def _samples(run: RunDir) -> list[Path]:
    return sorted(run.completion_samples.glob("*completion_samples.txt"))
