"""Checks of a recipe that need torch; `mini-r1 doctor` runs them as another process.

    python -m mini_r1.training.probe RECIPE --set seed=7 --deepspeed zero3

Standard output is one JSON object, {"findings": [...]}; the exit code is always 0. Weights are not loaded;
configuration, tokenizer and data are fetched into the hub's cache if they are not there yet.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from mini_r1.errors import KitError, first_line
from mini_r1.machine.findings import Finding, fail, from_error, ok, skip
from mini_r1.machine.heavy_imports import INSTALL, INSTALL_GPU, INSTALL_VLLM_CPU, needs_extra, no_garbage_collection
from mini_r1.machine.provenance import versions
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import find_recipe, load_recipe
from mini_r1.tasks.registry import find_task


class Probe:
    """The checks of one recipe, with DeepSpeed or without; later ones use what earlier ones loaded."""

    def __init__(self, recipe: Recipe, *, deepspeed: bool) -> None:
        self._recipe = recipe
        self._deepspeed = deepspeed
        self._config: dict[str, Any] = {}
        self._tokenizer: Any = None
        self._data: Any = None

    def checks(self) -> dict[str, Callable[[], Finding]]:
        """Return the checks by name, in order."""
        recipe = self._recipe
        few_bits = recipe.load_in_4bit or recipe.load_in_8bit or "8bit" in recipe.optim or "paged" in recipe.optim
        vllm = INSTALL_VLLM_CPU if os.environ.get("MINI_R1_ACCELERATOR") == "cpu" else INSTALL_GPU
        return {
            "torch": self._torch,
            "attention": self._attention,
            "DeepSpeed": self._deepspeed_imports,
            "vLLM": lambda: _check_import(recipe.use_vllm, "vLLM", f"{vllm}; or set use_vllm: false"),
            "bitsandbytes": lambda: _check_import(few_bits, "bitsandbytes", INSTALL_GPU),
            "architecture": self._architecture,
            "tokenizer": self._load_tokenizer,
            "problems": self._problems,
            "prompts": self._prompts,
        }

    def _torch(self) -> Finding:
        from mini_r1.training.gpu_check import check_gpus

        return check_gpus()

    def _attention(self) -> Finding:
        wanted = self._recipe.attn_implementation
        if wanted != "flash_attention_2":
            return ok(f"{wanted or 'sdpa'}: part of torch")
        fix = "set attn_implementation: sdpa, or use the image, which has flash-attn"
        # An installation without kernels has the first module only.
        return _check_import(True, "flash-attn", fix, "flash_attn", "flash_attn_2_cuda")

    def _deepspeed_imports(self) -> Finding:
        if not self._deepspeed:
            return skip("not used")
        with needs_extra("gpu", deepspeed=True):
            return ok(f"DeepSpeed {_version('deepspeed')}")

    def _architecture(self) -> Finding:
        recipe, name = self._recipe, self._recipe.model_name_or_path
        if recipe.built_in:
            return ok("qwen2, made by the kit")
        from mini_r1.generation.model import check_configuration

        self._config = check_configuration(name, recipe.model_revision, recipe.longest_sequence)
        if not self._config:
            return ok(f"{name} is an adapter: its base model is checked when it is loaded")
        return ok(f"{self._config['model_type']}: known")

    def _load_tokenizer(self) -> Finding:
        from mini_r1.generation.model import PLAIN_TEMPLATE, load_tokenizer, refuse_other_vocabulary
        from mini_r1.training.from_scratch import build_tokenizer

        recipe, other = self._recipe, self._recipe.tokenizer_name_or_path
        if other is None and recipe.built_in:
            self._tokenizer = build_tokenizer(recipe.built_in)
            return ok("made by the kit")
        name = other or recipe.model_name_or_path
        self._tokenizer = load_tokenizer(name, None if other else recipe.model_revision)
        rows = self._config.get("vocab_size")
        if isinstance(rows, int):
            refuse_other_vocabulary(rows, self._tokenizer)
        plain = str(self._tokenizer.chat_template).endswith(PLAIN_TEMPLATE)
        template = "no chat template: prompts are plain text" if plain else "with a chat template"
        return ok(f"{name}: {len(self._tokenizer):,} tokens, {template}")

    def _problems(self) -> Finding:
        from mini_r1.training import prepare
        from mini_r1.training.recipe_data import load_task_data

        self._data = load_task_data(self._recipe)
        prepare.refuse_unsolvable(find_task(self._recipe.task), self._data)
        return ok(f"{len(self._data.train):,} to train on, {len(self._data.held_out):,} held out")

    def _prompts(self) -> Finding:
        from mini_r1.training import prepare

        if self._tokenizer is None or self._data is None:
            return skip("needs a tokenizer and data")
        rows = prepare.prompts(self._recipe, self._data.train, self._tokenizer)
        prepare.held_out_rows(self._recipe, self._data, self._tokenizer)
        return ok(f"{len(rows):,} of at most {self._recipe.max_prompt_length} tokens")


def _run_check(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check().named(name)
    except KitError as error:
        return from_error(error).named(name)
    except Exception as error:  # a broken installation may raise anything
        return fail(f"{type(error).__name__}: {first_line(error)}", INSTALL, "recipe").named(name)


def _check_import(used: bool, package: str, fix: str, *modules: str) -> Finding:
    if not used:
        return skip("not used")
    for name in modules or (package.lower(),):
        try:
            importlib.import_module(name)
        except Exception as error:  # ImportError mostly; native libraries raise others
            return fail(f"{name} cannot be imported: {first_line(error)}", fix, "recipe")
    return ok(f"{package} {_version(package)}")


def _version(package: str) -> str:
    return versions([package])[package] or "none"


def main(arguments: Sequence[str]) -> None:
    """Print the findings as JSON on standard output; what libraries print goes to standard error."""
    parser = argparse.ArgumentParser(prog="python -m mini_r1.training.probe")
    parser.add_argument("recipe")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--deepspeed", default="none")
    given = parser.parse_args(arguments)
    with ExitStack() as stack:
        out = stack.enter_context(os.fdopen(os.dup(1), "w", encoding="utf-8"))
        os.dup2(2, 1)
        stack.enter_context(no_garbage_collection())
        try:
            recipe = load_recipe(find_recipe(given.recipe), given.overrides)
            checks = Probe(recipe, deepspeed=given.deepspeed != "none").checks()
            findings = [_run_check(name, check) for name, check in checks.items()]
        except KitError as error:
            findings = [from_error(error).named("recipe")]
        json.dump({"findings": [*map(asdict, findings)]}, out)


if __name__ == "__main__":
    main(sys.argv[1:])
