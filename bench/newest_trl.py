"""How long is an optimizer step? The kit's trainer against the newest TRL, 1.16.0, at the demo's size.

    .venv/bin/python bench/newest_trl.py [--steps 12] [--seed 0] [--json]

TRL runs in an environment in the kit's cache folder, outside the checkout; the first run installs it (REQUIREMENTS,
1.5 GB with PyTorch's CPU build, several GB where only the CUDA build can be had). It needs Python 3.11 or 3.12.

Both sides start from the same warm-started model, see the same rows in the same order, and do 512 completions a step;
prompts, generations, batch, learning rate, beta, temperature and completion length are the demo recipe's. They take
turns of two steps, one process at a time and one thread each, so that a busy machine slows both. The ratio is of CPU
time, which varies less there; wall time is printed too. The first step of each side is not counted: it warms up.

What is set in TRL's favour: float32 and no gradient checkpointing (its defaults are bfloat16 and checkpointing), no
saves and no TensorBoard (the kit's side saves and logs as always), and generation for each micro-batch
(`steps_per_generation=1`), which on a CPU is faster than one batch of 512: finished rows wait for fewer others. vLLM
is not used on either side. A second TRL process also has malloc keep freed memory, as the kit does
(`training/prepare.py`); the bar is judged against the faster of the two.

What is set to do the same work: `loss_type="grpo"`, no bias correction of the KL term, rewards scaled by group, rows
not shuffled. What still differs: TRL pads a micro-batch to its longest completion, its loss is clipped (no effect with
one update for each rollout), its optimizer is fused, and PyTorch is 2.13 in place of 2.5.1.

Bars: the ratio TRL / kit is at least 2.5; both sides' mean reward rises, and held-out success after the last step
overlaps (sampled, 95 % cluster bootstrap).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from contextlib import redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from _environment import environment_python
from _sides import KIT, Side, held_out, reward_function, take_turns, train_kit, turns

APP = Path(__file__).resolve().parent.parent / "app"
REQUIREMENTS = """\
trl==1.16.0
transformers==5.24.0
torch==2.13.0
accelerate==1.15.0
datasets==5.2.0
"""
TRL, TUNED = "TRL 1.16.0", "TRL 1.16.0, malloc"
COMPLETIONS, TURN = 512, 2
"""Completions of an optimizer step, instead of the recipe's; steps that a side does at a time."""
RATIO = 2.5


# --- TRL's environment


def trl_python(cache: Path) -> Path:
    """Return the Python of the environment that holds REQUIREMENTS; install it at first use.

    Args:
        cache: the kit's cache folder.
    """
    return environment_python(cache, "trl-1.16.0", REQUIREMENTS, "1.5 GB or more", cpu_index)


def cpu_index() -> list[str]:
    """Return pip's option for PyTorch's CPU index, if that answers: its build is the newest of a version to pip."""
    sys.path.insert(0, str(APP))
    import install

    index = (os.environ.get("MINI_R1_TORCH_CPU_INDEX") or install.TORCH_CPU_INDEX).rstrip("/")
    return ["--extra-index-url", index] if install.url_answers(f"{index}/torch/") else []


# --- a side, in its own process


def work(side: str, task: dict[str, Any], run_folder: str, parent: Connection) -> None:
    """Train one side; report each step's seconds, at the end `lengths` and `rewards` (means of each step).

    Args:
        side: KIT, TRL or TUNED.
        task: what `prepare` returns.
        run_folder: for the log and the trained weights, `model.safetensors`.
        parent: says when the next steps run.
    """
    folder = Path(run_folder)
    with (folder / "log.txt").open("w") as log, redirect_stdout(log):
        import torch

        torch.set_num_threads(1)
        parent.send((work_kit if side == KIT else work_trl)(side, task, folder, parent))


def work_kit(side: str, task: dict[str, Any], folder: Path, parent: Connection) -> dict[str, Any]:
    """Train through the kit's own `train`, saves and logs included."""
    import transformers.trainer
    from mini_r1.recipe.recipe_file import find_recipe, load_recipe
    from safetensors.torch import save_model

    transformers.trainer.DEFAULT_CALLBACKS.append(turns(parent))
    recipe = load_recipe(find_recipe("demo-cpu"), task["overrides"])
    model, _, report = train_kit(recipe, folder)
    save_model(model, str(folder / "model.safetensors"))
    return report


def work_trl(side: str, task: dict[str, Any], folder: Path, parent: Connection) -> dict[str, Any]:
    """Train with TRL's GRPOTrainer; of the kit, this uses the rewards and, if TUNED, the malloc setting."""
    sys.path.insert(0, str(APP))
    import datasets
    import torch
    from safetensors.torch import save_model
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    if side == TUNED:
        from mini_r1.machine.allocator import keep_freed_memory

        keep_freed_memory()
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    # AutoTokenizer of transformers 5 takes the model's kind for the tokenizer's.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(task["model"], padding_side="left")
    rows = json.loads(Path(task["rows"]).read_text())
    tokens = tokenizer([row["prompt"] for row in rows])["input_ids"]
    assert tokens == [row.pop("prompt_ids") for row in rows], "the two sides read other prompts"
    args = GRPOConfig(
        **task["settings"], output_dir=str(folder), save_strategy="no", report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_tqdm=True, logging_steps=1, steps_per_generation=1, shuffle_dataset=False,
        loss_type="grpo", use_bias_correction_kl=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model, [reward_function(name) for name in task["rewards"]], args, datasets.Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[turns(parent)],
    )  # fmt: skip
    trainer.train()
    save_model(model, str(folder / "model.safetensors"))
    steps = [row for row in trainer.state.log_history if "reward" in row]
    names = {"lengths": "completions/mean_length", "rewards": "reward"}
    return {name: [step[key] for step in steps] for name, key in names.items()}


# --- the run


def prepare_task(seed: int, steps: int, folder: Path) -> tuple[dict[str, Any], Any, Any]:
    """Return what both sides train on, in JSON's types, and the recipe and its data.

    Args:
        seed: of the run and of the warm start.
        steps: optimizer steps.
        folder: for the file of rows.
    """
    from mini_r1.generation.prompts import token_ids
    from mini_r1.machine.heavy_imports import needs_extra
    from mini_r1.recipe.recipe_file import find_recipe, load_recipe
    from rich.console import Console

    with needs_extra("train"):  # without DeepSpeed, which logs to standard output
        from mini_r1.training import prepare

    base = [f"seed={seed}", f"warm_start.seed={seed}", f"max_steps={steps}", "drop_zero_variance_groups=false"]
    recipe = load_recipe(find_recipe("demo-cpu"), base)
    micro_batch = recipe.per_device_train_batch_size * recipe.num_generations
    accumulation, rest = divmod(COMPLETIONS, micro_batch)
    if rest:
        sys.exit(f"newest_trl: {COMPLETIONS} completions a step are no multiple of the recipe's {micro_batch}")
    overrides = [*base, f"gradient_accumulation_steps={accumulation}"]
    recipe = load_recipe(find_recipe("demo-cpu"), overrides)
    data = prepare.load_task_data(recipe)
    policy = prepare.find_model(recipe, data, Console(stderr=True))
    count = steps * COMPLETIONS // recipe.num_generations
    rows = prepare.ordered_dataset(recipe, data, policy.tokenizer, count).to_list()
    for row, ids in zip(rows, token_ids(policy.tokenizer, [row["prompt"] for row in rows]), strict=True):
        row["prompt_ids"] = ids
    (folder / "rows.json").write_text(json.dumps(rows))
    same = (
        "max_steps", "gradient_accumulation_steps", "num_generations", "max_completion_length", "temperature",
        "learning_rate", "lr_scheduler_type", "warmup_steps", "beta", "scale_rewards", "seed", "max_grad_norm",
    )  # fmt: skip
    rewards = recipe.resolved_rewards()
    settings = {key: getattr(recipe, key) for key in same}
    settings["per_device_train_batch_size"] = micro_batch  # TRL 1.x counts completions
    settings["reward_weights"] = list(rewards.values())
    task = {
        "overrides": overrides, "model": policy.source, "rows": str(folder / "rows.json"), "settings": settings,
        "rewards": list(rewards),
    }  # fmt: skip
    return task, recipe, data


def learned(folder: Path, task: dict[str, Any], recipe: Any, data: Any) -> dict[str, Any]:
    """Evaluate the weights that a side left, with the kit."""
    from mini_r1.generation.model import load_model, load_tokenizer
    from safetensors.torch import load_model as load_weights

    model = load_model(task["model"], None, "float32", None)
    load_weights(model, folder / "model.safetensors")
    return held_out(model, load_tokenizer(task["model"], None), data, recipe)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of each side, at least 4")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run and of the warm start")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.steps < 4:
        parser.error("--steps must be at least 4")
    os.environ["OMP_NUM_THREADS"] = "1"
    from mini_r1.training.warm_start import cache_root

    python = trl_python(cache_root())
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        task, recipe, data = prepare_task(arguments.seed, arguments.steps, folder)
        folders = {name: folder / name.replace(", ", "-").replace(" ", "-") for name in (KIT, TRL, TUNED)}
        sides = [
            Side(name, "newest_trl", [task], folders[name], sys.executable if name == KIT else str(python))
            for name in folders
        ]
        for name, report in take_turns(sides, arguments.steps, TURN).items():
            wall, cpu = (statistics.mean(column) for column in zip(*report["seconds"][1:], strict=True))
            evaluation = learned(folders[name], task, recipe, data)
            results[name] = {**report, "wall_s": wall, "cpu_s": cpu, "evaluation": evaluation}
    kit = results[KIT]
    ratios = {name: results[name]["cpu_s"] / kit["cpu_s"] for name in (TRL, TUNED)}
    low, high = kit["evaluation"]["ci95"]
    bars = {
        f"TRL / kit >= {RATIO:g}, CPU time, the faster of the two": min(ratios.values()) >= RATIO,
        "mean reward rises on every side": all(
            statistics.mean(side["rewards"][-2:]) > statistics.mean(side["rewards"][:2]) for side in results.values()
        ),
        "held-out success overlaps": all(
            low <= side["evaluation"]["ci95"][1] and side["evaluation"]["ci95"][0] <= high for side in results.values()
        ),
    }
    if arguments.json:
        print(json.dumps({"results": results, "ratios": ratios, "bars": bars}))
        return 0 if all(bars.values()) else 1
    print(
        f"{arguments.steps} optimizer steps of {COMPLETIONS} completions, one thread; seconds a step but the first, "
        "mean tokens and reward at the first -> last step,\nheld-out success sampled [95 % interval]\n"
        "side                CPU s  ratio  wall s  ratio  tokens    reward          success"
    )
    for name, side in results.items():
        low, high = side["evaluation"]["ci95"]
        print(
            f"{name:18} {side['cpu_s']:6.2f} {side['cpu_s'] / kit['cpu_s']:6.2f} {side['wall_s']:7.2f} "
            f"{side['wall_s'] / kit['wall_s']:6.2f}  {side['lengths'][0]:.0f} -> {side['lengths'][-1]:.0f}  "
            f"{side['rewards'][0]:.3f} -> {side['rewards'][-1]:.3f}  "
            f"{side['evaluation']['sampled']:.3f} [{low:.3f}, {high:.3f}]"
        )
    for bar, met in bars.items():
        print(f"bar: {bar}: {'met' if met else 'MISSED'}")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
