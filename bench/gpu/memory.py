"""Peak memory of a training GPU against `mini-r1 plan`, item by item.

    .venv/bin/python bench/gpu/run.py --out FOLDER --only memory

Two steps of the kit's trainer through its own `train`, by the published recipe without vLLM: a random bfloat16
model of a real shape, gradient checkpointing, no DeepSpeed. Every completion of the second step has the full
`max_completion_length`, and `max_prompt_length` is the longest prompt's, so that the plan's limits are what runs. The
allocator's peak is read wherever a phase ends; inside a phase too, where something known begins:

    rollout          reading the prompts and decoding; drawing a token, by itself
    update           forward; output layer with loss and its backward pass; the backward pass of the layers
    optimizer step   the optimizer alone

Items that are tensors one can get hold of (weights, reference, gradients, optimizer states, cache) are counted by
their sizes. The plan's context and fragmentation are compared with the driver's figures, separately.

Bar: the plan's largest moment within 10 % of the measured one, without context and fragmentation.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import _common as common
from mini_r1.run.files import write_json
from mini_r1.run.run_dir import RunDir

BAR = 0.10
"""Relative error of the plan's largest moment."""
FIRST = 16
"""Tokens of a completion of the first step, which is there for the optimizer's states and for kernels to load."""
ROLLOUT = ("prefill", "decode", "draw")
UPDATE = ("forward", "head", "layers")
WORK = ("activations", "logits, later a layer's backward")
"""The plan's items of an update, which the allocator cannot tell apart."""


class Book:
    """For each phase of a step: bytes when it began, most while it lasted."""

    def __init__(self, meter: Any) -> None:
        self._meter = meter
        self._name = "load"
        self.peak: dict[str, int] = {}
        self.start: dict[str, int] = {}

    def begin(self, name: str) -> str:
        """Another phase begins; returns the one that ended."""
        before, self._name = self._name, name
        self.peak[before] = max(self.peak.get(before, 0), self._meter.peak())
        self._meter.reset()
        self.start.setdefault(name, self._meter.allocated())
        return before

    def clear(self) -> None:
        """Forget the step before."""
        self.peak.clear()
        self.start.clear()


class Watcher:
    """Puts the borders into the kit's code, for the rest of the process."""

    def __init__(self, meter: Any, policy: Any) -> None:
        self.meter, self.policy, self.book = meter, policy, Book(meter)
        self.found = {"key-value cache": 0, "logits of a decoding step": 0}
        self.seconds: dict[str, float] = {}
        self._began = "load", time.perf_counter()
        self._watch_rollout()
        self._watch_update()

    def _watch_rollout(self) -> None:
        from mini_r1.generation import sampler

        book, found, draw, select = self.book, self.found, sampler.next_token, sampler.PreallocatedCache.select

        def next_token(logits: Any, *rest: Any) -> Any:
            book.begin("draw")
            before = self.meter.allocated() - logits.nbytes
            token = draw(logits, *rest)
            found["logits of a decoding step"] = max(found["logits of a decoding step"], self.meter.peak() - before)
            book.begin("decode")
            return token

        def selected(cache: Any, *rest: Any) -> None:
            select(cache, *rest)
            size = sum(tensor.nbytes for tensor in [*cache.key_cache, *cache.value_cache])
            found["key-value cache"] = max(found["key-value cache"], size)

        sampler.next_token, sampler.PreallocatedCache.select = next_token, selected

    def _watch_update(self) -> None:
        import torch
        from mini_r1.training.attempt import Attempt
        from mini_r1.training.trainer import CountdownTrainer

        book, original, loss = self.book, Attempt.phase, CountdownTrainer.compute_loss

        def phase(attempt: Attempt, name: str, in_flight: int | None = None) -> None:
            self.clock(name)
            book.begin("prefill" if name == "rollout" else name)
            original(attempt, name, in_flight)

        def compute_loss(trainer: Any, *rest: Any, **named: Any) -> Any:
            book.begin("forward")
            return loss(trainer, *rest, **named)

        def head(module: Any, inputs: tuple[Any, ...]) -> None:
            (hidden,) = inputs
            if torch.is_grad_enabled() and hidden.requires_grad:
                book.begin("head")
                hidden.register_hook(lambda gradient: book.begin("layers") and None)

        Attempt.phase, CountdownTrainer.compute_loss = phase, compute_loss
        self.policy.model.get_output_embeddings().register_forward_pre_hook(head)

    def clock(self, name: str) -> None:
        """Seconds of the phase that ends; the reading of memory is among them."""
        common.wait_for_gpu()
        now = time.perf_counter()
        before, since = self._began
        self.seconds[before] = now - since
        self._began = name, now

    def callback(self, done: Any) -> Any:
        """For transformers: the optimizer's borders; `done` is called at the end of step 2."""
        import torch
        from transformers import TrainerCallback

        watcher = self

        class Callback(TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
                watcher.found["weights"] = sum(p.nbytes for p in model.parameters())
                watcher.found["reference model"] = sum(p.nbytes for p in watcher.policy.reference.parameters())
                watcher.found["loaded, allocated"] = watcher.meter.allocated()

            def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
                watcher.book.begin("optimizer")
                watcher.found["gradients"] = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)

            def on_step_end(self, _: Any, state: Any, *__: Any, optimizer: Any = None, **___: Any) -> None:
                watcher.book.begin("rest")
                watcher.clock("rest")
                states = [value for each in optimizer.state.values() for value in each.values()]
                watcher.found["optimizer states"] = sum(
                    value.nbytes for value in states if isinstance(value, torch.Tensor) and value.dim()
                )
                if state.global_step == 2:
                    done()
                watcher.book.clear()

        return Callback()


def measure(out: Path, scratch: Path, shape: str, prompts: int, accumulation: int, limit: int) -> None:
    """Run two steps, write what was seen, and end the process: the save at the run's end is not what is measured."""
    model = common.made_model(shape, scratch)

    import torch
    import transformers.trainer
    from _meter import CudaMeter, StandIn
    from mini_r1.generation.prompts import token_ids
    from mini_r1.training import prepare, train
    from rich.console import Console

    cuda = torch.cuda.is_available()
    meter: Any = CudaMeter() if cuda else StandIn()
    changes = {
        "max_steps": 2, "max_completion_length": limit, "per_device_train_batch_size": prompts,
        "gradient_accumulation_steps": accumulation,
    }  # fmt: skip
    recipe = common.bench_recipe(model, **changes)
    data = prepare.load_task_data(recipe)
    with nullcontext() if cuda else meter:
        policy = prepare.load_policy(recipe, prepare.find_model(recipe, data, Console(file=sys.stderr)))
        step = prompts * accumulation
        rows = prepare.ordered_dataset(recipe, data, policy.tokenizer, 2 * step)
        longest = max(len(ids) for ids in token_ids(policy.tokenizer, rows["prompt"]))
        # All completions of a prompt batch in one micro-batch, as the earlier records have it.
        changes["max_tokens_per_micro_batch"] = prompts * recipe.num_generations * (longest + limit)
        recipe = common.bench_recipe(model, **changes, max_prompt_length=longest)
        table = common.table_of_lengths(
            rows, policy.tokenizer, lambda row: [min(limit, FIRST) if row < step else limit] * recipe.num_generations
        )
        watcher = Watcher(meter, policy)
        common.DrawnLengths(table, policy.tokenizer.eos_token_id).into_the_kit()

        def done() -> None:
            peaks, start = dict(watcher.book.peak), dict(watcher.book.start)
            write_json(out, report(recipe, watcher, peaks, start, longest))
            os._exit(0)

        transformers.trainer.DEFAULT_CALLBACKS.append(watcher.callback(done))
        train.prepare.load_policy = lambda *_: policy
        # The longest prompt of all the run's problems may be longer than of these rows.
        train.prepare.ordered_dataset = lambda *_: rows
        train.train(recipe, RunDir(scratch / f"run-{out.stem}"), ["bench"], Console(file=sys.stderr))


def report(recipe: Any, watcher: Watcher, peaks: dict[str, int], start: dict[str, int], longest: int) -> dict[str, Any]:
    """Measured and planned, in bytes; each a dictionary by item."""
    from mini_r1.machine.roles import assign
    from mini_r1.plan.memory import PHASES, STEP
    from mini_r1.plan.memory import ROLLOUT as AT_ROLLOUT
    from mini_r1.plan.memory import UPDATE as AT_UPDATE
    from mini_r1.plan.planner import make_plan

    found, meter = watcher.found, watcher.meter
    plan = make_plan(
        recipe, assign([["0"]], use_vllm=False, on_cpu=False), gpu_memory_gib=80.0, deepspeed="none", on_cpu=False
    )  # fmt: skip
    assert plan.memory is not None, plan.errors + plan.warnings
    planned = {item.name: item.bytes for item in plan.memory.items}
    overhead = planned.pop("CUDA context and fragmentation")
    states = found["weights"] + found["reference model"] + found["optimizer states"]
    with_gradients = states + found["gradients"]
    measured = {
        name: found[name]
        for name in (
            "weights", "reference model", "gradients", "optimizer states", "key-value cache",
            "logits of a decoding step",
        )
    }  # fmt: skip
    measured["optimizer's temporaries"] = peaks["optimizer"] - start["optimizer"]
    measured["activations and logits"] = max(peaks[name] for name in UPDATE) - with_gradients
    planned["activations and logits"] = sum(planned.pop(name) for name in list(planned) if name in WORK)
    moments = {
        AT_ROLLOUT: max(peaks[name] for name in ROLLOUT),
        "reference": peaks["reference"],
        AT_UPDATE: max(peaks[name] for name in UPDATE),
        STEP: peaks["optimizer"],
    }
    planned_at = {phase: plan.memory.at(phase) * 2**30 - overhead for phase in PHASES}
    most = max(moments.values())
    return {
        "complete": True,
        "meter": meter.name,
        "batch": {
            "prompts": recipe.per_device_train_batch_size, "accumulation": recipe.gradient_accumulation_steps,
            "generations": recipe.num_generations, "prompt_tokens": longest,
            "completion_tokens": recipe.max_completion_length,
        },
        "seconds": {name: watcher.seconds[name] for name in ("rollout", "score", "reference", "update")},
        "items": {name: {"planned": planned.get(name), "measured": bytes_} for name, bytes_ in measured.items()},
        "moments": {name: {"planned": planned_at.get(name), "measured": bytes_} for name, bytes_ in moments.items()},
        "largest": {"planned": max(planned_at.values()), "measured": most},
        "error": max(planned_at.values()) / most - 1,
        "bar": BAR,
        "parts": {  # above the states that are there all the time, gradients included in the update's
            **{name: peaks[name] - states for name in (*ROLLOUT, "reference")},
            **{name: peaks[name] - with_gradients for name in UPDATE},
        },
        "planned_parts": planned_parts(plan.setup),
        "overhead": {
            "planned": overhead, "context": meter.context(), "reserved": meter.reserved(),
            "fragmentation": meter.reserved() - most, "loaded": found["loaded, allocated"],
            "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""),
        },
    }  # fmt: skip


def planned_parts(setup: Any) -> dict[str, float]:
    """The formula's own parts, to correct it by: what is there at once is not all of them.

    `inputs of the layers` are there throughout, `one layer` and `its gradients` only after the `logits` are gone.
    """
    from mini_r1.plan.activations import layer_bytes, logits_bytes
    from mini_r1.plan.memory import micro_batch, update_limits

    shape, batch = setup.shape, micro_batch(setup, update_limits(setup))
    each, residual = setup.compute_bytes, setup.weight_bytes
    layer = layer_bytes(shape, batch.attention, residual=residual, compute=each)
    tokens = batch.sequences * batch.length
    return {
        "inputs of the layers": tokens * shape.layers * residual * shape.hidden,
        "one layer": tokens * layer,
        "its gradients": tokens * (3 * each * shape.intermediate + 8 * shape.hidden),
        "last norm": tokens * shape.hidden * (4 + residual + each),
        "logits": logits_bytes(shape, batch),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--shape", choices=common.SHAPES, required=True)
    parser.add_argument("--prompts", type=int, default=1, help="per device and micro step")
    parser.add_argument("--accumulation", type=int, default=8)
    parser.add_argument("--limit", type=int, default=512, help="tokens of every completion")
    given = parser.parse_args()
    measure(given.out, given.scratch, given.shape, given.prompts, given.accumulation, given.limit)


if __name__ == "__main__":
    main()
