"""Tokens a second on one GPU: the kit against the newest TRL, 1.16.0, both with vLLM on the GPU that trains.

    .venv/bin/python bench/gpu/peers.py --out FOLDER [--shape 0.5b] [--tokens 389] [--steps 6] [--sides kit,trl]
    .venv/bin/python bench/gpu/peers.py --dry-run

TRL and its vLLM run in an environment in the kit's cache folder, which the first call installs (REQUIREMENTS, about
10 GB; Python 3.11 to 3.13). `--dry-run` prints the commands and installs nothing. The sides run one after the other,
each in its own process; FOLDER/peers-SHAPE.json is written after each, and a side that is there is not run again.

Both train the same random bfloat16 model, 8 prompts x 8 completions a step with the published recipe's settings,
without gradient checkpointing. Every completion has --tokens tokens, 389 by default, the original's mean: the model is
random and almost never draws an end token, and TRL's vLLM ignores it. Lengths as unequal as a trained
model's are in step_time.py. TRL is set as in bench/newest_trl.py to do the same work; what it does better by default
stays (one generation for all 64 completions, its fused optimizer). The first SKIPPED steps are not counted.

Tokens a second are the completions' tokens over the seconds of a step. The share of an H100's dense bfloat16 peak
counts 10 FLOPs a parameter and token, prompts included: 2 to generate, 2 for the reference, 6 for the update.

`--tiny` is a smoke run on a CPU with a stand-in for vLLM, transformers' generation; its figures mean nothing. TRL's
side needs bench/newest_trl.py's environment then, and is reported as not run without it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import _common as common
import _report
import newest_trl
import run as gpu_bench
from _environment import environment_folder, environment_python, install_commands
from mini_r1.run.files import read_object, write_json
from mini_r1.run.reader import read_metrics
from mini_r1.run.run_dir import RunDir

REQUIREMENTS = """\
trl==1.16.0
vllm==0.31.0
transformers==5.17.0
torch==2.13.0
accelerate==1.15.0
datasets==5.2.0
"""
"""vLLM 0.31.0 is the newest that TRL 1.16.0 allows; it pins torch and limits transformers."""
NAME, SIZE = "trl-1.16.0-vllm-0.31.0", "about 10 GB"
SIDES = ("kit", "trl")
SKIPPED = 2
"""Steps at the beginning that are not counted: they start kernels, and vLLM captures its graphs."""
UTILIZATION = 0.3
"""Share of the GPU for vLLM on both sides, TRL's default."""
SAME = (
    "num_generations", "temperature", "learning_rate", "lr_scheduler_type", "beta", "seed", "max_grad_norm",
)  # fmt: skip
"""The recipe's settings that TRL 1.16.0 has by the same name and type."""


def recipe_changes(tokens: int, steps: int, tiny: bool) -> dict[str, Any]:
    """What both sides change in the published recipe."""
    changes: dict[str, Any] = {
        "max_completion_length": tokens, "max_steps": steps, "gradient_checkpointing": "false",
        "use_vllm": "false" if tiny else "true",
    }  # fmt: skip
    if tiny:
        return {**changes, "torch_dtype": "float32", "bf16": "false"}
    return {**changes, "vllm_gpu_memory_utilization": UTILIZATION}


def kit_command(recipe: Path, run: Path, changes: dict[str, Any], tiny: bool) -> list[str]:
    """Return the command of the kit's side: with vLLM the launcher decides where it runs."""
    sets = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    how = ["train"] if tiny else ["launch", "--gpus", "1", "--deepspeed", "none"]
    return [sys.executable, "-m", "mini_r1", how[0], str(recipe), *how[1:], "--run-dir", str(run), *sets]


def trl_job(recipe: Any, model: Path, rows: Path, tiny: bool) -> dict[str, Any]:
    """Return what `_peer_trl.py` gets: paths, rewards, and the values of TRL's GRPOConfig."""
    rewards = recipe.resolved_rewards()
    settings = {key: getattr(recipe, key) for key in SAME}
    settings |= {
        "max_completion_length": recipe.max_completion_length, "max_steps": recipe.max_steps,
        "per_device_train_batch_size": common.GENERATIONS, "gradient_accumulation_steps": common.PROMPTS,
        "reward_weights": list(rewards.values()), "scale_rewards": "group", "loss_type": "grpo",
        "use_bias_correction_kl": False, "shuffle_dataset": False, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "logging_steps": 1, "gradient_checkpointing": False, "bf16": not tiny, "use_cpu": tiny,
        "use_vllm": not tiny,
    }  # fmt: skip
    if not tiny:
        settings |= {
            "vllm_mode": "colocate", "vllm_gpu_memory_utilization": UTILIZATION,
            "vllm_max_model_length": recipe.longest_sequence, "generation_kwargs": {"ignore_eos": True},
        }  # fmt: skip
    return {"model": str(model), "rows": str(rows), "rewards": list(rewards), "settings": settings}


def kit_side(job: dict[str, Any]) -> dict[str, Any]:
    """Train with the kit; return the seconds of each step after the first, and the lengths."""
    run = RunDir(Path(job["folder"]) / "kit")
    command = kit_command(job["recipe"], run.path, job["changes"], job["tiny"])
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        return {"failed": f"exit code {done.returncode}: {done.stdout[-1500:]}"}
    rows = [row for row in read_metrics(run) if "loss" in row]
    return {
        "seconds": [later["time"] - earlier["time"] for earlier, later in pairwise(rows)],
        "tokens": common.mean([row["completion_length"] for row in rows]),
        "phases": {
            key.removeprefix("time/"): common.mean([row[key] for row in rows[SKIPPED:]])
            for key in rows[-1]
            if key.startswith("time/")
        },
    }


def trl_side(job: dict[str, Any]) -> dict[str, Any]:
    """Train with TRL in its own environment; return the seconds of each step after the first, and the lengths."""
    from mini_r1.training.warm_start import cache_root

    cache = cache_root()
    if job["tiny"]:
        folder = environment_folder(cache, "trl-1.16.0", newest_trl.REQUIREMENTS)
        if not (folder / "finished").is_file():
            return {"not_run": "TRL 1.16.0 is not installed; `make bench-trl` installs it, without vLLM"}
        python = folder / "bin" / "python"
    else:
        python = environment_python(cache, NAME, REQUIREMENTS, SIZE)
    folder = Path(job["folder"])
    task, result = folder / "trl.json", folder / "trl-result.json"
    task.write_text(json.dumps(trl_job(job["loaded"], job["model"], job["rows"], job["tiny"])))
    command = [str(python), str(Path(__file__).with_name("_peer_trl.py")), str(task), str(result), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        return {"failed": f"exit code {done.returncode}: {done.stdout[-1500:]}"}
    return read_object(result)


def measure(out: Path, scratch: Path, shape: str, tokens: int, steps: int, sides: list[str], tiny: bool) -> bool:
    """Run the sides that are missing in the result; return whether all wanted ones are there."""
    from mini_r1.generation.model import load_tokenizer
    from mini_r1.recipe.recipe_file import find_recipe
    from mini_r1.training import prepare

    facts = {"shape": shape, "tokens": tokens, "steps": steps, "tiny": tiny}
    result = read_object(out)
    if any(result.get(key) != value for key, value in facts.items()):
        result = {**facts, "sides": {}}
    model = common.made_model(shape, scratch)
    changes = recipe_changes(tokens, steps, tiny)
    loaded = common.bench_recipe(model, **changes)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        rows = Path(folder) / "rows.json"
        data = prepare.load_task_data(loaded)
        count = common.PROMPTS * steps
        rows.write_text(
            json.dumps(prepare.ordered_dataset(loaded, data, load_tokenizer(str(model), None), count).to_list())
        )
        job = {
            "folder": folder, "tiny": tiny, "model": model, "rows": rows, "loaded": loaded,
            "recipe": find_recipe("mini-r1-3b"), "changes": common.bench_changes(model, **changes),
        }  # fmt: skip
        measured: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"kit": kit_side, "trl": trl_side}
        for side in sides:
            if "seconds" in result["sides"].get(side, {}):
                print(f"{side}: is there", file=sys.stderr, flush=True)
                continue
            print(f"{side}: begins, {steps} steps", file=sys.stderr, flush=True)
            result["sides"][side] = measured[side](job)
            result.update(gpu_bench.whence("peers.py"))
            result["complete"] = all("seconds" in result["sides"].get(each, {}) for each in SIDES)
            write_json(out, result)
    return all("seconds" in result["sides"][side] for side in sides)


def dry_run() -> str:
    """Return what an installation of TRL's environment would do, as text."""
    from mini_r1.training.warm_start import cache_root

    folder = environment_folder(cache_root(), NAME, REQUIREMENTS)
    lines = [f"TRL's environment, {SIZE}: {folder}{' (is there)' if (folder / 'finished').is_file() else ''}"]
    lines += [shlex.join(command) for command in install_commands(folder, Path("requirements.txt"), [])]
    return "\n".join([*lines, "requirements.txt:", *(f"  {line}" for line in REQUIREMENTS.splitlines())])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--shape", choices=common.SHAPES, default="0.5b")
    parser.add_argument("--tokens", type=int, default=389, help="of each completion")
    parser.add_argument("--steps", type=int, default=6, help=f"optimizer steps of each side; {SKIPPED} are not counted")
    parser.add_argument("--sides", default=",".join(SIDES), help="with commas")
    parser.add_argument("--scratch", type=Path, default=gpu_bench.SCRATCH)
    parser.add_argument("--tiny", action="store_true", help="a smoke run on a CPU, without vLLM")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--dry-run", action="store_true", help="print how TRL would be installed, and do nothing")
    given = parser.parse_args()
    if given.dry_run:
        print(dry_run())
        return 0
    sides = given.sides.split(",")
    if given.out is None or not set(sides) <= set(SIDES) or given.steps <= SKIPPED + 1:
        parser.error(f"--out FOLDER is needed, --sides from {', '.join(SIDES)}, and --steps of {SKIPPED + 2} or more")
    if not given.tiny and not common.gpu():
        sys.exit(f"peers.py: {gpu_bench.NO_GPU.replace('--scale tiny', '--tiny')}")
    given.out.mkdir(parents=True, exist_ok=True)
    given.scratch.mkdir(parents=True, exist_ok=True)
    shape = "tiny" if given.tiny else given.shape
    out = given.out / f"peers-{shape}.json"
    done = measure(out, given.scratch, shape, given.tokens, given.steps, sides, given.tiny)
    result = read_object(out)
    print(json.dumps(result) if given.json else "\n".join(_report.lines({out.stem: result})))
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
