"""What a run says of itself: run.json, recipe.yaml, the held-out problems, the log file, the first lines printed."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

import mini_r1
from mini_r1.errors import KitError
from mini_r1.generation.model import describe, device
from mini_r1.machine.provenance import code_revision, utc_now, versions
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import dump_recipe
from mini_r1.run.run_dir import RunDir, write_json, write_text
from mini_r1.tasks.countdown import task

logger = logging.getLogger(__name__)

RECORDED_VERSIONS = (
    "torch", "trl", "transformers", "accelerate", "datasets", "tokenizers", "peft", "deepspeed", "vllm", "numpy",
)  # fmt: skip


def commits(run: RunDir) -> tuple[str | None, str | None]:
    """Hub commits of data and model that a run with steps behind it began with; None where there is none."""
    record = run.read_record()
    if not record or not run.has_steps():
        return None, None
    # The last attempt's: an earlier one may have failed before its first checkpoint, under another recipe.
    return record["data"]["revision"], record["attempts"][-1]["model"]["revision"]


def refuse_other_data(run: RunDir, data: task.TaskData) -> None:
    """A run with steps behind it goes on with the very data it began with.

    Raises:
        KitError: the data is another now.
    """
    before = run.read_record().get("data")
    if before and run.has_steps() and before != json.loads(json.dumps(data.provenance)):
        raise KitError(f"the data of {run.path} has changed since the run began: then {before}, now {data.provenance}")


def write(
    run: RunDir,
    recipe: Recipe,
    data: task.TaskData,
    model: Any,
    command: Sequence[str],
    attempt: int,
    workers: int,
    prompts_per_step: int,
    deepspeed: str | None,
) -> None:
    """Write recipe.yaml, which makes the directory a run, run.json with this attempt added, the held-out problems."""
    write_text(run.recipe_file, dump_recipe(recipe))
    this_attempt = {
        "attempt": attempt,
        "started": utc_now(),
        "command": list(command),
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": versions(RECORDED_VERSIONS),
        "kit": mini_r1.__version__,
        "code_revision": code_revision(),
        "devices": _devices(),
        "workers": workers,
        "deepspeed": deepspeed,
        "vllm_device": os.environ.get("MINI_R1_VLLM_DEVICE"),
        "model": describe(model),
    }
    before = run.read_record()
    record = {
        "run_id": before.get("run_id") or uuid4().hex,
        "prompts_per_step": prompts_per_step,
        "model_name_or_path": recipe.model_name_or_path,
        "data": data.provenance,
        "seed": recipe.seed,
        "dataset_seed": recipe.dataset_seed,
        "attempts": [*before.get("attempts", []), this_attempt],
    }
    write_json(run.run_file, record)
    run.write_held_out([{"nums": list(p.nums), "target": p.target} for p in data.held_out])


def prompts_per_step(run: RunDir, recipe: Recipe, workers: int) -> int:
    """Prompts of an optimizer step: what the run began with, whatever the number of workers is now."""
    if run.has_steps() and "prompts_per_step" in run.read_record():
        return int(run.read_record()["prompts_per_step"])
    return recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * workers


def announce(
    console: Console,
    recipe: Recipe,
    run: RunDir,
    data: task.TaskData,
    model: Any,
    steps: int,
    start: int,
    prompts: int,
) -> None:
    """What is about to run, in three lines."""
    facts = describe(model)
    console.print(
        f"{recipe.model_name_or_path}: {facts['parameters']:,} parameters, {facts['dtype']}, "
        f"{facts['attention']} attention\n"
        f"{len(data.train):,} training problems, {len(data.held_out):,} held out ({data.provenance['source']})\n"
        f"{steps} optimizer steps of {prompts} prompts x {recipe.num_generations} generations"
        + (f", going on after step {start}" if start else "")
        + f" -> {run.path}",
        markup=False,  # names and paths may hold brackets
    )


def _devices() -> list[str]:
    if device().type == "cpu":
        return [f"cpu x {os.cpu_count()} ({torch.get_num_threads()} threads)"]
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


class LogFile(logging.FileHandler):
    """A log file that loses lines on a full disk, silently: what a run can't do without reports the disk itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Report an error other than the disk's; the lines are kept and written with a later one, if there is room."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        """Close the file; the last error must not replace the one that ended the run."""
        with suppress(OSError):
            super().close()


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Log this rank's messages to a file meanwhile; the terminal shows progress and errors only."""
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    handler = LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        logger.info("python %s, argv %s", sys.version.split()[0], sys.argv)
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
