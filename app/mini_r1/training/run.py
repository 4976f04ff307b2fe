"""One training run from recipe to finished run directory: fresh, resumed, interrupted or already done."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import datasets
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.utils import logging as transformers_logging

import mini_r1
from mini_r1.countdown import task
from mini_r1.errors import ExitCode, KitError
from mini_r1.generation.model import describe, device, eos_token_ids, load_model, load_tokenizer
from mini_r1.recipe import DEMO_MODEL, Recipe
from mini_r1.recipe_file import differences, dump_recipe, load_recipe
from mini_r1.rundir import RunDir, write_json
from mini_r1.training import cpu, order, warm_start
from mini_r1.training.arguments import grpo_config
from mini_r1.training.callbacks import RunCallback
from mini_r1.training.checkpoints import checkpoint_to_resume
from mini_r1.training.samples import CompletionLog
from mini_r1.training.signals import StopRequest
from mini_r1.training.terminal import TrainingLine
from mini_r1.training.trainer import CountdownTrainer, RewardPlan

logger = logging.getLogger(__name__)

RECORDED_VERSIONS = (
    "torch", "trl", "transformers", "accelerate", "datasets", "tokenizers", "peft", "deepspeed", "vllm", "numpy",
)  # fmt: skip
RETRYABLE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE})
"""Disk full, quota, I/O error, stale network file: the machine's fault, not the recipe's."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call of `train` ended."""

    exit_code: ExitCode
    run: RunDir
    step: int
    seconds: float
    """Spent in optimizer steps by this call."""


def train(
    recipe: Recipe, run: RunDir, command: Sequence[str], console: Console, data: task.TaskData | None = None
) -> Outcome:
    """Train until the run is finished or the process is asked to stop.

    Args:
        recipe: what to train.
        run: where; a run that is already there is gone on with.
        command: the command line, for run.json.
        console: for progress.
        data: the recipe's data, if the caller has loaded it already.

    Raises:
        KitError: the recipe, the data or the directory is wrong, or the machine failed.
    """
    _refuse_unsupported(recipe)
    _refuse_several_devices()
    prepare_machine(recipe)
    run.prepare()
    with run.lock():
        if run.is_run():
            finished = _finished(recipe, run)
            if finished is not None:
                console.print(f"{run.path} is finished at step {finished}: nothing to do")
                return Outcome(ExitCode.FINISHED, run, finished, 0.0)
        return _attempt(recipe, run, command, console, data)


def _attempt(
    recipe: Recipe, run: RunDir, command: Sequence[str], console: Console, data: task.TaskData | None
) -> Outcome:
    stop = StopRequest()
    stop.install()
    try:
        data = data or load_task_data(recipe)
    except task.DataError as error:
        raise KitError(str(error)) from error
    model, tokenizer = load_trainable(recipe, data, console)
    resume = checkpoint_to_resume(run)
    attempt = run.start_attempt()
    log = _log_to(attempt / "rank-0.log")
    try:
        _record_run(run, recipe, data, model, command, attempt)
        outcome = _train(recipe, run, attempt, data, model, tokenizer, stop, console, resume.path if resume else None)
        run.write_state(
            "finished" if outcome.exit_code == ExitCode.FINISHED else "interrupted",
            step=outcome.step,
            exit_code=int(outcome.exit_code),
            reason=stop.signal_name or "finished",
            attempt=int(attempt.name),
        )
        return outcome
    except BaseException as error:
        logger.exception("training failed")
        code = _exit_code(error)
        reason = f"{type(error).__name__}: {error}"
        run.write_state("failed", step=_last_step(run), exit_code=int(code), reason=reason, attempt=int(attempt.name))
        if isinstance(error, OSError) and code == ExitCode.RETRY:
            raise KitError(
                f"{reason}; the last complete checkpoint stands: make space and start again", code
            ) from error
        raise
    finally:
        logging.getLogger().removeHandler(log)
        log.close()


def _train(
    recipe: Recipe,
    run: RunDir,
    attempt: Path,
    data: task.TaskData,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    stop: StopRequest,
    console: Console,
    resume_from: Path | None,
) -> Outcome:
    prompts_per_step = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    steps = order.total_steps(recipe.max_steps, recipe.num_train_epochs, len(data.train), prompts_per_step)
    args = grpo_config(recipe, run.path, run.tensorboard, steps)
    dataset = _dataset(recipe, data, tokenizer, steps * prompts_per_step)
    rewards = recipe.resolved_rewards()
    start = int(resume_from.name.removeprefix("step-")) if resume_from else 0
    _announce(console, recipe, run, data, model, steps, start)
    line = TrainingLine(console, steps, start)
    callback = RunCallback(recipe, run, attempt, stop, len(data.train) / prompts_per_step, line)
    completions = CompletionLog(attempt, run.completion_samples)
    try:
        set_seed(recipe.seed)
        trainer = CountdownTrainer(
            model,
            rewards=RewardPlan(tuple(rewards), tuple(rewards.values())),
            args=args,
            train_dataset=dataset,
            processing_class=tokenizer,
            eos_token_ids=eos_token_ids(model, tokenizer),
            run=run,
            on_rollout=completions.write,
            on_phase=callback.phase,
            callbacks=[callback],
        )
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        seconds = time.perf_counter() - started
    finally:
        callback.close()
        completions.close()
    step = trainer.state.global_step
    done = step >= steps
    return Outcome(ExitCode.FINISHED if done else ExitCode.INTERRUPTED, run, step, seconds)


# --- before training ---


def load_task_data(recipe: Recipe) -> task.TaskData:
    """The recipe's problems, split; the same on every rank and at every start.

    Raises:
        DataError: the data cannot be had or is wrong.
    """
    return task.load_data(
        recipe.dataset_id_or_path,
        revision=recipe.dataset_revision,
        rows=recipe.dataset_rows,
        seed=recipe.dataset_seed,
        test_fraction=recipe.test_fraction,
        split_by=recipe.split_by,
        generator=task.GeneratorSpec(**recipe.generator.model_dump()) if recipe.generator else None,
    )


def model_source(recipe: Recipe, data: task.TaskData, console: Console) -> str:
    """Where the model's files are: the recipe's name, or the built-in demo model, warm-started now if need be."""
    if recipe.model_name_or_path != DEMO_MODEL:
        return recipe.model_name_or_path
    return str(warm_start.for_recipe(recipe, data.train, console))


def prepare_machine(recipe: Recipe) -> None:
    """Settings of this process that a recipe wants; before the first tensor of any size."""
    if device().type == "cpu":
        cpu.prepare(small_model=recipe.model_name_or_path == DEMO_MODEL)


def load_trainable(recipe: Recipe, data: task.TaskData, console: Console) -> tuple[Any, PreTrainedTokenizerBase]:
    """Model and tokenizer of the recipe."""
    source = model_source(recipe, data, console)
    model = load_model(source, recipe.model_revision, recipe.torch_dtype, recipe.attn_implementation)
    return model, load_tokenizer(recipe.tokenizer_name_or_path or source, recipe.model_revision)


def _dataset(recipe: Recipe, data: task.TaskData, tokenizer: PreTrainedTokenizerBase, count: int) -> datasets.Dataset:
    """The run's rows in their order, prompts rendered, none longer than max_prompt_length.

    Raises:
        KitError: a prompt is too long. It is refused and not cut, because a cut prompt loses the numbers' context and
            the policy would be trained on another prompt than it answered.
    """
    prompts = [
        tokenizer.apply_chat_template(
            task.messages(p, recipe.prompt_style), tokenize=False, continue_final_message=True
        )
        for p in data.train
    ]
    lengths = [len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
    longest = max(range(len(lengths)), key=lengths.__getitem__, default=0)
    if lengths and recipe.max_prompt_length is not None and lengths[longest] > recipe.max_prompt_length:
        raise KitError(
            f"the prompt of {list(data.train[longest].nums)} -> {data.train[longest].target} has {lengths[longest]} "
            f"tokens and max_prompt_length is {recipe.max_prompt_length}: raise it to at least {lengths[longest]}"
        )
    rows = [
        {"prompt": prompt, "nums": list(p.nums), "target": p.target}
        for prompt, p in zip(prompts, data.train, strict=True)
    ]
    chosen = order.run_order(len(rows), count, recipe.seed)
    return datasets.Dataset.from_list(rows).select(chosen)


def _refuse_unsupported(recipe: Recipe) -> None:
    """What the recipe may say and this version of the kit cannot do yet: refused before anything is started."""
    missing = {
        "use_vllm": "generation by vLLM",
        "use_peft": "adapters",
        "load_in_4bit": "4-bit weights",
        "load_in_8bit": "8-bit weights",
        "push_to_hub": "pushing to the hub",
    }
    faults = [
        f"{key}: {what} is not in this version of the kit: set {key}: false (or --set {key}=false)"
        for key, what in missing.items()
        if getattr(recipe, key)
    ]
    if faults:
        raise KitError("\n".join(faults))


def _refuse_several_devices() -> None:
    if device().type == "cuda" and torch.cuda.device_count() > 1 and "RANK" not in os.environ:
        raise KitError(
            f"`mini-r1 train` is one worker and sees {torch.cuda.device_count()} GPUs: "
            "set CUDA_VISIBLE_DEVICES to one of them"
        )


def _finished(recipe: Recipe, run: RunDir) -> int | None:
    """The step of a finished run, None for one to go on with.

    Raises:
        KitError: the directory's recipe means something else than this one.
    """
    changed = differences(load_recipe(run.recipe_file), recipe)
    if changed:
        lines = [f"  {key}: the run has {old!r}, the recipe now says {new!r}" for key, (old, new) in changed.items()]
        raise KitError(
            f"{run.path} was started with another recipe:\n"
            + "\n".join(lines)
            + "\nchoose another --run-dir, or undo the change"
        )
    state = run.read_state()
    return int(state["step"]) if state.get("state") == "finished" else None


# --- records ---


def _record_run(
    run: RunDir, recipe: Recipe, data: task.TaskData, model: Any, command: Sequence[str], attempt: Path
) -> None:
    """recipe.yaml, the held-out problems and run.json; a resumed run must have the same data.

    Raises:
        KitError: the data is not what the run began with.
    """
    try:
        before = json.loads(run.run_file.read_text())
    except (OSError, ValueError):
        before = {}
    if before and before["data"] != json.loads(json.dumps(data.provenance)):
        raise KitError(
            f"the data of {run.path} has changed since the run began: then {before['data']}, now {data.provenance}"
        )
    this_attempt = {
        "attempt": int(attempt.name),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": list(command),
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in RECORDED_VERSIONS},
        "kit": mini_r1.__version__,
        "code_revision": _code_revision(),
        "devices": _devices(),
        "model": describe(model),
    }
    record = {
        "model_name_or_path": recipe.model_name_or_path,
        "data": data.provenance,
        "seed": recipe.seed,
        "dataset_seed": recipe.dataset_seed,
        "attempts": [*before.get("attempts", []), this_attempt],
    }
    write_json(run.run_file, record)
    run.write_held_out([{"nums": list(p.nums), "target": p.target} for p in data.held_out])
    if not run.is_run():
        scratch = run.recipe_file.with_suffix(".tmp")
        scratch.write_text(dump_recipe(recipe))
        scratch.replace(run.recipe_file)


def _announce(
    console: Console, recipe: Recipe, run: RunDir, data: task.TaskData, model: Any, steps: int, start: int
) -> None:
    facts = describe(model)
    prompts = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    console.print(
        f"{recipe.model_name_or_path}: {facts['parameters']:,} parameters, {facts['dtype']}, "
        f"{facts['attention']} attention\n"
        f"{len(data.train):,} training problems, {len(data.held_out):,} held out ({data.provenance['source']})\n"
        f"{steps} optimizer steps of {prompts} prompts x {recipe.num_generations} generations"
        + (f", going on after step {start}" if start else "")
        + f" -> {run.path}"
    )


def _devices() -> list[str]:
    if device().type == "cpu":
        return [f"cpu x {os.cpu_count()} ({torch.get_num_threads()} threads)"]
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _code_revision() -> str | None:
    """Commit of the checkout this code runs from, with `+changes` when files differ; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        revision = subprocess.run(  # noqa: S603
            ["git", "describe", "--always", "--dirty=+changes", "--abbrev=40", "--exclude=*"],  # noqa: S607
            cwd=here, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.stdout.strip() or None


def _log_to(path: Path) -> logging.Handler:
    """Log this rank's messages to a file; the terminal shows progress and errors only."""
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logger.info("python %s, argv %s", sys.version.split()[0], sys.argv)
    return handler


def _exit_code(error: BaseException) -> ExitCode:
    if isinstance(error, KitError):
        return error.exit_code
    if isinstance(error, OSError) and error.errno in RETRYABLE_ERRNOS:
        return ExitCode.RETRY
    return ExitCode.FAILED


def _last_step(run: RunDir) -> int:
    return int(run.read_state().get("step", 0))
