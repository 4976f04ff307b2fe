"""Seconds of the update alone, step by step: why was it slower than stock's on the GPU that was lent?

    .venv/bin/python bench/gpu/run.py --out FOLDER --only update

One side, the kit or stock TRL 0.14.0, trains a random model on completions that are drawn in advance: nothing is
generated. A step is the reference pass over 64 completions, and forward and backward pass in 8 micro-batches. The
learning rate and everything else is the published recipe's, gradient checkpointing is off, as in step_time.py.

    same shapes    two warm-up and three timed steps with completions of the same lengths
    profile        one more step with torch.profiler: the ten largest kernels, launches, host synchronisations
    variants       each with lengths that no step had before ("new"), then again ("again")

Each variant changes one suspect, in PyTorch or in the kit's module, and nothing else; what the attention gets then and
which of PyTorch's kernels it selects is recorded.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import _common as common
import step_time
from mini_r1.run.files import write_json

WARM_UP, TIMED = 2, 3
"""Steps with the same shapes."""
SHORTER = 16
"""Tokens by which the longest completion of each variant is shorter than the one's before: every shape is new."""
KERNELS = 10
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = (
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
)  # fmt: skip
"""Operations that make the host wait for the GPU, and the calls of CUDA that do."""


# --- what a variant changes


@contextmanager
def attention(mask: bool) -> Iterator[None]:
    """Give every causal attention of several tokens an explicit mask, or none.

    None is the same calculation only without padding on the left; its time is the same anyway.
    """
    import torch
    from torch.nn import functional

    plain = functional.scaled_dot_product_attention
    kept: dict[tuple[int, ...], torch.Tensor] = {}

    def replaced(query: Any, key: Any, value: Any, attn_mask: Any = None, is_causal: bool = False, **named: Any) -> Any:
        tokens = query.shape[-2]
        if tokens > 1 and tokens == key.shape[-2]:
            attn_mask, is_causal = None, True
            if mask:
                shape = (query.shape[0], 1, tokens, tokens)
                if shape not in kept:  # one for all layers, as transformers makes it
                    kept.clear()
                    least = torch.full(shape, torch.finfo(query.dtype).min, dtype=query.dtype, device=query.device)
                    kept[shape] = least.triu(1)
                attn_mask, is_causal = kept[shape], False
        return plain(query, key, value, attn_mask=attn_mask, is_causal=is_causal, **named)

    with patch.object(functional, "scaled_dot_product_attention", replaced):
        yield


@contextmanager
def no_cudnn_attention() -> Iterator[None]:
    """Take cuDNN's kernel away from PyTorch: newer versions prefer it on an H100, and it plans each new shape."""
    import torch

    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextmanager
def chunks(recompute: bool, preserve_rng_state: bool = False) -> Iterator[None]:
    """Calculate each chunk's logits twice or keep them, however much memory is left; save the random state or not."""
    from mini_r1.training import logprobs, trainer
    from torch.utils.checkpoint import checkpoint

    plain = trainer.completion_logps

    def keeps_nothing(model: Any, head: Any, vocabulary: int, inputs: Any, temperature: float, *_: Any) -> Any:
        return plain(model, head, vocabulary, inputs, temperature)

    def replaced(function: Callable[..., Any], *args: Any, **_: Any) -> Any:
        if not recompute:
            return function(*args)
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)

    with patch.object(trainer, "completion_logps", keeps_nothing), patch.object(logprobs, "checkpoint", replaced):
        yield


@contextmanager
def handed_back() -> Iterator[None]:
    """Give the allocator's free memory back to the driver before the step, as step_time.py does before each turn."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    yield


@dataclass(frozen=True)
class Variant:
    """A name, and what is changed meanwhile."""

    name: str
    changes: tuple[Callable[[], Any], ...] = ()
    stock: bool = False
    """Whether it says anything about stock."""


VARIANTS = (
    Variant("as it is", stock=True),
    Variant("explicit mask", (partial(attention, True),), stock=True),
    Variant("no mask", (partial(attention, False),)),
    Variant("explicit mask, cuDNN's attention off", (partial(attention, True), no_cudnn_attention)),
    Variant("no mask, cuDNN's attention off", (partial(attention, False), no_cudnn_attention)),
    Variant("logits kept", (partial(chunks, recompute=False),)),
    Variant("logits calculated twice", (partial(chunks, recompute=True),)),
    Variant("the same, random state saved", (partial(chunks, recompute=True, preserve_rng_state=True),)),
    Variant("memory handed back before", (handed_back,), stock=True),
)


@dataclass(frozen=True)
class Step:
    """One optimizer step of the plan."""

    what: str
    """`warm-up`, `timed`, `profile`, or the name of a variant."""
    draw: int = 0
    """Which lengths: another one has other shapes."""
    changes: tuple[Callable[[], Any], ...] = ()
    again: bool = False


def steps_of(side: str) -> list[Step]:
    """All steps of a side, in their order."""
    steps = [Step("warm-up")] * WARM_UP + [Step("timed")] * TIMED + [Step("profile")]
    wanted = [variant for variant in VARIANTS if side == step_time.KIT or variant.stock]
    for draw, variant in enumerate(wanted, start=1):
        steps += [Step(variant.name, draw, variant.changes, again) for again in (False, True)]
    return steps


# --- completions


class Given:
    """Makes both trainers' generation return completions that are there already: random tokens of drawn lengths."""

    def __init__(self, run: Run, vocabulary: int, eos: int, limit: int, generations: int) -> None:
        self._run, self._vocabulary, self._eos, self._limit = run, vocabulary, eos, limit
        self._generations = generations
        self._row = 0

    def next(self, prompts: int) -> list[list[int]]:
        """Token ids of the completions of the step's next prompts."""
        import random

        draw = self._run.step.draw
        found = []
        for row in range(self._row, self._row + prompts):
            chosen = random.Random(f"{common.SEED}/{draw}/{row}")
            lengths = common.drawn_lengths(row, max(16, self._limit - SHORTER * draw))
            for length in lengths[: self._generations]:
                # Above the marks, so that no end token is drawn.
                found.append([*(chosen.randrange(10, self._vocabulary) for _ in range(length - 1)), self._eos])
        self._row = (self._row + prompts) % common.PROMPTS
        return found

    def into_the_kit(self) -> None:
        """Replace the sampler, for the rest of the process."""
        from mini_r1.generation.vllm_client import Generated
        from mini_r1.training.rollout_engines import PolicyEngine

        PolicyEngine.sample = lambda _, wrapped, accelerator, prompts, *rest, **named: [  # type: ignore[method-assign]
            Generated(ids) for ids in self.next(len(prompts))
        ]

    def into_stock(self, model: Any) -> None:
        """Replace `generate`."""
        import torch

        def generate(input_ids: Any, **_: Any) -> Any:
            made = self.next(len(input_ids))
            width = max(map(len, made))
            right = torch.tensor([ids + [self._eos] * (width - len(ids)) for ids in made], device=input_ids.device)
            return torch.cat([input_ids.repeat_interleave(self._generations, dim=0), right], dim=1)

        model.generate = generate


# --- the run


class Run:
    """Goes through the steps of a side: sets its changes, takes its figures. In the place of step_time's `Turns`."""

    def __init__(self, side: str, out: Path, facts: dict[str, Any]) -> None:
        import torch

        self._steps, self._out, self._result = steps_of(side), out, {**facts, "side": side, "steps": []}
        self._at = 0
        self._torch, self._changes = torch, ExitStack()
        self._profile: Any = None
        self.watch = step_time.Stopwatch()
        self.rolled: list[int] = []
        self.at_end: Callable[[], dict[str, Any]] = dict
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self._watch_attention()

    @property
    def step(self) -> Step:
        """The one that runs."""
        return self._steps[min(self._at, len(self._steps) - 1)]

    def callback(self) -> Any:
        """For transformers."""
        from transformers import TrainerCallback

        run = self

        class Callback(TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                run._begin()

            def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
                run.watch.begin("optimizer")

            def on_step_end(self, *_: Any, **__: Any) -> None:
                run._end()

        return Callback()

    def _watch_attention(self) -> None:
        """Count the calls of the attention: mask or none, shape, and PyTorch's choice of the kernel."""
        from torch.nn import functional

        plain, chosen = functional.scaled_dot_product_attention, {}

        def counted(query: Any, key: Any, value: Any, attn_mask: Any = None, **named: Any) -> Any:
            how = "none" if attn_mask is None else "explicit"
            shape = "x".join(map(str, query.shape))
            if (how, shape) not in chosen:
                options = {name: named[name] for name in ("dropout_p", "is_causal") if name in named}
                kernel = self._torch._fused_sdp_choice(query, key, value, attn_mask, **options)
                chosen[how, shape] = self._torch.nn.attention.SDPBackend(kernel).name
            self._seen[how, shape, chosen[how, shape]] += 1
            return plain(query, key, value, attn_mask=attn_mask, **named)

        functional.scaled_dot_product_attention = counted  # type: ignore[assignment]
        self._forget = chosen.clear

    def _begin(self) -> None:
        self._forget()
        self._seen.clear()
        for change in self.step.changes:
            self._changes.enter_context(change())
        if self.step.what == "profile":
            from torch.profiler import ProfilerActivity, profile

            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if self._torch.cuda.is_available() else []
            self._profile = profile(activities=activities)
            self._profile.__enter__()
        self.watch.begin("rest")
        self.watch.seconds.clear()

    def _end(self) -> None:
        self.watch.begin("waiting")
        step = self.step
        self._changes.close()
        if self._profile is not None:
            self._profile.__exit__(None, None, None)
            self._result["profile"] = profiled(self._profile, self._torch.cuda.is_available())
            self._profile = None
        phases = {name: seconds for name, seconds in self.watch.seconds.items() if name != "waiting"}
        self._result["steps"].append({
            "what": step.what, "again": step.again, "phases": phases, "lengths": self.rolled,
            "attention": attended(self._seen),
        })  # fmt: skip
        self.rolled = []
        self._at += 1
        self._result["complete"] = self._at == len(self._steps)
        write_json(self._out, self._result)
        shown = ", ".join(f"{name} {phases.get(name, 0):.2f} s" for name in ("reference", "update"))
        print(f"step {self._at} of {len(self._steps)}, {step.what}: {shown}", flush=True)
        if self._result["complete"]:
            os._exit(0)  # the save at the end of a run is not what is measured
        self._begin()


def attended(seen: Counter[tuple[str, str, str]]) -> dict[str, Any]:
    """The attention's calls of a step: by mask and kernel, and the number of different shapes."""
    calls: Counter[str] = Counter()
    for (mask, _, kernel), count in seen.items():
        calls[f"mask {mask}, {kernel}"] += count
    return {"calls": dict(calls), "shapes": len({(mask, shape) for mask, shape, _ in seen})}


def profiled(profile: Any, cuda: bool) -> dict[str, Any]:
    """The ten largest kernels (on a CPU operations), launches, and what makes the host wait."""
    from torch.autograd import DeviceType

    averages = profile.key_averages()
    # On a GPU only its own rows: an operation's row repeats the time of its kernels.
    took = "self_device_time_total" if cuda else "self_cpu_time_total"
    kernels = [row for row in averages if cuda == (row.device_type != DeviceType.CPU) and not row.is_user_annotation]
    rows = sorted(kernels, key=lambda row: getattr(row, took), reverse=True)
    largest = [{"name": row.key, "count": row.count, "seconds": getattr(row, took) / 1e6} for row in rows[:KERNELS]]
    count = {row.key: row.count for row in averages}
    # Of nested operations the outermost: what Python or autograd called.
    called = sum(
        event.name.startswith("aten::") and not (event.cpu_parent and event.cpu_parent.name.startswith("aten::"))
        for event in profile.events()
    )
    return {
        "largest": largest,
        "all_seconds": sum(getattr(row, took) for row in kernels) / 1e6,
        "operations": called,
        "launches": sum(count.get(name, 0) for name in LAUNCHES),
        "waits": {name: count[name] for name in WAITS if name in count},
    }


def measure(out: Path, scratch: Path, shape: str, side: str, limit: int) -> None:
    """Run all steps of a side; the file has those that are done."""
    import sys

    model = common.made_model(shape, scratch)

    import torch
    import transformers.trainer
    from mini_r1.training import prepare, train
    from rich.console import Console

    run = Run(side, out, {"shape": shape, "limit": limit, "torch": torch.__version__})
    changes: dict[str, Any] = {
        "max_steps": len(steps_of(side)), "gradient_checkpointing": "false", "max_completion_length": limit
    }  # fmt: skip
    if shape == "tiny":  # a CPU multiplies bfloat16 slowly
        changes |= {"torch_dtype": "float32", "bf16": "false", "num_generations": 2}
    recipe = common.bench_recipe(model, **changes)
    console = Console(file=sys.stderr)
    data = prepare.load_task_data(recipe)
    policy = prepare.load_policy(recipe, prepare.find_model(recipe, data, console))
    first = prepare.ordered_dataset(recipe, data, policy.tokenizer, common.PROMPTS)
    rows = first.select([*range(common.PROMPTS)] * len(steps_of(side)))
    given = Given(run, policy.model.config.vocab_size, policy.tokenizer.eos_token_id, limit, recipe.num_generations)
    transformers.trainer.DEFAULT_CALLBACKS.append(run.callback())
    train.prepare.ordered_dataset = lambda *_: rows
    folder = scratch / f"run-{out.stem}"
    train_side: Callable[..., None] = {step_time.KIT: step_time.train_kit, step_time.STOCK: step_time.train_stock}[side]
    train_side(recipe, policy, rows, given, run, folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--shape", choices=common.SHAPES, required=True)
    parser.add_argument("--side", choices=(step_time.KIT, step_time.STOCK), required=True)
    parser.add_argument("--limit", type=int, default=common.LIMIT, help="longest completion")
    given = parser.parse_args()
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    measure(given.out, given.scratch, given.shape, given.side, given.limit)


if __name__ == "__main__":
    main()
