"""Seconds of an optimizer step on one GPU: the kit's trainer against stock TRL 0.14.0, in one run, taking turns.

    .venv/bin/python bench/gpu/run.py --out FOLDER --only step-time

Both train the same random bfloat16 model by the published recipe on one worker: 8 prompts x 8 completions
a step, accumulation 8, generation by transformers. The kit runs through its own `train`; stock is TRL's GRPOTrainer
with the kit's rewards as plain functions. Same problems in the same order, and each completion has the same length on
both sides: drawn in advance (`_common.py`), because a random model never ends by itself.

Each side is a separate process that waits while the other has its turn of one step; who begins changes from round to
round. Before a side waits it gives the memory that it does not need back to the driver. At 1.5B stock's own peak is so
near to 80 GiB (by reckoning 58) that the kit also moves its weights and optimizer states to the host meanwhile. Neither
is timed.

`gradient_checkpointing` is off on both sides, other than in the recipe. It would be to the kit's advantage: with it, a
model of transformers 4.48.1 in training mode generates without its cache, and stock never leaves training mode. What
that costs is measured apart, a few tokens at the end.

Times are wall time with the GPU waited for wherever a phase ends. Bar: stock / kit at least 3, over the timed rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import _common as common
from mini_r1.run.files import read_object, write_json
from mini_r1.run.run_dir import RunDir

BAR = 3.0
"""Stock / kit, seconds of a step."""
KIT, STOCK = "kit", "stock"
FINISH = 0
"""In place of a number of steps: measure what is left to measure, and report it."""
AT_ONCE = {"cacheless_rows": 8, "cacheless_context": 544, "cacheless_tokens": 24}


# --- a side, in a separate process


class Stopwatch:
    """Seconds of each phase; the GPU is waited for wherever one ends."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._name = "waiting"
        self._since = time.perf_counter()

    def begin(self, name: str) -> str:
        """Another phase begins; returns the one that ended."""
        common.wait_for_gpu()
        now = time.perf_counter()
        self.seconds[self._name] += now - self._since
        before, self._name, self._since = self._name, name, now
        return before

    def during(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as a separate phase."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            before = self.begin(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.begin(before)

        timed.__name__ = getattr(function, "__name__", name)
        return timed


def work(side: str, job: dict[str, Any], parent: Connection) -> None:
    """Train one side, a step for each permit; after each step send its seconds, phases, lengths and memory."""
    folder = Path(job["folder"]) / side
    with (folder / "log.txt").open("w") as log, redirect_stdout(log):
        import transformers.trainer
        from mini_r1.training import prepare
        from rich.console import Console

        recipe = common.bench_recipe(
            Path(job["model"]), max_steps=job["steps"], gradient_checkpointing="false",
            max_completion_length=job["limit"],
        )  # fmt: skip
        data = prepare.load_task_data(recipe)
        policy = prepare.load_policy(recipe, prepare.find_model(recipe, data, Console(file=log)))
        rows = prepare.ordered_dataset(recipe, data, policy.tokenizer, common.PROMPTS * job["steps"])
        table = common.table_of_lengths(rows, policy.tokenizer, lambda row: lengths_of(job, row))
        drawn = common.DrawnLengths(table, policy.tokenizer.eos_token_id)
        turns = Turns(parent, Stopwatch(), policy, park=job["park"] == side)
        transformers.trainer.DEFAULT_CALLBACKS.append(turns.callback())
        {KIT: train_kit, STOCK: train_stock}[side](recipe, policy, rows, drawn, turns, folder)


def lengths_of(job: dict[str, Any], row: int) -> list[int]:
    """Lengths of the completions of a row; those of the first step are for warming up."""
    drawn = common.drawn_lengths(row, job["limit"], job["attempt"])
    return [max(2, length // common.WARM_UP) for length in drawn] if row < common.PROMPTS else drawn


class Turns:
    """Lets the parent say when this side runs a step."""

    def __init__(self, parent: Connection, watch: Stopwatch, policy: Any, park: bool) -> None:
        import torch

        self._parent, self.watch, self._policy = parent, watch, policy
        self._cuda = torch.cuda if torch.cuda.is_available() else None
        self._park = park
        self.rolled: list[int] = []
        """Tokens of the step's completions."""
        self.at_end: Callable[[], dict[str, Any]] = dict

    def callback(self) -> Any:
        from transformers import TrainerCallback

        turns = self

        class Callback(TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, *_: Any, **values: Any) -> None:
                turns._wait("ready", values)

            def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
                turns.watch.begin("optimizer")

            def on_step_end(self, *_: Any, **values: Any) -> None:
                turns.watch.begin("waiting")
                turns._wait(turns._report(), values)  # after the last step too: what follows would disturb the other

        return Callback()

    def _report(self) -> dict[str, Any]:
        phases = {name: seconds for name, seconds in self.watch.seconds.items() if name != "waiting"}
        memory = {}
        if self._cuda:
            memory = {"peak": self._cuda.max_memory_allocated(), "reserved": self._cuda.max_memory_reserved()}
        tokens, self.rolled = self.rolled, []
        return {"seconds": sum(phases.values()), "phases": phases, "lengths": tokens, **memory}

    def _wait(self, said: Any, values: dict[str, Any]) -> None:
        state = self._state(values) if self._park else []
        homes = [tensor.device for tensor in state]
        for tensor in state:
            tensor.data = tensor.data.to("cpu")
        if self._cuda:
            self._cuda.empty_cache()
        self._parent.send(said)
        while self._parent.recv() == FINISH:
            for tensor, home in zip(state, homes, strict=True):
                tensor.data = tensor.data.to(home)
            self._parent.send(self.at_end())
        for tensor, home in zip(state, homes, strict=True):
            tensor.data = tensor.data.to(home)
        if self._cuda:
            self._cuda.reset_peak_memory_stats()
        self.watch.begin("rest")
        self.watch.seconds.clear()

    def _state(self, values: dict[str, Any]) -> list[Any]:
        """Weights, the reference's too, and optimizer states."""
        import torch

        tensors = [*values["model"].parameters(), *self._policy.reference.parameters()]
        if values.get("optimizer") is not None:
            states = values["optimizer"].state.values()
            tensors += [each for state in states for each in state.values() if isinstance(each, torch.Tensor)]
        return [tensor for tensor in tensors if tensor.device.type != "cpu"]


def train_kit(recipe: Any, policy: Any, rows: Any, drawn: Any, turns: Turns, folder: Path) -> None:
    """Through `mini_r1.training.train.train`, as the command line does it, with the model that is loaded already."""
    from mini_r1.training import train
    from mini_r1.training.attempt import Attempt
    from rich.console import Console

    drawn.into_the_kit()
    original, judged = Attempt.phase, Attempt.rollout

    def phase(self: Attempt, name: str, in_flight: int | None = None) -> None:
        turns.watch.begin(name)
        original(self, name, in_flight)

    def rollout(self: Any, step: int, records: list[dict[str, Any]]) -> None:
        turns.rolled += [record["tokens"] for record in records]
        judged(self, step, records)

    Attempt.phase, Attempt.rollout = phase, rollout
    train.prepare.load_policy = lambda *_: policy
    train.train(recipe, RunDir(folder / "run"), ["bench"], Console(file=sys.stdout))


def train_stock(recipe: Any, policy: Any, rows: Any, drawn: Any, turns: Turns, folder: Path) -> None:
    """TRL's GRPOTrainer as it comes, but for the order of its rows, the lengths, and stopwatches around its parts."""
    import torch
    from torch.utils.data import SequentialSampler
    from trainer_speed import reward_function
    from transformers import set_seed
    from trl import GRPOConfig, GRPOTrainer

    known = {field.name for field in dataclasses.fields(GRPOConfig)}
    said = {key: getattr(recipe, key) for key in recipe.model_fields_set & known}  # the rest as TRL has it
    args = GRPOConfig(
        **{
            **said, "output_dir": str(folder), "save_strategy": "no", "report_to": [], "disable_tqdm": True,
            "use_cpu": not torch.cuda.is_available(),
        }
    )  # fmt: skip
    set_seed(recipe.seed)
    watch, model = turns.watch, policy.model
    trainer = GRPOTrainer(
        model,
        reward_funcs=[watch.during("score", reward_function(name)) for name in recipe.resolved_rewards()],
        args=args,
        train_dataset=rows,
        processing_class=policy.tokenizer,
    )
    turns._policy = dataclasses.replace(policy, reference=trainer.ref_model)  # stock made another one
    trainer._get_train_sampler = lambda: SequentialSampler(rows)
    plain = model.generate
    drawn.into_stock(model)
    ending = model.generate

    def generate(**inputs: Any) -> Any:
        ids = ending(**inputs)
        turns.rolled += generated_lengths(ids[:, inputs["input_ids"].shape[1] :], policy.tokenizer.eos_token_id)
        return ids

    step = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        watch.begin("update")
        return step(*args, **kwargs)

    model.generate = watch.during("rollout", generate)
    trainer.ref_model.forward = watch.during("reference", trainer.ref_model.forward)
    trainer.training_step = training_step
    turns.at_end = lambda: cacheless(model, plain, policy.tokenizer)
    trainer.train()


def generated_lengths(ids: Any, eos: int) -> list[int]:
    """Tokens of each row up to its end token."""
    ended = ids == eos
    lengths: list[int] = (ended.int().argmax(1) + 1).where(ended.any(1), ids.shape[1]).tolist()
    return lengths


def cacheless(model: Any, generate: Callable[..., Any], tokenizer: Any) -> dict[str, Any]:
    """Seconds a token of stock's generation for one micro step half way, with and without gradient checkpointing."""
    import torch

    rows, context, tokens = AT_ONCE.values()
    ids = torch.randint(10, model.config.vocab_size, (rows, context), device=model.device)
    options = {
        "max_new_tokens": tokens, "do_sample": True, "eos_token_id": None, "pad_token_id": tokenizer.pad_token_id
    }  # fmt: skip
    watch, found = Stopwatch(), {}
    model.train()
    for name in ("with_cache", "without_cache"):
        if name == "without_cache":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for timed in (False, True):
            watch.begin(name)
            started = time.perf_counter()
            generate(ids, attention_mask=torch.ones_like(ids), **{**options, "max_new_tokens": tokens if timed else 2})
            watch.begin("waiting")
            found[name] = (time.perf_counter() - started) / tokens
    return {"rows": rows, "context": context, "seconds_a_token": found}


# --- the run


class Side:
    """A side's process, seen from here."""

    def __init__(self, name: str, job: dict[str, Any]) -> None:
        folder = Path(job["folder"]) / name
        folder.mkdir(parents=True)
        self.name, self._log = name, folder / "log.txt"
        context = multiprocessing.get_context("spawn")  # torch does not survive a fork
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=work, args=(name, job, child))
        self._process.start()
        child.close()

    def receive(self) -> Any:
        """What it says next."""
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            sys.exit(f"{self.name}: its process ended with {self._process.exitcode}\n{self._log.read_text()[-2000:]}")

    def step(self) -> dict[str, Any]:
        """Let it do one step."""
        self._pipe.send(1)
        return self.receive()  # type: ignore[no-any-return]

    def finish(self) -> dict[str, Any]:
        """What else it measures at the end."""
        self._pipe.send(FINISH)
        return self.receive()  # type: ignore[no-any-return]

    def kill(self) -> None:
        """End it at any moment: the save at the end of a run is not what is measured."""
        self._process.kill()
        self._process.join()


def measure(out: Path, scratch: Path, shape: str, limit: int, rounds: int, deadline: float) -> None:
    """Add rounds to a result until there are enough, or the next one would end after the deadline."""
    result = read_object(out)
    result = result if result.get("rounds") else {"shape": shape, "limit": limit, "rounds": [], "attempts": 0}
    attempt = result["attempts"]
    folder = scratch / f"step-time-{shape}-{attempt}"
    job = {
        "model": str(common.made_model(shape, scratch)), "folder": str(folder), "limit": limit, "attempt": attempt,
        "steps": rounds + 2, "park": KIT if shape == "1.5b" else None,
    }  # fmt: skip
    sides = [Side(KIT, job), Side(STOCK, job)]
    try:
        for side in sides:
            side.receive()
        warm = {side.name: side.step() for side in sides}
        print("warm-up:", {name: round(seen["seconds"], 1) for name, seen in warm.items()}, flush=True)
        longest = 0.0
        while len(result["rounds"]) < rounds and time.time() + longest < deadline:
            started = time.time()
            result["rounds"].append({side.name: side.step() for side in sides})
            result.update(attempts=attempt + 1, complete=len(result["rounds"]) >= rounds, bar=BAR)
            write_json(out, result)
            longest = 1.15 * (time.time() - started)
            sides.reverse()
        if "cacheless" not in result:
            result["cacheless"] = next(side for side in sides if side.name == STOCK).finish()
            write_json(out, result)
    finally:
        for side in sides:
            side.kill()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--shape", choices=common.SHAPES, required=True)
    parser.add_argument("--limit", type=int, default=common.LIMIT, help="longest completion")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--deadline", type=float, default=float("inf"), help="seconds since 1970")
    given = parser.parse_args()
    # Growing caches leave holes that the allocator cannot fill: without this either side may run out of memory.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    measure(given.out, given.scratch, given.shape, given.limit, given.rounds, given.deadline)


if __name__ == "__main__":
    main()
