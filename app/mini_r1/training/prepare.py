"""Inputs of a run, made before its first step: data, model and prompts in order; and what refuses to start."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase
from trl import create_reference_model

from mini_r1.console import ProgressLine
from mini_r1.errors import KitError, Stopped
from mini_r1.generation import model as models
from mini_r1.generation.model import StartingPoint, device, eos_token_ids, load_model, load_tokenizer
from mini_r1.generation.prompts import render, token_ids
from mini_r1.generation.sampler import Stop, never
from mini_r1.machine.allocator import keep_freed_memory
from mini_r1.machine.control_groups import usable_cores
from mini_r1.plan.memory import UNKNOWN_LIMITS, UpdateLimits, update_limits
from mini_r1.plan.shapes import UnknownShape, recipe_shape
from mini_r1.plan.training_setup import NO_ZERO, TrainingSetup, zero_settings
from mini_r1.recipe.builtin_models import SMALL_MODEL_THREADS
from mini_r1.recipe.deepspeed_file import DeepSpeedFile
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.named_files import reward_code
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.registry import AnyTask, find_task
from mini_r1.tasks.reward_file import CodeReward, load_reward
from mini_r1.tasks.task_data import TaskData
from mini_r1.training import adapters, schedule, warm_start
from mini_r1.training.recipe_data import SILENT, load_task_data
from mini_r1.values import GIB

UNSOLVABLE_ROWS = 200
"""Problems checked before data without any solution is refused; in the hub set every problem has one."""


def load_code(recipe: Recipe) -> list[CodeReward]:
    """Return the functions that the recipe's rewards name; their files are run. For its errors see `load_reward`."""
    columns = find_task(recipe.task).fields.names
    return [load_reward(name, columns, os.environ) for name in reward_code(recipe)]


def tune_cpu(recipe: Recipe) -> None:
    """Tune a process that trains on the CPU; call it before the first large tensor."""
    if device().type != "cpu":
        return
    # The number of threads does not depend on the load: two runs on one machine must agree to the last digit.
    if recipe.built_in is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(SMALL_MODEL_THREADS, usable_cores()))
    keep_freed_memory()


@dataclass(frozen=True, slots=True)
class Policy:
    """The model that is trained, and its reference; both are None before the weights are loaded."""

    model: Any
    reference: Any  # None without a KL term, and with an adapter, which is switched off instead
    tokenizer: PreTrainedTokenizerBase
    source: str = ""  # directory or hub id of the model
    revision: str | None = None  # on the hub: branch, tag or commit, and the commit once the weights are loaded

    @property
    def eos_token_ids(self) -> list[int]:
        """Tokens that end a completion."""
        return eos_token_ids(self.model, self.tokenizer)


def find_model(
    recipe: Recipe, data: TaskData[Any], console: Console, commit: str | None = None, stop: Stop = never
) -> Policy:
    """Make a built-in model if need be, check that the model fits the recipe, and load the tokenizer."""
    built_in = recipe.built_in and warm_start.for_recipe(recipe, data.train, console, stop)
    source = str(built_in or recipe.model_name_or_path)
    revision = commit or recipe.model_revision
    models.check_configuration(source, revision, recipe.longest_sequence)
    other = recipe.tokenizer_name_or_path  # another repository, where the model's revision means nothing
    return Policy(None, None, load_tokenizer(other or source, None if other else revision), source, revision)


def load_policy(recipe: Recipe, found: Policy) -> Policy:
    """Load the recipe's model and its reference; raise KitError if they don't fit the tokenizer or the recipe."""
    quantization = adapters.quantization(recipe)
    model = load_model(found.source, found.revision, recipe.torch_dtype, recipe.attn_implementation, quantization)
    models.refuse_misfit(model, found.tokenizer)
    model = adapters.with_adapter(model, recipe)
    reference = create_reference_model(model) if recipe.beta and not recipe.use_peft else None
    return replace(found, model=model, reference=reference, revision=getattr(model.config, "_commit_hash", None))


def find_update_limits(
    recipe: Recipe, workers: int, deepspeed: DeepSpeedFile | None, *, shared_gpu: bool
) -> UpdateLimits:
    """Return how much of an update this process's device, which vLLM may share, does at once by the plan."""
    here = device()
    try:
        shape = recipe_shape(recipe)
    except UnknownShape:
        return replace(UNKNOWN_LIMITS, tokens=recipe.max_tokens_per_micro_batch or UNKNOWN_LIMITS.tokens)
    zero = zero_settings(deepspeed, shape) if deepspeed else NO_ZERO
    gib = torch.cuda.get_device_properties(here).total_memory / GIB if here.type == "cuda" else None
    return update_limits(TrainingSetup(recipe, shape, workers, zero, gib, on_cpu=gib is None, shared_gpu=shared_gpu))


def starting_point(run: RunDir) -> StartingPoint:
    """Return the model of a run before its first step; loading it may need the hub.

    A built-in model is taken from the cache only: made again on another machine it would have other weights.
    """
    recipe = load_recipe(run.recipe_file)
    name = recipe.model_name_or_path
    if recipe.built_in is None:
        if name.startswith((".", "/", "~")) and not Path(name).is_dir():
            return StartingPoint(None, None, f"the run's model {name} is not there any more")
        revision = None if Path(name).is_dir() else run.model_commit() or recipe.model_revision
        return StartingPoint(name, revision, f"the run's model {name}")
    try:
        directory = warm_start.of_recipe(recipe, load_task_data(recipe).train).directory()
        if warm_start.is_made(directory):
            return StartingPoint(str(directory), None, f"the warm start of {name}, out of the cache")
    except (KitError, OSError) as error:
        return StartingPoint(None, None, f"the warm start of {name} cannot be found: {error}")
    cache = f"the cache {warm_start.cache_root()} (MINI_R1_CACHE)"
    return StartingPoint(None, None, f"the warm start of {name} is not in {cache} any more")


def prompts(recipe: Recipe, problems: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Return a row of `prompt` (rendered text) and the task's columns for each problem.

    A prompt longer than max_prompt_length raises KitError. It is not cut, because a cut prompt loses its problem, and
    the policy would be trained on another prompt than it answered.
    """
    task = find_task(recipe.task)
    texts = render(task, tokenizer, problems, recipe.prompt_style)
    lengths = [len(ids) for ids in token_ids(tokenizer, texts)] if texts else []
    longest, limit = max(lengths, default=0), recipe.max_prompt_length
    if longest > limit:
        problem = problems[lengths.index(longest)]
        raise KitError(
            f"the prompt of {task.describe(task.row(problem))} has {longest} tokens and max_prompt_length is "
            f"{limit}: raise it to at least {longest}"
        )
    return [{"prompt": text, **task.row(problem)} for text, problem in zip(texts, problems, strict=True)]


def ordered_dataset(
    recipe: Recipe, data: TaskData[Any], tokenizer: PreTrainedTokenizerBase, count: int
) -> datasets.Dataset:
    """Return the run's `count` rows in their order; only the problems among them are rendered. See `prompts`."""
    indices = schedule.run_order(len(data.train), count, recipe.seed)
    used = sorted(set(indices))
    rows = dict(zip(used, prompts(recipe, [data.train[index] for index in used], tokenizer), strict=True))
    return datasets.Dataset.from_list([rows[index] for index in indices])


def held_out_rows(recipe: Recipe, data: TaskData[Any], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Return the rows that are measured during training; raise KitError if there are none to measure."""
    if recipe.eval_strategy == "no":
        return []
    if not data.held_out:
        raise KitError(
            f"eval_strategy is steps, and of {len(data.train)} problems test_fraction {recipe.test_fraction:g} holds "
            "out none: give more rows, or set eval_strategy: no"
        )
    return prompts(recipe, data.held_out[: recipe.eval_problems], tokenizer)


def refuse_unsolvable(task: AnyTask, data: TaskData[Any], console: Console = SILENT, stop: Stop = never) -> None:
    """Raise KitError for data without solutions, where no reward is possible; warn if the search takes too long."""
    checked, unknown = data.train[:UNSOLVABLE_ROWS], 0
    with ProgressLine(console, "looking for a problem with a solution", len(checked)) as line:
        for row, problem in enumerate(checked, start=1):
            if stop():
                raise Stopped("stopped while the data was looked at: run the same command again")
            found = task.solvable(problem)
            if found:
                return
            unknown += found is None
            line.update(row)
    source = data.provenance["source"]
    if unknown:
        console.print(
            f"warning: none of the first {len(checked)} training problems of {source} is known to have a solution; "
            f"{unknown} of them were not checked to the end, because the search takes too long",
            style="yellow",
            markup=False,
        )
    elif checked:
        raise KitError(
            f"none of the first {len(checked)} training problems of {source} has a solution "
            f"(the first: {task.describe(task.row(checked[0]))}): there is nothing to learn from; "
            "`mini-r1 data inspect` counts them all"
        )
