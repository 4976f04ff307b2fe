"""TensorBoard: the scalars of metrics.jsonl in groups, held-out results, hyperparameters, and completions as text."""

import itertools
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import writer
from torch.utils.tensorboard.summary import hparams
from transformers.integrations import TensorBoardCallback

from mini_r1.console import printable
from mini_r1.recipe.fields import Recipe
from mini_r1.run.files import AppendFile
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.answer_tags import prefill_of
from mini_r1.tasks.registry import is_right, task_of_row
from mini_r1.values import mapping, number

TEXTS = 50
"""Steps of a run that show completions: the event files stay below some megabytes."""
OF_EACH = 2
"""Right completions of a step that are shown, and wrong ones."""
SHOWN_CHARACTERS = 4_000
"""Characters of a completion; completions.jsonl has all characters."""
GROUPS = {
    "loss": ("loss", "kl", "entropy", "logp_gap", "grad_norm", "learning_rate"),
    "rewards": ("reward", "reward_std"),
    "rollout": ("success", "completion_length", "frac_", "tries", "reflections"),
    "time": ("epoch", "tokens_per_second"),
}
"""Beginnings of the figures of each group. TensorBoard folds what has the same word before the first slash."""
COMPARED = ("rollout/success", "eval/success", "held_out/sampled", "held_out/greedy")
"""Scalars in the table of hyperparameters."""
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

    def __init__(self, run: RunDir, start: int, recipe: Recipe | None = None) -> None:
        # A purge hides later steps of earlier attempts: without it a resumed curve runs back and forth.
        super().__init__(_open_events(run, purge_step=start + 1 if start else None))
        if recipe is not None:
            for summary in hparams(hyperparameters(recipe), dict.fromkeys(COMPARED, 0.0)):
                self.tb_writer._get_file_writer().add_summary(summary)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Do nothing: transformers would write its arguments and the model's configuration, with this machine's
        folders, into files that are published."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write the scalars of a row."""
        for name, value in (logs or {}).items():
            if self.tb_writer is not None and isinstance(value, int | float):
                self.tb_writer.add_scalar(tag(name), value, state.global_step)

    def add_completions(self, step: int, shown: Mapping[str, str]) -> None:
        """Write completions as `shown_completions` returns them."""
        for name, text in shown.items():
            if self.tb_writer is not None:
                self.tb_writer.add_text(f"completions/{name}", as_code(text), step)


def shown_completions(step: int, steps: int, records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return some completions of a step by names such as `right 1`; none but for the first step and TEXTS others."""
    if step > 1 and step % max(1, steps // TEXTS):
        return {}
    shown: dict[str, str] = {}
    for name, right in (("right", True), ("wrong", False)):
        chosen = [record for record in records if is_right(record) is right][:OF_EACH]
        shown |= {f"{name} {index}": _entry(record) for index, record in enumerate(chosen, start=1)}
    return shown


def write_held_out(run: RunDir, evaluations: Iterable[Mapping[str, Any]]) -> None:
    """Add the figures of evaluations of a run to its events."""
    with closing(_open_events(run)) as events:
        for result in evaluations:
            for name, value in held_out_figures(result).items():
                events.add_scalar(name, value, result["provenance"]["step"])


def held_out_figures(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of an evaluation that are known, by names such as held_out/sampled."""
    figures = {name: result.get(name) for name in ("greedy", "sampled", "tries", "format")}
    figures |= {f"pass@{k}": mapping(v).get("value") for k, v in mapping(result.get("pass_at_k")).items()}
    return {f"held_out/{name}": known for name, value in figures.items() if (known := number(value)) is not None}


def _open_events(run: RunDir, purge_step: int | None = None) -> writer.SummaryWriter:
    with patch.object(writer, "EventFileWriter", EventFile):
        return writer.SummaryWriter(str(run.tensorboard), purge_step=purge_step)


def tag(figure: str) -> str:
    """Return TensorBoard's name of a figure, such as rollout/success."""
    if figure.startswith("eval_"):
        return figure.replace("_", "/", 1)
    if figure.startswith(("rewards/", "time/", "sync/", "off_policy/")):
        return figure
    found = (group for group, names in GROUPS.items() if figure.startswith(names))
    return f"{next(found, 'train')}/{figure}"


def hyperparameters(recipe: Recipe) -> dict[str, bool | float | str]:
    """Return the numbers, switches and choices of a recipe, and its model; no paths, because events are published."""
    kept = {key: value for key, value in recipe.model_dump().items() if isinstance(value, bool | int | float)}
    choices = {key: getattr(recipe, key) for key in ("scoring", "optim", "lr_scheduler_type")}
    names = {"prompt_style": Path(recipe.prompt_style).name, "model": Path(recipe.model_name_or_path).name}
    return {**kept, **choices, **names}


def as_code(text: str) -> str:
    """Return Markdown that TensorBoard renders as the text: an indented block, which no line of the text can end."""
    return "\n".join(f"    {line}" for line in printable(text).expandtabs(4).split("\n"))


def _entry(record: dict[str, Any]) -> str:
    text = record["completion"]
    cut = f"\n[{len(text) - SHOWN_CHARACTERS:,} more characters]" if len(text) > SHOWN_CHARACTERS else ""
    shown = f"{prefill_of(record)}{text[:SHOWN_CHARACTERS]}{cut}"
    return f"{task_of_row(record).describe(record)}: {record['reason']}\n{shown}"
