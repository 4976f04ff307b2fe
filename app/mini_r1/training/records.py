"""What a start records about a run: run.json, recipe.yaml, held-out problems, log file, the first lines printed."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from transformers.utils import logging as transformers_logging

import mini_r1
from mini_r1.errors import KitError
from mini_r1.generation.model import describe, device
from mini_r1.machine.devices import given_devices
from mini_r1.machine.lifeline import VLLM_DEVICE, shares_vllm_device
from mini_r1.machine.nvidia import read_driver
from mini_r1.machine.provenance import code_revision, utc_now, versions
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.named_files import FOLDER, digests, named_files, with_copies
from mini_r1.recipe.recipe_file import dump_recipe
from mini_r1.run.files import make_folder, replacing, write_json, write_jsonl, write_text
from mini_r1.run.reader import count_vllm_processes
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.registry import find_task
from mini_r1.tasks.task_data import TaskData

if TYPE_CHECKING:
    from mini_r1.training.attempt import Inputs, WorkerContext

logger = logging.getLogger(__name__)

RECORDED_VERSIONS = (
    "torch", "trl", "transformers", "accelerate", "datasets", "tokenizers", "peft", "deepspeed", "vllm", "numpy",
)  # fmt: skip


def commits(run: RunDir) -> tuple[str | None, str | None]:
    """Return the hub commits of data and model that a run with a checkpoint began with; None if there is none."""
    record = run.read_record()
    if not record or not run.complete_checkpoints():
        return None, None
    # The last attempt's: an earlier one may have failed before its first checkpoint, under another recipe.
    return record["data"]["revision"], record["attempts"][-1]["model"]["revision"]


def refuse_other_data(run: RunDir, data: TaskData[Any]) -> None:
    """Raise KitError if a run with a checkpoint would be resumed on other data."""
    before = run.read_record().get("data")
    if before and run.complete_checkpoints() and before != json.loads(json.dumps(data.provenance)):
        raise KitError(f"the data of {run.path} has changed since the run began: then {before}, now {data.provenance}")


def write(context: WorkerContext, inputs: Inputs, attempt: int) -> None:
    """Write recipe.yaml, which makes the directory a run, run.json with this attempt added, the held-out problems."""
    run, recipe, deepspeed = context.run, context.recipe, context.deepspeed
    _keep_files(recipe, run.path / FOLDER)
    write_text(run.recipe_file, dump_recipe(with_copies(recipe)))
    on_cpu = device().type == "cpu"
    cpu = f"cpu x {os.cpu_count()} ({torch.get_num_threads()} threads)"
    this_attempt = {
        "attempt": attempt,
        "started": utc_now(),
        "command": list(context.command),
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": versions(RECORDED_VERSIONS),
        "kit": mini_r1.__version__,
        "code_revision": code_revision(),
        "devices": [cpu] if on_cpu else _gpu_names(),
        "workers": context.world.size,
        "deepspeed": deepspeed.name if deepspeed else None,
        "vllm_device": os.environ.get(VLLM_DEVICE),  # of several: separated by commas
        "vllm_shared": shares_vllm_device(),
        "model": describe(inputs.policy.model),
    }
    before = run.read_record()
    record = {
        "run_id": before.get("run_id") or uuid4().hex,
        "prompts_per_step": inputs.schedule.prompts,
        "model_name_or_path": recipe.model_name_or_path,
        "data": inputs.data.provenance,
        "recipe_files": digests(recipe),
        "seed": recipe.seed,
        "dataset_seed": recipe.dataset_seed,
        "attempts": [*before.get("attempts", []), this_attempt],
    }
    write_json(run.run_file, record)
    write_jsonl(run.held_out_file, map(find_task(recipe.task).row, inputs.data.held_out))


def _keep_files(recipe: Recipe, folder: Path) -> None:
    """Copy the files that a recipe names."""
    for name, path in named_files(recipe).items():
        make_folder(folder)
        with replacing(folder / name) as scratch:
            shutil.copyfile(path, scratch)


def _gpu_names() -> list[str]:
    if shares_vllm_device():  # by the driver: torch would use the GPU before vLLM has measured its memory
        driver = read_driver(given_devices(os.environ).ids)
        return [gpu.name for gpu in driver.gpus] if driver else []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def prompts_per_step(run: RunDir, recipe: Recipe, workers: int) -> int:
    """Return the prompts of an optimizer step: those that the run began with, for any number of workers."""
    if run.complete_checkpoints() and "prompts_per_step" in run.read_record():
        return int(run.read_record()["prompts_per_step"])
    return recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * workers


def announce(context: WorkerContext, inputs: Inputs, start: int) -> None:
    """Print what is about to run, in three lines; `start` is the step it resumes from."""
    recipe, data, schedule = context.recipe, inputs.data, inputs.schedule
    facts = describe(inputs.policy.model)
    context.console.print(
        f"{recipe.model_name_or_path}: {facts['parameters']:,} parameters, {facts['dtype']}, "
        f"{facts['attention']} attention\n"
        f"{len(data.train):,} training problems, {len(data.held_out):,} held out ({data.provenance['source']})\n"
        f"{schedule.steps} optimizer steps of {schedule.prompts} prompts x {recipe.num_generations} generations"
        + (f", resuming after step {start}" if start else "")
        + f" -> {context.run.path}",
        markup=False,  # names and paths may hold brackets
    )
    warning = vllm_change(context.run.read_record()["attempts"]) if start else None
    if warning is not None:
        logger.warning(warning)
        context.console.print(f"warning: {warning}", style="yellow", markup=False)


def vllm_change(attempts: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what to know if the last attempt has another number of vLLM's devices than the one before."""
    counts = [count_vllm_processes(facts) for facts in attempts[-2:]]
    if not all(counts) or counts[0] == counts[-1]:
        return None
    return (
        f"vLLM's devices were {counts[0]} and are {counts[-1]} now: the same seed gives the same completions only with "
        "the same number"
    )


class LogFile(logging.FileHandler):
    """A log file that silently keeps lines for later on a full disk: the files that a run needs report the disk."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Log this rank's messages to a file; the terminal shows progress and errors only."""
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
