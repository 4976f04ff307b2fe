"""Metrics of completions, and those between two lines of the log. docs/metrics.md explains them.

With `logging_steps: 2` and `save_steps: 25` a save comes in the middle of a window: the metrics of its first half are
in no file yet. They go into the checkpoint, so that the curve of a resumed run is the curve of an uninterrupted one.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mini_r1.run.files import write_json
from mini_r1.tasks.registry import AnyTask

WINDOW_FILE = "window.json"
"""In a checkpoint, next to the files of the transformers Trainer."""


def summary(task: AnyTask, records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return means over rows of completions.jsonl, at least one, under TRL's names where it has one."""
    return {
        "reward": _mean(r["reward"] for r in records),
        "success": _mean(r["rewards"][task.success] for r in records),
        "completion_length": _mean(r["tokens"] for r in records),
        "frac_truncated": _mean(r["truncated"] for r in records),
        "reflections": _mean(r["reflections"] for r in records),
        **{f"rewards/{name}": _mean(r["rewards"][name] for r in records) for name in records[0]["rewards"]},
        **task.metrics(records),
    }


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


class Window:
    """Values of the steps since the last line of the log, by metric: at most one value a step."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)

    def take(self) -> dict[str, float]:
        """Return the mean of each metric over the steps that have it, and empty the window."""
        means = {name: _mean(values) for name, values in self._values.items()}
        self._values = {}
        return means

    def save(self, folder: Path, watch: dict[str, Any]) -> None:
        """Write the open window and the state of the watch into a checkpoint."""
        write_json(folder / WINDOW_FILE, {"window": self._values, "watch": watch})

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore the window from a checkpoint; return the state of the watch."""
        saved: dict[str, Any] = json.loads((folder / WINDOW_FILE).read_text())
        self._values = saved["window"]
        return saved["watch"]  # type: ignore[no-any-return]
