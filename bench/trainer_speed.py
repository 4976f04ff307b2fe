"""How many optimizer steps a minute? The kit's trainer against stock TRL 0.14.0, at the demo's size.

    .venv/bin/python bench/trainer_speed.py [--seeds 0 1 2] [--steps 20] [--stock-tuned] [--json]

Both start from the same warm-started model and see the same problems in the same order: the demo recipe with 8
accumulation steps, 16 x 8 x 8 = 1,024 completions a step. The kit runs through its own `train`, saves and logs
included. Stock is TRL's GRPOTrainer with the kit's rewards as plain reward functions, its rows in the given order and
no saves. They take turns of a few steps within one run, one process at a time and one thread each, so that other
load slows down both. A completion lengthens as the policy learns: the same steps are compared.

The kit also has malloc keep what it frees (`training/prepare.py`); the bar is judged against stock without it. With
--stock-tuned a third process runs stock with the same setting, and the ratio to it is printed too. CPU time is
printed with wall time: on a busy machine it varies less.

Bars: the median ratio over the seeds is at least 2 and no seed is below 1.8; after the last step held-out success
(sampled, 95 % cluster bootstrap) of the two overlaps on every random seed. About 16 minutes with --stock-tuned, less
without; the first run makes three warm starts as well (two minutes each, cached).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from _sides import KIT, Side, held_out, reward_function, take_turns, train_kit, turns

RATIO, WORST = 2.0, 1.8
"""Steps a minute, kit / stock: the least median over seeds, and the least of one seed."""
STOCK, TUNED = "stock", "stock, tuned"


# --- a side, in a separate process


def work(side: str, seed: int, steps: int, run_folder: str, parent: Connection) -> None:
    """Train one side; before every step wait for a permit, after it report the seconds it took.

    Sends for each step its seconds of wall time and of CPU time, at the end one dictionary: `phases` (seconds a step),
    `lengths` (mean tokens of a completion at each step), `evaluation`.
    """
    folder = Path(run_folder)
    with (folder / "log.txt").open("w") as log, redirect_stdout(log):
        import torch
        import transformers.trainer
        from mini_r1.recipe.recipe_file import find_recipe, load_recipe
        from mini_r1.training import prepare
        from rich.console import Console

        torch.set_num_threads(1)
        transformers.trainer.DEFAULT_CALLBACKS.append(turns(parent))
        recipe = load_recipe(find_recipe("demo-cpu"), overrides(seed, steps))
        data = prepare.load_task_data(recipe)
        if side == TUNED:
            from mini_r1.machine.allocator import keep_freed_memory

            keep_freed_memory()
        start = prepare.find_model(recipe, data, Console(file=log)).source
        if side == KIT:
            model, tokenizer, report = train_kit(recipe, folder)
        else:
            model, tokenizer, report = train_stock(recipe, data, start, folder)
        parent.send({**report, "evaluation": held_out(model, tokenizer, data, recipe)})


def overrides(seed: int, steps: int) -> list[str]:
    """The demo recipe at accumulation 8; both sides train on all groups, because stock can't leave any out."""
    return [
        f"seed={seed}", f"warm_start.seed={seed}", f"max_steps={steps}", "gradient_accumulation_steps=8",
        "drop_zero_variance_groups=false",
    ]  # fmt: skip


def train_stock(recipe: Any, data: Any, start: str, folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """TRL's GRPOTrainer as it comes, but for the order of its rows and stopwatches around three of its parts."""
    from mini_r1.generation.model import load_model, load_tokenizer
    from mini_r1.training import prepare
    from torch.utils.data import SequentialSampler
    from transformers import set_seed
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = load_model(start, None, "float32", None), load_tokenizer(start, None)
    known = {field.name for field in dataclasses.fields(GRPOConfig)}
    said = {key: getattr(recipe, key) for key in recipe.model_fields_set & known}  # the rest as TRL has it
    args = GRPOConfig(
        **{**said, "output_dir": str(folder), "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    )
    rows = recipe.max_steps * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    dataset = prepare.ordered_dataset(recipe, data, tokenizer, rows)
    seconds: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += time.perf_counter() - started

        wrapped.__name__ = getattr(function, "__name__", name)
        return wrapped

    set_seed(recipe.seed)
    trainer = GRPOTrainer(
        model,
        reward_funcs=[timed("score", reward_function(name)) for name in recipe.resolved_rewards()],
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer._get_train_sampler = lambda: SequentialSampler(dataset)
    model.generate = timed("rollout", model.generate)
    trainer.ref_model.forward = timed("reference", trainer.ref_model.forward)
    trainer.train()
    phases = {name: seconds[name] / recipe.max_steps for name in ("rollout", "score", "reference")}
    lengths = [row["completion_length"] for row in trainer.state.log_history if "completion_length" in row]
    return model, tokenizer, {"phases": phases, "lengths": lengths}


# --- the run


def measure(seed: int, steps: int, turn: int, names: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    """One seed: the sides take turns of `turn` steps; who begins changes from round to round."""
    sides = [Side(name, "trainer_speed", [seed, steps], folder / name.replace(", ", "-")) for name in names]
    return take_turns(sides, steps, turn)


def summary(sides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Figures of one random seed: steps a minute, the ratios kit / stock by wall and by CPU time, what was learned."""
    total = {name: [sum(column) for column in zip(*side["seconds"], strict=True)] for name, side in sides.items()}
    steps = len(sides[KIT]["seconds"])
    (low, high), (stock_low, stock_high) = (sides[name]["evaluation"]["ci95"] for name in (KIT, STOCK))
    return {
        "steps_per_minute": {name: 60 * steps / wall for name, (wall, _) in total.items()},
        "ratio": {name: wall / total[KIT][0] for name, (wall, _) in total.items() if name != KIT},
        "cpu_ratio": {name: cpu / total[KIT][1] for name, (_, cpu) in total.items() if name != KIT},
        "phases": {name: {**side["phases"], "rest": total[name][0] / steps - sum(side["phases"].values())}
                   for name, side in sides.items()},
        "lengths": {name: side["lengths"] for name, side in sides.items()},
        "evaluation": {name: side["evaluation"] for name, side in sides.items()},
        "same_learning": low <= stock_high and stock_low <= high,
    }  # fmt: skip


def show(seed: int, seen: dict[str, Any]) -> None:
    """The lines of one seed."""
    for name, speed in seen["steps_per_minute"].items():
        lengths, learned = seen["lengths"][name], seen["evaluation"][name]
        low, high = learned["ci95"]
        ratio = f"{seen['ratio'][name]:.2f} x ({seen['cpu_ratio'][name]:.2f} x)" if name != KIT else ""
        print(f"{seed:4}  {name:12} {speed:6.2f}  {ratio:17} {lengths[0]:.0f} -> {lengths[-1]:.0f}  "
              f"{learned['sampled']:.3f} [{low:.3f}, {high:.3f}]  "
              + " ".join(f"{phase} {seconds:.2f}" for phase, seconds in seen["phases"][name].items()),
              flush=True)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each side")
    parser.add_argument("--turn", type=int, default=2, help="steps that a side does at a time")
    parser.add_argument("--stock-tuned", action="store_true", help="also run stock with the kit's malloc setting")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.turn) < 1:
        parser.error("--steps and --turn must be at least 1")
    os.environ["OMP_NUM_THREADS"] = "1"
    names = [KIT, STOCK, *([TUNED] if arguments.stock_tuned else [])]
    if not arguments.json:
        print(f"{arguments.steps} optimizer steps of 1,024 completions; ratio kit / stock by wall time (CPU time), "
              "mean tokens at the first -> last step,\nheld-out success sampled [95 % interval], "
              "seconds a step (rest: forward, backward, optimizer, what else there is)\n"
              "seed  side         steps/min  ratio     tokens    success               seconds a step")  # fmt: skip
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        for seed in arguments.seeds:
            folder = Path(directory) / str(seed)
            folder.mkdir()
            results[seed] = summary(measure(seed, arguments.steps, arguments.turn, names, folder))
            if not arguments.json:
                show(seed, results[seed])
    ratios = {name: [seen["ratio"][name] for seen in results.values()] for name in names if name != KIT}
    bars = {
        f"median ratio >= {RATIO:g} and every seed >= {WORST:g}":
            statistics.median(ratios[STOCK]) >= RATIO and min(ratios[STOCK]) >= WORST,
        "held-out success overlaps on every seed": all(seen["same_learning"] for seen in results.values()),
    }  # fmt: skip
    if arguments.json:
        print(json.dumps({"results": results, "bars": bars}))
    else:
        for name, values in ratios.items():
            print(f"kit / {name}: median {statistics.median(values):.2f} x, {min(values):.2f}-{max(values):.2f}")
        for bar, met in bars.items():
            print(f"bar: {bar}: {'met' if met else 'MISSED'}")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
