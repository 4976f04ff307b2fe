"""The live line of a training run; without a terminal, a plain line for each logged step."""

import time

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeRemainingColumn

LOSS_NOTE = (
    "The loss prints as 0.0000 early on, as expected: its value is beta times the KL, the gradient is real. "
    "Watch reward and success."
)
SHOWN = (
    ("reward", "reward", ".3f"),
    ("success", "success", ".1%"),
    ("completion_length", "length", ".1f"),
    ("loss", "loss", ".4f"),
    ("eval_success", "held-out success", ".1%"),
)
"""Metric, its label on the line, and its format."""


class TrainingLine:
    """Progress of training: step, reward, success, length, time left."""

    def __init__(self, console: Console, total: int, start: int) -> None:
        self._console = console
        self._total = total
        self._start = start
        self._started = time.monotonic()
        self._progress: Progress | None = None
        console.print(LOSS_NOTE, style="dim")
        if console.is_terminal:
            self._progress = Progress(  # no bar: the columns fill a terminal of 80
                TextColumn("step {task.completed}/{task.total}"),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                TextColumn("left"),
                console=console,
            )
            self._task = self._progress.add_task("train", total=total, completed=start, status="rollout")
            self._progress.start()

    def begin(self) -> None:
        """Start the clock: loading is no part of a step's time."""
        self._started = time.monotonic()

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Show a logged step or an evaluation."""
        status = "  ".join(f"{label} {metrics[key]:{form}}" for key, label, form in SHOWN if key in metrics)
        if "eval_success" in metrics:
            self._console.print(f"step {step}/{self._total}  {status} of {metrics['eval_problems']} problems")
            return
        if self._progress is not None:
            self._progress.update(self._task, completed=step, status=status)
            return
        done = step - self._start
        seconds = (time.monotonic() - self._started) / max(1, done)
        left = int(seconds * (self._total - step))
        time_left = f"{left // 60}:{left % 60:02d} left"
        self._console.print(f"step {step}/{self._total}  {status}  {seconds:.1f} s/step  {time_left}")

    def warn(self, sentence: str) -> None:
        self._console.print(f"warning: {sentence}", style="yellow", markup=False)

    def close(self) -> None:
        """Restore the terminal."""
        if self._progress is not None:
            self._progress.stop()
