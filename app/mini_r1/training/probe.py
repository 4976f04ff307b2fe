"""What only a look with torch can tell about this environment and a recipe; `mini-r1 doctor` runs it as a process.

    python -m mini_r1.training.probe RECIPE --set seed=7 --deepspeed zero3

Standard output is one JSON object, {"findings": [...]}, and nothing else; exit code 0 whatever was found. Weights are
not loaded; configuration, tokenizer and data are fetched into the hub's cache where they are not there yet.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from mini_r1.errors import KitError, first_line
from mini_r1.findings import Finding, fail, from_error, ok, skip
from mini_r1.machine.heavy_imports import needs_extra, no_garbage_collection
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import find_recipe, load_recipe

INSTALL = "install the lock: make install, or use the image"


class Probe:
    """The checks of one recipe; later ones use what earlier ones loaded.

    Args:
        recipe: what is to be trained.
        deepspeed: whether it is trained with DeepSpeed.
    """

    def __init__(self, recipe: Recipe, *, deepspeed: bool) -> None:
        self._recipe = recipe
        self._deepspeed = deepspeed
        self._config: dict[str, Any] = {}
        self._tokenizer: Any = None
        self._data: Any = None

    def findings(self) -> list[Finding]:
        """Every check's result, in order."""
        return [_guarded(name, check) for name, check in self.checks().items()]

    def checks(self) -> dict[str, Callable[[], Finding]]:
        """The checks by name."""
        return {
            "torch": self.torch,
            "attention": self.attention,
            "DeepSpeed": self.deepspeed,
            "vLLM": self.vllm,
            "bitsandbytes": self.bitsandbytes,
            "architecture": self.architecture,
            "tokenizer": self.tokenizer,
            "problems": self.problems,
            "prompts": self.prompts,
        }

    # --- the installation ---

    def torch(self) -> Finding:
        """torch sees every GPU that was given and can calculate on it."""
        from mini_r1.training.gpu_check import check_gpus

        return check_gpus()

    def attention(self) -> Finding:
        """The attention that the recipe names can be computed here."""
        wanted = self._recipe.attn_implementation
        if wanted != "flash_attention_2":
            return ok(f"{wanted or 'sdpa'}: torch's own")
        return _imports(
            ("flash_attn", "flash_attn_2_cuda"),  # an installation without the second is an empty one
            f"flash-attn {_version('flash-attn')}",
            "set attn_implementation: sdpa, or use the image that brings flash-attn",
        )

    def deepspeed(self) -> Finding:
        """DeepSpeed can be imported, where the recipe is trained with it."""
        if not self._deepspeed:
            return skip("not used")
        with needs_extra("gpu", deepspeed=True):
            return ok(f"DeepSpeed {_version('deepspeed')}")

    def vllm(self) -> Finding:
        """vLLM can be imported, where the recipe uses it."""
        if not self._recipe.use_vllm:
            return skip("not used")
        return _imports(("vllm",), f"vLLM {_version('vllm')}", f"{INSTALL}, or set use_vllm: false")

    def bitsandbytes(self) -> Finding:
        """bitsandbytes can be imported, where the recipe quantizes or has an 8-bit optimizer."""
        recipe = self._recipe
        if not (recipe.load_in_4bit or recipe.load_in_8bit or "8bit" in recipe.optim or "paged" in recipe.optim):
            return skip("not used")
        return _imports(("bitsandbytes",), f"bitsandbytes {_version('bitsandbytes')}", INSTALL)

    # --- model and data ---

    def architecture(self) -> Finding:
        """The pinned transformers knows the model's kind, and its positions are enough for the recipe's lengths."""
        if self._recipe.built_in:
            return ok("qwen2, made by the kit")
        from mini_r1.generation.model import check_configuration

        recipe, name = self._recipe, self._recipe.model_name_or_path
        self._config = check_configuration(name, recipe.model_revision, recipe.longest_sequence)
        if not self._config:
            return ok(f"{name} is an adapter: its base model is looked at when it is loaded")
        return ok(f"{self._config['model_type']}: known")

    def tokenizer(self) -> Finding:
        """The tokenizer loads, has a chat template and padding, and fits the model's vocabulary."""
        from mini_r1.generation.model import load_tokenizer, refuse_other_vocabulary

        recipe = self._recipe
        if recipe.tokenizer_name_or_path is None and recipe.built_in:
            from mini_r1.training.from_scratch import build_tokenizer

            self._tokenizer = build_tokenizer(recipe.built_in)
            return ok("the kit's own")
        name = recipe.tokenizer_name_or_path or recipe.model_name_or_path
        self._tokenizer = load_tokenizer(name, None if recipe.tokenizer_name_or_path else recipe.model_revision)
        rows = self._config.get("vocab_size")
        if isinstance(rows, int):
            refuse_other_vocabulary(rows, self._tokenizer)
        return ok(f"{name}: {len(self._tokenizer):,} tokens, with a chat template")

    def problems(self) -> Finding:
        """The data can be read, split, and has problems with a solution."""
        from mini_r1.training import prepare

        self._data = prepare.load_task_data(self._recipe)
        prepare.refuse_unsolvable(self._data)
        return ok(f"{len(self._data.train):,} to train on, {len(self._data.held_out):,} held out")

    def prompts(self) -> Finding:
        """No prompt of the real rows is longer than max_prompt_length."""
        from mini_r1.training import prepare

        if self._tokenizer is None or self._data is None:
            return skip("needs a tokenizer and data")
        rows = prepare.prompts(self._recipe, self._data.train, self._tokenizer)
        prepare.held_out_rows(self._recipe, self._data, self._tokenizer)
        return ok(f"{len(rows):,} of at most {self._recipe.max_prompt_length} tokens")


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    """A check's result under its name; the kit's errors are results, and so is what an installation breaks with."""
    try:
        return check().named(name)
    except KitError as error:
        return from_error(error).named(name)
    except Exception as error:  # what a broken installation raises cannot be listed
        return fail(f"{type(error).__name__}: {first_line(error)}", INSTALL, "recipe").named(name)


def _imports(modules: Sequence[str], found: str, fix: str) -> Finding:
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # ImportError mostly; native libraries and DeepSpeed's probing raise others
            return fail(f"{module} cannot be imported: {first_line(error)}", fix, "recipe")
    return ok(found)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def probe(recipe_name: str, overrides: Sequence[str], *, deepspeed: bool) -> list[Finding]:
    """Every finding about a recipe in this process's environment; never raises for what is wrong with either."""
    try:
        recipe = load_recipe(find_recipe(recipe_name), overrides)
    except KitError as error:
        return [from_error(error).named("recipe")]
    return Probe(recipe, deepspeed=deepspeed).findings()


def main(arguments: Sequence[str]) -> None:
    """Print the findings as JSON on what was standard output; whatever libraries print goes to standard error."""
    parser = argparse.ArgumentParser(prog="python -m mini_r1.training.probe")
    parser.add_argument("recipe")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--deepspeed", default="none")
    given = parser.parse_args(arguments)
    with ExitStack() as stack:
        out = stack.enter_context(os.fdopen(os.dup(1), "w", encoding="utf-8"))
        os.dup2(2, 1)
        stack.enter_context(no_garbage_collection())
        findings = probe(given.recipe, given.overrides, deepspeed=given.deepspeed != "none")
        json.dump({"findings": [finding.to_dict() for finding in findings]}, out)


if __name__ == "__main__":
    main(sys.argv[1:])
