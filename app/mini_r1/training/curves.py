"""TensorBoard: the scalars of metrics.jsonl, and some completions as text."""

import itertools
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import writer
from transformers.integrations import TensorBoardCallback

from mini_r1.console import printable
from mini_r1.run.files import AppendFile
from mini_r1.run.run_dir import RunDir

TEXTS = 50
"""Steps of a run that show completions: the event files stay below some megabytes."""
OF_EACH = 2
"""Right completions of a step that are shown, and wrong ones."""
SHOWN_CHARACTERS = 4_000
"""Characters of a completion; completions.jsonl has all characters."""
_NUMBERS = itertools.count()
"""Part of an event file's name: one process may write several."""


class EventFile:
    """A file of TensorBoard events, with the methods of tensorboard 2.18's EventFileWriter.

    That one writes in a thread, which prints a traceback when the disk is full. This one writes at once.
    """

    def __init__(self, folder: str, *unused: Any) -> None:
        self._folder = folder
        Path(folder).mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time():010.0f}.{platform.node()}.{os.getpid()}.{next(_NUMBERS)}"
        self._file = AppendFile(Path(folder) / name)
        self._records = RecordWriter(self._file)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def get_logdir(self) -> str:
        return self._folder

    def add_event(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Do nothing: every event is written at once."""

    def close(self) -> None:
        self._file.close()


class Curves(TensorBoardCallback):
    """Writes TensorBoard events, for rank 0."""

    def __init__(self, run: RunDir, start: int, steps: int) -> None:
        # A purge hides later steps of earlier attempts: without it a resumed curve runs back and forth.
        with patch.object(writer, "EventFileWriter", EventFile):
            super().__init__(writer.SummaryWriter(str(run.tensorboard), purge_step=start + 1 if start else None))
        self._every = max(1, steps // TEXTS)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Do nothing: transformers would write its arguments and the model's configuration, with this machine's
        folders, into files that are published."""

    def add_completions(self, step: int, records: Sequence[dict[str, Any]]) -> None:
        """Write some completions of the first step and of TEXTS others."""
        if self.tb_writer is None or (step > 1 and step % self._every):
            return
        for name, right in (("right", 1.0), ("wrong", 0.0)):
            shown = [record for record in records if float(record["rewards"]["equation"]) == right][:OF_EACH]
            for number, record in enumerate(shown, start=1):
                self.tb_writer.add_text(f"completions/{name} {number}", as_code(_entry(record)), step)


def as_code(text: str) -> str:
    """Return Markdown that TensorBoard renders as the text: an indented block, which no line of the text can end."""
    return "\n".join(f"    {line}" for line in printable(text).expandtabs(4).split("\n"))


def _entry(record: dict[str, Any]) -> str:
    text = record["completion"]
    cut = f"\n[{len(text) - SHOWN_CHARACTERS:,} more characters]" if len(text) > SHOWN_CHARACTERS else ""
    return f"{record['nums']} -> {record['target']}: {record['reason']}\n<think>{text[:SHOWN_CHARACTERS]}{cut}"
