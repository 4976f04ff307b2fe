"""A built-in model's warm start: supervised training on an impatient solver's traces, done once and cached.

Simplified: one learning-rate cycle, and one check at the end. The check is on arithmetic, because GRPO from a model
that still miscalculates learns the format and loses the arithmetic.
"""

import hashlib
import json
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast

from mini_r1.console import ProgressLine
from mini_r1.disk_errors import disk_error, hidden_disk_error
from mini_r1.errors import ExitCode, KitError, Stopped
from mini_r1.generation.model import device
from mini_r1.generation.prompts import completion_texts, render, token_ids
from mini_r1.generation.sampler import SamplingConfig, Stop, never, sample
from mini_r1.recipe.builtin_models import BuiltinModel
from mini_r1.recipe.fields import Recipe, WarmStartRecipe
from mini_r1.run.files import sync_path, write_json
from mini_r1.tasks.registry import AnyTask, find_task
from mini_r1.training import from_scratch, warm_progress
from mini_r1.training.muon import Muon
from mini_r1.training.warm_progress import Training

T = TypeVar("T")

WARMUP = 50
BETAS = (0.9, 0.98)
"""Chosen on the demo: after the same time, betas (0.9, 0.999) and no warm-up calculated worse."""
CACHE_VERSION = 2
"""Part of the cache's key: raise it when the model, the traces or this training change."""

MADE = "warm_start.json"
"""Written last: a model directory without it is incomplete."""

ENCODED_AT_ONCE = 512
"""Texts in one call of the tokenizer, which can't be interrupted: .3 s on two cores with a load of 16."""
WORK_AT_ONCE = 4.1e8
"""Tokens times squared width in one pass of a layer on a CPU. `stop` is asked between its matrices: 2.5 s at that load.
The demo's batches are smaller, and so are those of the small run in docs/results.md."""

Progress = Callable[[int, float], None]  # called with the step and the loss


def cache_root() -> Path:
    """Return the folder of warm-started models: MINI_R1_CACHE, else the user's cache directory."""
    own = os.environ.get("MINI_R1_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mini-r1"


@dataclass(frozen=True)
class WarmStart:
    """Everything that decides the weights of a warm-started model."""

    problems: Sequence[Any]  # for training only: held-out ones stay unseen
    style: str
    model: BuiltinModel
    settings: WarmStartRecipe

    @property
    def task(self) -> AnyTask:
        """Return the task that the model is made for."""
        return find_task(self.model.task)

    def directory(self) -> Path:
        """Return the model's directory in the cache."""
        numbers = json.dumps([list(self.task.row(problem).values()) for problem in self.problems])
        prompt = self.style if self.style in self.task.prompts else self.task.prompt(self.style)
        parts = (CACHE_VERSION, prompt, self.model, self.settings, torch.__version__, numbers)
        digest = hashlib.sha256("|".join(map(repr, parts)).encode()).hexdigest()
        return cache_root() / "models" / f"{self.model.name.removeprefix('builtin:')}-{digest[:16]}"

    def progress_file(self) -> Path:
        """Return the file that a stopped warm start is saved to, and resumed from."""
        return self.directory().with_suffix(".progress.safetensors")


def of_recipe(recipe: Recipe, problems: Sequence[Any]) -> WarmStart:
    """Return the warm start of a recipe with a built-in model; its traces keep to the recipe's limit of values."""
    model = recipe.built_in
    assert model is not None
    limit = recipe.generator.max_intermediate if recipe.generator else None
    if limit:
        largest = min(limit, model.demonstrator.largest_value)
        model = replace(model, demonstrator=replace(model.demonstrator, largest_value=largest))
    return WarmStart(problems, recipe.prompt_style, model, recipe.warm_start or WarmStartRecipe())


def for_recipe(recipe: Recipe, problems: Sequence[Any], console: Console, stop: Stop = never) -> Path:
    """Return the warm-started model of a recipe, from the cache or made now with a progress line; see `make`."""
    job = of_recipe(recipe, problems)
    with _cache_errors(job.directory()):
        made = is_made(job.directory())
    if not made:
        steps = job.settings.steps
        console.print(f"making {job.model.name}: {steps} steps on an impatient solver's traces (once, then cached)")
        with ProgressLine(console, "warm start", steps) as line:
            make(job, lambda step, loss: line.update(step, f"loss {loss:.3f}"), stop)
    return job.directory()


def is_made(directory: Path) -> bool:
    """Return whether the cache holds a complete model there."""
    return (directory / MADE).is_file()


def making(directory: Path) -> dict[str, Any]:
    """Return the record of a cached model: `seconds`, `device`, `arithmetic_accuracy`."""
    return json.loads((directory / MADE).read_text())  # type: ignore[no-any-return]


def make(job: WarmStart, progress: Progress, stop: Stop = never) -> None:
    """Train the model and put it into the cache, complete or not at all; a stopped training is saved.

    Raises KitError if the cache can't be written, or the model calculates too badly to start GRPO from.
    """
    directory = job.directory()
    with _cache_errors(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)  # first: the training takes minutes
        scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=directory.parent))
        scratch.chmod(0o755)  # mkdtemp's are for one user, and a cache may be shared
    try:
        with _cache_errors(scratch):
            _make_in(scratch, job, progress, stop)
            try:
                scratch.rename(directory)
                sync_path(directory.parent)
            except OSError:  # another process was faster: its model is the same
                if not is_made(directory):
                    raise
            with suppress(OSError):
                job.progress_file().unlink()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    """Raise an error of the disk that `folder` is on as a retryable KitError."""
    try:
        yield
    except Exception as error:
        failed = hidden_disk_error(error, folder)
        if failed is None:
            raise
        full = disk_error(failed)
        cause = full.message if full else f"{failed.filename}: {failed.strerror}."
        raise KitError(
            f"a model made here cannot be kept in {cache_root()}: {cause} Or set MINI_R1_CACHE to a folder that this "
            "user can write, with enough space.",
            ExitCode.RETRY,
        ) from error


def _make_in(folder: Path, job: WarmStart, progress: Progress, stop: Stop) -> None:
    settings, imitation = job.settings, job.model.imitation
    tokenizer = from_scratch.build_tokenizer(job.model)
    model = from_scratch.build_model(tokenizer, settings.seed, job.model).to(device())  # type: ignore[arg-type]
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2] if imitation.matrix_learning_rate else []
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    adamw = torch.optim.AdamW(others, lr=imitation.learning_rate, betas=BETAS, weight_decay=0.0, fused=True)
    training = Training(model, others, adamw, Muon(matrices), random.Random(settings.seed))
    warm_progress.load(job.progress_file(), training)
    started = time.perf_counter() - training.seconds
    try:
        train(training, tokenizer, job, progress, stop)
        accuracy = arithmetic_accuracy(model, tokenizer, job, stop=stop)
    except Stopped:
        training.seconds = time.perf_counter() - started
        raise Stopped(_save_progress(job, training)) from None
    if accuracy < settings.min_accuracy:
        raise KitError(
            f"the warm start calculates right in {accuracy:.1%} of its steps, GRPO needs {settings.min_accuracy:.0%}: "
            f"give it more steps (--set warm_start.steps={settings.steps * 2}) or another seed "
            f"(--set warm_start.seed={settings.seed + 1})",
            ExitCode.FAILED,
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():  # or a power cut may leave the last file, and an empty model
        sync_path(path)
    seconds = round(time.perf_counter() - started, 1)
    write_json(folder / MADE, {"seconds": seconds, "device": str(device()), "arithmetic_accuracy": accuracy})


def _save_progress(job: WarmStart, training: Training) -> str:
    """Save what a stopped warm start has done; return a message."""
    stopped = f"the warm start of {job.model.name} was stopped at step {training.step} of {job.settings.steps}"
    if not training.step:
        return f"{stopped}: run the same command again"
    path = job.progress_file()
    try:
        warm_progress.save(path, training)
    except (OSError, SafetensorError) as error:
        return f"{stopped}, and {path} cannot be written ({error}): the same command starts from the beginning"
    return f"{stopped}, kept in {path}: the same command resumes it"


def train(
    training: Training, tokenizer: PreTrainedTokenizerFast, job: WarmStart, progress: Progress, stop: Stop = never
) -> None:
    """Train on the completion tokens of the traces; the learning rate rises for WARMUP steps, then falls to 0.

    If `stop` returns true, Stopped is raised, and `training` is as after its last step.
    """
    steps, imitation = job.settings.steps, job.model.imitation
    model, adamw = training.model, training.adamw

    def check(*given: object) -> None:
        if stop():
            raise Stopped

    for module in model.model.layers.modules():  # a large model's step on a CPU takes minutes
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(check)
            module.register_full_backward_pre_hook(check)
    if training.step == steps:  # stopped while its arithmetic was measured
        return
    pairs = job.task.traces(job.problems, job.model.demonstrator, job.settings.traces, job.settings.seed)
    rows = encode(job.task, tokenizer, pairs, job.style, stop)
    model.train()
    for step in _until(stop, range(training.step, steps)):
        if not training.batches:
            training.batches = batches_of_like_length([len(ids) for ids, _ in rows], imitation.batch, training.rng)
        model.zero_grad()
        loss = accumulate_gradients(model, [rows[i] for i in training.batches[-1]], tokenizer.pad_token_id)
        share = min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        adamw.param_groups[0]["lr"] = imitation.learning_rate * share
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        training.muon.step(imitation.matrix_learning_rate * share)
        training.batches.pop()
        training.step = step + 1
        progress(step + 1, loss)


def accumulate_gradients(model: Any, rows: Sequence[tuple[list[int], int]], pad: int) -> float:
    """Add the gradients of the mean loss of the completions' tokens; return the loss. See `encode` for the rows."""
    on, longest = device(), max(len(ids) for ids, _ in rows)
    at_once = max(1, int(WORK_AT_ONCE / longest / model.config.hidden_size**2)) if on.type == "cpu" else len(rows)
    tokens = sum(len(ids) - n for ids, n in rows)
    total = 0.0
    for part in (rows[i : i + at_once] for i in range(0, len(rows), at_once)):
        longest = max(len(ids) for ids, _ in part)
        ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in part]).to(on)
        # Prompt and padding are read, not learned.
        learned = torch.tensor([[n <= i < len(ids) for i in range(1, longest)] for ids, n in part]).to(on)
        with torch.autocast(on.type, torch.bfloat16, enabled=on.type == "cuda"):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            logits = model.lm_head(hidden[learned])
            loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:][learned])
        loss = loss * (len(logits) / tokens)
        loss.backward()
        total += loss.item()
    return total


def _until(stop: Stop, items: Iterable[T]) -> Iterator[T]:
    """Yield the items; raise Stopped when `stop`, asked before each, returns true."""
    for item in items:
        if stop():
            raise Stopped
        yield item


def batches_of_like_length(lengths: Sequence[int], size: int, rng: random.Random) -> list[list[int]]:
    """Return one epoch's batches of `size` row indices, in random order.

    Rows are sorted by length within pools of 32 batches: padding every batch to the longest trace of all would take
    three times as long.
    """
    order = list(range(len(lengths)))
    rng.shuffle(order)
    pool = 32 * size
    for start in range(0, len(order), pool):
        order[start : start + pool] = sorted(order[start : start + pool], key=lengths.__getitem__)
    batches = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    rng.shuffle(batches)
    return batches


def encode(
    task: AnyTask,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Iterable[tuple[Any, str]],
    style: str,
    stop: Stop = never,
) -> list[tuple[list[int], int]]:
    """Return for each pair the token ids of prompt, completion and end token, and the number of the prompt's."""

    def parts(items: list[T]) -> Iterator[list[T]]:
        return _until(stop, (items[i : i + ENCODED_AT_ONCE] for i in range(0, len(items), ENCODED_AT_ONCE)))

    drawn = list(_until(stop, pairs))
    distinct = list({problem: None for problem, _ in drawn})  # a problem's prompt is encoded once for all its traces
    prompts: dict[Any, list[int]] = {}
    for some in parts(distinct):
        prompts |= zip(some, token_ids(tokenizer, render(task, tokenizer, some, style)), strict=True)
    return [
        (prompts[problem] + ids + [tokenizer.eos_token_id], len(prompts[problem]))
        for some in parts(drawn)
        for (problem, _), ids in zip(some, token_ids(tokenizer, [text for _, text in some]), strict=True)
    ]


def arithmetic_accuracy(
    model: Any, tokenizer: PreTrainedTokenizerFast, job: WarmStart, rows: int = 256, stop: Stop = never
) -> float:
    """Return the share of right calculation steps (`8 + 2 = 10`) in `rows` sampled completions."""
    seed = job.settings.seed
    chosen = random.Random(seed).choices(job.problems, k=rows)
    completions = sample(
        model,
        token_ids(tokenizer, render(job.task, tokenizer, chosen, job.style)),
        SamplingConfig(max_new_tokens=job.model.imitation.max_new_tokens, temperature=1.0),
        eos_token_ids=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        seed=seed,
        stop=stop,
    )
    verdicts = [right for text in completion_texts(tokenizer, completions) for right in job.task.step_verdicts(text)]
    return sum(verdicts) / len(verdicts) if verdicts else 0.0
