"""What a run needs before its first step: data, model, prompts in order, and a machine that can do it."""

from __future__ import annotations

import os
from typing import Any

import datasets
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from mini_r1.countdown import task
from mini_r1.errors import KitError
from mini_r1.generation.model import device, load_model, load_tokenizer
from mini_r1.generation.prompts import render, token_ids
from mini_r1.recipe import DEMO_MODEL, Recipe
from mini_r1.training import cpu, order, warm_start


def load_task_data(recipe: Recipe, commit: str | None = None) -> task.TaskData:
    """The recipe's problems, split; the same on every rank and at every start.

    Args:
        recipe: what to train.
        commit: of a hub data set, when a run has begun with it: its branch may have moved since.

    Raises:
        KitError: the data cannot be had or is wrong.
    """
    try:
        return task.load_data(
            recipe.dataset_id_or_path,
            revision=commit or recipe.dataset_revision,
            rows=recipe.dataset_rows,
            seed=recipe.dataset_seed,
            test_fraction=recipe.test_fraction,
            split_by=recipe.split_by,
            generator=task.GeneratorSpec(**recipe.generator.model_dump()) if recipe.generator else None,
        )
    except task.DataError as error:
        raise KitError(str(error)) from error


def model_source(recipe: Recipe, data: task.TaskData, console: Console) -> str:
    """Where the model's files are: the recipe's name, or the built-in demo model, warm-started now if need be."""
    if recipe.model_name_or_path != DEMO_MODEL:
        return recipe.model_name_or_path
    return str(warm_start.for_recipe(recipe, data.train, console))


def tune_machine(recipe: Recipe) -> None:
    """Settings of this process that a recipe wants; before the first tensor of any size."""
    if device().type == "cpu":
        cpu.prepare(small_model=recipe.model_name_or_path == DEMO_MODEL)


def load_trainable(
    recipe: Recipe, data: task.TaskData, console: Console, commit: str | None = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Model and tokenizer of the recipe; `commit` as in `load_task_data`."""
    source = model_source(recipe, data, console)
    revision = commit or recipe.model_revision
    model = load_model(source, revision, recipe.torch_dtype, recipe.attn_implementation)
    if recipe.tokenizer_name_or_path:  # another repository, where the model's revision means nothing
        return model, load_tokenizer(recipe.tokenizer_name_or_path, None)
    return model, load_tokenizer(source, revision)


def ordered_dataset(
    recipe: Recipe, data: task.TaskData, tokenizer: PreTrainedTokenizerBase, count: int
) -> datasets.Dataset:
    """The run's rows in their order, prompts rendered, none longer than max_prompt_length.

    Raises:
        KitError: a prompt is too long. It is refused and not cut, because a cut prompt loses the numbers' context and
            the policy would be trained on another prompt than it answered.
    """
    prompts = render(tokenizer, data.train, recipe.prompt_style)
    lengths = [len(ids) for ids in token_ids(tokenizer, prompts)]
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


def refuse_unsupported(recipe: Recipe) -> None:
    """What a recipe may say and this version of the kit cannot do yet.

    Raises:
        KitError: naming every such key.
    """
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


def refuse_several_devices() -> None:
    """One worker, one device.

    Raises:
        KitError: this process sees several GPUs and no launcher has given it a rank.
    """
    if device().type == "cuda" and torch.cuda.device_count() > 1 and "RANK" not in os.environ:
        raise KitError(
            f"`mini-r1 train` is one worker and sees {torch.cuda.device_count()} GPUs: "
            "set CUDA_VISIBLE_DEVICES to one of them"
        )
