"""Metrics between two lines of the log, and what of them a checkpoint has to keep.

With `logging_steps: 2` and `save_steps: 25` a save comes in the middle of a window: the metrics of its first half are
in no file yet. They go into the checkpoint, so that the curve of a resumed run is the curve of an uninterrupted one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mini_r1.run.run_dir import write_json

FILE = "window.json"
"""In a checkpoint, beside the files of the transformers Trainer."""

Values = dict[str, list[float]]


class Window:
    """Values of the steps since the last line of the log, by metric: one value a step, or none."""

    def __init__(self) -> None:
        self._values: Values = {}

    def add(self, name: str, value: float) -> None:
        """Add one step's value."""
        self._values.setdefault(name, []).append(value)

    def take(self) -> dict[str, float]:
        """The mean of each metric over the steps that have it; the window is empty afterwards."""
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        self._values = {}
        return means

    def save(self, folder: Path, watch: dict[str, Any]) -> None:
        """Write FILE: the open window, and what the watch remembers."""
        write_json(folder / FILE, {"window": self._values, "watch": watch})

    def load(self, folder: Path) -> dict[str, Any]:
        """Go on with the window that was open when the checkpoint was written; returns what the watch remembered."""
        saved = json.loads((folder / FILE).read_text())
        self._values = saved["window"]
        watch: dict[str, Any] = saved["watch"]
        return watch
