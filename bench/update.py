"""The update and the reference pass of a step, against stock TRL 0.14.0 and against the least possible work.

    .venv/bin/python bench/update.py [--rounds 5] [--slice-rounds 1] [--json]

Floating-point operations: the kit's own code on tensors without values, in the shape of Qwen2.5-3B, over the 64
completions of a worker's step in the published recipe. Their lengths are the published distribution (bench/gpu), their
prompts real. Matrix products are counted by torch, attention by its formula. The least possible is: every prompt and
completion token passes the layers once forward for the reference and three times for the update, completion tokens
alone pass the output layer, and nothing is padded or calculated twice.

Seconds: kit and stock on one thread, in turns, in one process with one malloc setting, from the same completions.
Stock is its own `training_step`; what isn't its update is replaced: generation and decoding are given, the reward is a
list. The kit is its `get_batch_samples` and `training_step`, with completions and verdicts given: it also records
them. The demo's shape with all 512 completions of a step (lengths scaled to its 96 tokens), and two layers of
Qwen2.5-0.5B with its whole vocabulary, 8 completions of up to 640 tokens (12 GB). float32, temperature 1, with a KL
term.

Bars: at most 1.10 x the least possible, packed and padded; on the demo's shape at least 1.3 x faster than stock; on
the slice not slower.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

sys.path.insert(0, str(Path(__file__).parent / "gpu"))
from _common import GENERATIONS, HUB_ROWS, PROMPTS, SHAPES, drawn_lengths, make_tokenizer

MOST_FLOPS, DEMO_RATIO, SLICE_RATIO = 1.10, 1.3, 1.0
GPU = 80.0
"""GiB of the GPU for which the plan limits a micro-batch of the 3B shape."""
FORMULA = "formula"


# --- completions


def step(tokenizer: Any, prompts: int, limit: int) -> list[Any]:
    """The completions of a step over hub problems: random tokens in the published lengths, with random rewards."""
    import torch
    from mini_r1.generation.prompts import render, token_ids
    from mini_r1.tasks.countdown.countdown_task import CountdownTask
    from mini_r1.tasks.countdown.problem import Problem
    from mini_r1.tasks.countdown.rewards import judge
    from mini_r1.training.rollout import Completion

    rows = [json.loads(line) for line in HUB_ROWS.read_text().splitlines()[:prompts]]
    problems = [Problem(tuple(row["nums"]), row["target"]) for row in rows]
    texts = render(CountdownTask(), tokenizer, problems, "script")
    drawn, made = torch.Generator().manual_seed(0), []
    for number, (problem, text, ids) in enumerate(zip(problems, texts, token_ids(tokenizer, texts), strict=True)):
        for i, length in enumerate(drawn_lengths(number, limit)):
            answer = [*torch.randint(10, 90, (length - 1,), generator=drawn).tolist(), tokenizer.eos_token_id]
            made.append(Completion(problem, text, ids, answer, False, reward=float((number + i) % 3)))
            made[-1].verdict = judge("", problem, {"format": 1.0})
    return made


# --- floating-point operations


def formula_attention(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple[Any, None]:
    """Attention without its work, which `attention_flops` counts: all inputs still get a gradient."""
    return (query + key.mean() + value.mean()).transpose(1, 2).contiguous(), None


def attention_flops(shape: Any, lengths: Sequence[int]) -> float:
    """Forward: queries times keys, scores times values, half of the square each (FlashAttention-2, section 4.1)."""
    return sum(2 * 2 * length**2 * shape.heads * shape.head_size / 2 * shape.layers for length in lengths)


def least_flops(shape: Any, completions: Sequence[Any]) -> float:
    """The least possible of update and reference: one forward pass, and another one with twice its work backward."""
    layers = shape.layers * sum(inputs * outputs for inputs, outputs in shape.linears.values())
    output = shape.hidden * shape.vocabulary
    forward = sum(2 * layers * c.length + 2 * output * len(c.ids) for c in completions)
    return 4 * (forward + attention_flops(shape, [c.length for c in completions]))


def kit_flops(shape: Any, completions: Sequence[Any], limits: Any, *, packed: bool, checkpointing: bool) -> float:
    """What the kit does on one device under these limits."""
    import torch
    from mini_r1.training.logprobs import completion_logps
    from mini_r1.training.rollout import micro_batches, split
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM, Qwen2Config
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS[FORMULA] = formula_attention
    config = Qwen2Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16)
    model.config._attn_implementation = FORMULA
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    count = len(split(completions, limits.tokens, packed=packed))
    batches = micro_batches(
        completions, count, 1.0, completions[0], packed=packed, pad_token_id=0, device=torch.device("cpu")
    )

    def logps(batch: Any) -> Any:
        head = model.get_output_embeddings()
        return completion_logps(model, head, shape.vocabulary, batch, 0.9, limits.logits_bytes)

    total = 0.0
    for batch in batches:
        rows, width = batch["input_ids"].shape
        lengths = [c.length for c in completions] if packed else [width] * rows
        with FlopCounterMode(display=False) as counter:
            with torch.no_grad():
                logps(batch)
            logps(batch).sum().backward()
        total += counter.get_total_flops()
        if not packed:
            total += attention_flops(shape, lengths) * (5 if checkpointing else 4)
    if packed:
        total += attention_flops(shape, [c.length for c in completions]) * (5 if checkpointing else 4)
    return total


def count_flops() -> dict[str, Any]:
    """Update and reference of the 3B shape as a multiple of the least possible."""
    from mini_r1.plan.memory import update_limits
    from mini_r1.plan.shapes import recipe_shape
    from mini_r1.plan.training_setup import TrainingSetup, zero_settings
    from mini_r1.recipe.deepspeed_file import find_deepspeed
    from mini_r1.recipe.recipe_file import find_recipe, load_recipe
    from torch._subclasses.fake_tensor import FakeTensorMode

    found: dict[str, Any] = {}
    shape = recipe_shape(load_recipe(find_recipe("mini-r1-3b")))
    completions = step(make_tokenizer(shape.vocabulary), PROMPTS, 1024)
    least = least_flops(shape, completions)
    for name, packed, checkpointing in (
        ("packed", True, False), ("padded", False, False), ("packed, checkpointing", True, True),
    ):  # fmt: skip
        values = {"gradient_checkpointing": str(checkpointing).lower(),
                  "attn_implementation": "flash_attention_2" if packed else "sdpa"}  # fmt: skip
        if not checkpointing:
            values["gradient_checkpointing_kwargs"] = "null"
        recipe = load_recipe(find_recipe("mini-r1-3b"), [f"{key}={value}" for key, value in values.items()])
        setup = TrainingSetup(recipe, shape, 3, zero_settings(find_deepspeed("zero2"), shape), GPU)
        limits = update_limits(setup)
        with FakeTensorMode():  # every layer has the same work: one and two of them tell that of all
            one, two = (
                kit_flops(replace(shape, layers=n), completions, limits, packed=packed, checkpointing=checkpointing)
                for n in (1, 2)
            )
        flops = one + (shape.layers - 1) * (two - one)
        found[name] = {"ratio": flops / least, "petaflop": flops / 1e15, "tokens": limits.tokens}
    return {"least_petaflop": least / 1e15, **found}


# --- seconds


def kit_side(folder: Path, model: Any, reference: Any, tokenizer: Any, completions: list[Any], args: Any) -> Any:
    """Return a function that does update and reference of a step by the kit's trainer."""
    import datasets
    from mini_r1.generation.sampler import never
    from mini_r1.plan.memory import update_limits
    from mini_r1.plan.shapes import recipe_shape
    from mini_r1.plan.training_setup import TrainingSetup
    from mini_r1.recipe.recipe_file import find_recipe, load_recipe
    from mini_r1.run.run_dir import RunDir
    from mini_r1.training import trainer as kit
    from mini_r1.training.prepare import Policy
    from mini_r1.training.rollout_engines import PolicyEngine
    from mini_r1.training.world import World

    recipe = load_recipe(find_recipe("demo-cpu"), ["drop_zero_variance_groups=false"])
    attempt = Mock(callbacks=[], run=RunDir(folder), world=World(60), recipe=recipe, stop=never)
    rows = [{"prompt": "", "nums": [1], "target": 1}] * len(completions)
    kit.score = lambda *_: None  # the verdicts are given
    trainer = kit.CountdownTrainer(
        attempt, Policy(model, reference, tokenizer), PolicyEngine(attempt.world, [], tokenizer), args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        limits=update_limits(TrainingSetup(recipe, recipe_shape(recipe), on_cpu=True)),
    )  # fmt: skip
    trainer._complete = lambda *_: completions
    count = args.gradient_accumulation_steps

    def work() -> None:
        trainer.model.zero_grad()
        substeps, _ = trainer.get_batch_samples(iter([[{}]] * count), count)
        for batches in substeps:
            trainer.training_step(trainer.model, batches)

    return work


def stock_side(model: Any, reference: Any, tokenizer: Any, completions: list[Any], args: Any) -> Any:
    """Return a function that does update and reference of a step by TRL's trainer."""
    import datasets
    import torch
    from trl import GRPOTrainer
    from trl.trainer import grpo_trainer

    size = args.per_device_train_batch_size * GENERATIONS
    groups = [completions[i : i + size] for i in range(0, len(completions), size)]
    rewards: Iterator[list[float]] = iter(())
    grpo_trainer.create_reference_model = lambda _: reference
    trainer = GRPOTrainer(
        model, reward_funcs=lambda prompts, completions: next(rewards), args=args, processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list([{"prompt": ""}]),
    )  # fmt: skip
    tokenizer.batch_decode = lambda ids, **_: [""] * len(ids)
    answers = [
        torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(c.ids) for c in group], batch_first=True, padding_value=tokenizer.pad_token_id
        )
        for group in groups
    ]
    given: Iterator[torch.Tensor] = iter(())
    model.generate = lambda input_ids, **_: torch.cat(
        [input_ids.repeat_interleave(GENERATIONS, dim=0), next(given)], dim=1
    )

    def work() -> None:
        nonlocal rewards, given
        rewards, given = iter([[c.reward for c in group] for group in groups]), iter(answers)
        trainer.model.zero_grad()
        for group in groups:
            trainer.training_step(trainer.model, [{"prompt": c.prompt} for c in group[::GENERATIONS]])

    return work


def seconds(build: Callable[[], Any], tokenizer: Any, prompts: int, per_device: int, limit: int, rounds: int) -> Any:
    """Time the sides in turns after one warm-up of each; the ratio is stock / kit."""
    import copy

    from trl import GRPOConfig

    completions = step(tokenizer, prompts, limit)
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            folder, per_device_train_batch_size=per_device, gradient_accumulation_steps=prompts // per_device,
            num_generations=GENERATIONS, max_completion_length=limit, max_prompt_length=None, beta=0.001,
            temperature=1.0, report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        work = {
            "kit": kit_side(Path(folder), build(), build().eval(), copy.deepcopy(tokenizer), completions, args),
            "stock": stock_side(build(), build().eval(), copy.deepcopy(tokenizer), completions, args),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
        for number in range(rounds + 1):
            for name in sorted(work, reverse=bool(number % 2)):
                started = time.perf_counter(), time.process_time()
                work[name]()
                if number:
                    taken[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    wall, cpu = (
        [stock[i] / kit[i] for kit, stock in zip(taken["kit"], taken["stock"], strict=True)] for i in (0, 1)
    )  # fmt: skip
    return {
        "seconds": {name: statistics.median(wall for wall, _ in values) for name, values in taken.items()},
        "ratio": statistics.median(wall), "cpu_ratio": statistics.median(cpu), "lowest": min(wall),
    }  # fmt: skip


def time_demo(rounds: int) -> Any:
    from mini_r1.generation.model import load_tokenizer
    from mini_r1.training.from_scratch import save_untrained
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        path = save_untrained(Path(folder) / "model")
        return seconds(
            lambda: AutoModelForCausalLM.from_pretrained(path), load_tokenizer(str(path), None), 64, 16, 96, rounds
        )


def time_slice(rounds: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    shape = replace(SHAPES["0.5b"], layers=2)
    config = Qwen2Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip

    def build() -> Any:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)

    return seconds(build, make_tokenizer(shape.vocabulary), 1, 1, 640, rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured turns of the demo's shape")
    parser.add_argument("--slice-rounds", type=int, default=2, help="measured turns of the slice; 0: leave it out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from mini_r1.machine.allocator import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    flops = count_flops()
    timed = {"demo": time_demo(arguments.rounds)}
    if arguments.slice_rounds:
        timed["slice of 0.5B"] = time_slice(arguments.slice_rounds)
    bars = {
        f"{name}: at most {MOST_FLOPS:.2f} x the least FLOPs": flops[name]["ratio"] <= MOST_FLOPS
        for name in ("packed", "padded")
    }
    for name, least in (("demo", DEMO_RATIO), ("slice of 0.5B", SLICE_RATIO)):
        if name in timed:
            bars[f"{name}: at least {least:.1f} x as fast as stock"] = timed[name]["ratio"] >= least
    if arguments.json:
        print(json.dumps({"flops": flops, "seconds": timed, "bars": bars}))
        return 0 if all(bars.values()) else 1
    print(f"3B shape, 64 completions, update and reference: at least {flops['least_petaflop']:.3f} PFLOP")
    for name in ("packed", "padded", "packed, checkpointing"):
        print(f"  kit, {name:22} {flops[name]['petaflop']:.3f} PFLOP, {flops[name]['ratio']:.3f} x; "
              f"micro-batches of at most {flops[name]['tokens']:,} tokens")  # fmt: skip
    for name, side in timed.items():
        print(f"{name}: kit {side['seconds']['kit']:.2f} s, stock {side['seconds']['stock']:.2f} s; stock / kit "
              f"{side['ratio']:.2f} x (CPU time {side['cpu_ratio']:.2f} x, lowest {side['lowest']:.2f} x)")  # fmt: skip
    for bar, met in bars.items():
        print(f"bar: {bar}: {'met' if met else 'MISSED'}")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
