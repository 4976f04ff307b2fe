"""The files of completions, and the logs of the steps before a checkpoint: synced before its manifest is written.

The logs are metrics, completions and the two text files of samples. TensorBoard's events repeat the metrics and are
left out.
"""

import os
from pathlib import Path
from typing import Any

from mini_r1.console import printable
from mini_r1.run.files import AppendFile, sync_path
from mini_r1.run.manifest import Saved
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.answer_tags import prefill_of
from mini_r1.tasks.registry import is_right, task_of_row
from mini_r1.values import mapping

LOGS = "logs"
"""Key of a checkpoint's manifest: bytes of each log when it was saved, by the path in the run directory."""
ONE_IN = 10  # one in this many completions goes to the text files; the original drew a tenth of them


class CompletionLog:
    """attempts/N/completions.jsonl with all completions, and the original's two text files with some of them."""

    def __init__(self, attempt: Path, samples: Path) -> None:
        samples.mkdir(parents=True, exist_ok=True)
        self._lines = AppendFile(attempt / "completions.jsonl")
        self._all = AppendFile(samples / "completion_samples.txt")
        self._success = AppendFile(samples / "success_completion_samples.txt")

    def write(self, step: int, records: list[dict[str, Any]]) -> None:
        self._lines.write_rows(*records)
        # Spread over the step's prompts, and the same again after a resume.
        shown = [record for i, record in enumerate(records) if (i + step) % ONE_IN == 0]
        self._all.write("".join(map(_entry, shown)).encode())
        self._success.write("".join(_entry(record) for record in shown if is_right(record)).encode())

    def close(self) -> None:
        for file in (self._lines, self._all, self._success):
            file.close()


def _entry(record: dict[str, Any]) -> str:
    rewards = " ".join(f"{name}={value:g}" for name, value in record["rewards"].items())
    columns = task_of_row(record).columns.items()
    problem = " | ".join(f"{label} {printable(str(record[column]))}" for column, label in columns)
    head = f"step {record['step']} | {problem} | {rewards}"
    shown = printable(prefill_of(record) + record["completion"])
    return f"\n\n==============\n{head} | {printable(record['reason'])}\n{shown}\n"


def sync_logs(run: RunDir) -> dict[str, int]:
    """Wait until the logs are on the disk, those of killed attempts among them, and return their sizes in bytes."""
    logs = [path for name in ("metrics.jsonl", "completions.jsonl") for path in run.attempts.glob(f"*/{name}")]
    logs += _samples(run)
    for path in [*logs, *sorted({path.parent for path in logs}), run.attempts, run.path]:
        sync_path(path)
    return {path.relative_to(run.path).as_posix(): path.stat().st_size for path in sorted(logs)}


def describe_lost_logs(run: RunDir, saved: Saved) -> str | None:
    """Return a warning that logs are shorter than when the checkpoint was saved, None if they are not."""
    lost = []
    for name, size in mapping(saved.facts.get(LOGS)).items():
        path = run.path / name
        found = path.stat().st_size if path.is_file() else 0
        if isinstance(size, int) and found < size:
            lost.append(f"{name} has {found:,} of {size:,} bytes")
    cause = "because a file was changed or its disk lost data"
    sentence = f"logs of steps up to {saved.step} are incomplete, {cause}: {', '.join(lost)}"
    return f"{sentence}. Training continues without them" if lost else None


def cut_samples(run: RunDir, resume: Saved | None) -> None:
    """Cut the text files of samples to their size at the checkpoint: the steps after it are repeated."""
    sizes = mapping(resume.facts.get(LOGS)) if resume else {}
    for path in _samples(run):
        kept = sizes.get(path.relative_to(run.path).as_posix()) if resume else 0
        if isinstance(kept, int) and kept < path.stat().st_size:
            os.truncate(path, kept)


def _samples(run: RunDir) -> list[Path]:
    return sorted(run.completion_samples.glob("*completion_samples.txt"))
