"""What does `rollout_ahead: 1` gain, and does it cost success? The real vLLM 0.7.0 on the CPU, with one worker.

    .venv/bin/python bench/overlap.py [--only speed|learning] [--steps 12] [--seeds 0 1 2] [--json]

Speed: four sides train a random model, with and without `rollout_ahead` and with one and two threads a process. The
model is of a size at which rollout and update take about the same time with one thread. The sides take turns of a few
steps within one run. Between its turns a side's processes are stopped (SIGSTOP), vLLM's too: it must not sample in
another's time. The bar compares the better number of threads of each.

Learning: the demo's game and batch, trained with and without for the same number of steps, on each random seed from
one warm start; `--jobs` at a time, one thread a process. vLLM needs attention heads of 32, so the model is twice as
wide as the demo's, and its learning rate lower (`--learning-rate`).

Bars: steps a minute at least 1.3 times those without; held-out success (sampled) after the last step within 5 points of
the run without on every seed; with `rollout_ahead` it rises by at least 25 points and the 95 % intervals of before and
after are apart; the planned step of the published recipe on 4 GPUs, saves excluded, takes at most 0.75 times as long,
with and without at the better of one and two GPUs for vLLM.

About 10 minutes for the speed on two idle cores. The learning took 68 minutes with `--jobs 2` on two cores that other
work used, too. Without .venv-vllm it measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from _sides import Side, held_out, take_turns, train_kit, turns

REPO = Path(__file__).resolve().parent.parent
PYTHON = REPO / ".venv-vllm" / "bin" / "python"
RATIO, POINTS, RISE, PLANNED = 1.3, 0.05, 0.25, 0.75
WITHOUT, WITH = "mini-r1-3b", "mini-r1-3b-overlap"
WARM_UP = 2
"""First steps of a side that are not counted: with `rollout_ahead` the first one samples twice."""


# --- a side, in a separate process with the environment of vLLM


def work(name: str, settings: dict[str, Any], run_folder: str, parent: Connection) -> None:
    """Train with `settings`: `threads`, `model` (a directory), `recipe` (a file) and `measured`.

    Sends for each step its seconds of wall time and of CPU time, at the end one dictionary: seconds of each phase
    (median), and with `measured` the held-out success `before` and `after`.
    """
    folder = Path(run_folder)
    os.environ |= {
        "OMP_NUM_THREADS": str(settings["threads"]), "MINI_R1_VLLM_DEVICE": "cpu", "MINI_R1_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with (folder / "log.txt").open("w") as log, redirect_stdout(log):
        import torch
        import transformers.trainer
        from mini_r1.generation.model import load_model, load_tokenizer
        from mini_r1.recipe.recipe_file import load_recipe
        from mini_r1.run.reader import read_metrics
        from mini_r1.run.run_dir import RunDir
        from mini_r1.training.recipe_data import load_task_data

        torch.set_num_threads(settings["threads"])
        transformers.trainer.DEFAULT_CALLBACKS.append(turns(parent))
        recipe = load_recipe(Path(settings["recipe"]))
        model, tokenizer, _ = train_kit(recipe, folder)
        rows = [row for row in read_metrics(RunDir(folder / "run")) if "loss" in row][WARM_UP:]
        names = ("sync", "rollout", "wait", "score", "reference")
        report: dict[str, Any] = {
            "phases": {n: statistics.median(row[f"time/{n}"] for row in rows) for n in names if f"time/{n}" in rows[0]},
            "age": rows[-1]["off_policy/age"], "sample_size": rows[-1]["off_policy/sample_size"],
        }  # fmt: skip
        if settings["measured"]:
            data = load_task_data(recipe)
            start = settings["model"]
            untrained = load_model(start, None, "float32", None), load_tokenizer(start, None)
            report["before"] = held_out(*untrained, data, recipe)
            report["after"] = held_out(model, tokenizer, data, recipe)
        parent.send(report)


class StandingSide(Side):
    """A side whose processes stand still between its turns."""

    def take(self, steps: int) -> None:
        self._signal(signal.SIGCONT)
        super().take(steps)
        self._signal(signal.SIGSTOP)

    def report(self) -> dict[str, Any]:
        self._signal(signal.SIGCONT)
        return super().report()

    def _signal(self, number: signal.Signals) -> None:
        process = psutil.Process(self._process.pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                each.send_signal(number)


def start_side(name: str, settings: dict[str, Any], folder: Path, kind: type[Side] = StandingSide) -> Side:
    return kind(name, "overlap", [settings], folder / name.replace(", ", "-").replace(" ", "-"), str(PYTHON))


def write_recipe(path: Path, overrides: list[str]) -> Path:
    """Write the demo's recipe with other values, for vLLM."""
    from mini_r1.recipe.recipe_file import find_recipe, load_recipe

    recipe = load_recipe(find_recipe("demo-cpu"), ["warm_start=null", "use_vllm=true", *overrides])
    path.write_text(json.dumps(recipe.model_dump(exclude_unset=True)))  # JSON is YAML
    return path


# --- speed


def measure_speed(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return steps a minute and phases of each side, and the ratio of the better ones."""
    from mini_r1.recipe.builtin_models import BUILTIN_MODELS, DEMO_MODEL
    from mini_r1.training.from_scratch import save_untrained

    kind = replace(BUILTIN_MODELS[DEMO_MODEL], head_size=32, hidden_size=arguments.hidden_size, layers=arguments.layers)
    model = save_untrained(folder / "model", kind=kind)
    sides = []
    for threads in (1, 2):
        for ahead in (0, 1):
            name = f"ahead {ahead}, {threads} thread{'s' * (threads > 1)}"
            values = [
                f"model_name_or_path={model}", f"rollout_ahead={ahead}", f"max_steps={arguments.steps}",
                f"gradient_accumulation_steps={arguments.accumulation}", "save_strategy=no", "watch={logp_gap: off}",
                "drop_zero_variance_groups=false", "rewards={format: 1, equation: 1, random: 1}", "learning_rate=1e-5",
            ]  # fmt: skip
            recipe = write_recipe(folder / f"{ahead}-{threads}.yaml", values)
            settings = {"threads": threads, "model": str(model), "recipe": str(recipe), "measured": False}
            sides.append(start_side(name, settings, folder))
    reports = take_turns(sides, arguments.steps, arguments.turn)
    found: dict[str, Any] = {}
    for name, report in reports.items():
        seconds = [wall for wall, _ in report["seconds"]][WARM_UP:]
        rest = statistics.median(seconds) - sum(
            value for phase, value in report["phases"].items() if phase != "rollout" or "wait" not in report["phases"]
        )
        phases = {**report["phases"], "update": rest}
        found[name] = {"steps_per_minute": 60 * len(seconds) / sum(seconds), "phases": phases}
    best = {
        ahead: max(each["steps_per_minute"] for name, each in found.items() if name.startswith(f"ahead {ahead}"))
        for ahead in (0, 1)
    }
    return {"sides": found, "ratio": best[1] / best[0]}


# --- learning


def warm_start(seed: int) -> Path:
    """Return the demo's warm-started model with four heads that vLLM has a kernel for; made once, then cached."""
    from mini_r1.recipe.recipe_file import find_recipe, load_recipe
    from mini_r1.training import warm_start as imitation
    from mini_r1.training.recipe_data import load_task_data

    recipe = load_recipe(find_recipe("demo-cpu"), [f"warm_start.seed={seed}"])
    job = imitation.of_recipe(recipe, load_task_data(recipe).train)
    job = replace(job, model=replace(job.model, head_size=32, hidden_size=128))
    if not imitation.is_made(job.directory()):
        imitation.make(job, lambda step, loss: None)
    return job.directory()


def measure_learning(arguments: argparse.Namespace, folder: Path) -> dict[int, dict[int, dict[str, Any]]]:
    """Return the reports by seed, then by `rollout_ahead`."""

    def train(seed: int, ahead: int, model: Path) -> dict[str, Any]:
        values = [
            f"model_name_or_path={model}", f"rollout_ahead={ahead}", f"max_steps={arguments.learning_steps}",
            f"seed={seed}", f"learning_rate={arguments.learning_rate}", "save_strategy=no", "watch={logp_gap: off}",
        ]  # fmt: skip
        recipe = write_recipe(folder / f"{seed}-{ahead}.yaml", values)
        settings = {"threads": 1, "model": str(model), "recipe": str(recipe), "measured": True}
        side = start_side(f"seed {seed}, ahead {ahead}", settings, folder, Side)
        try:
            side.ready()
            side.take(arguments.learning_steps)
            return side.report()
        finally:
            side.kill()

    models = {seed: warm_start(seed) for seed in arguments.seeds}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        waiting = {s: {ahead: pool.submit(train, s, ahead, models[s]) for ahead in (0, 1)} for s in arguments.seeds}
        return {seed: {ahead: job.result() for ahead, job in jobs.items()} for seed, jobs in waiting.items()}


def planned() -> dict[str, float]:
    """Return the planned seconds of a step of the published recipe on 4 GPUs, saves excluded, by recipe and layout.

    A step has 192 completions in each layout.
    """
    from mini_r1.machine.roles import assign, shape
    from mini_r1.plan.planner import make_plan
    from mini_r1.recipe.recipe_file import find_recipe, load_recipe

    found = {}
    for name in (WITHOUT, WITH):
        for devices, accumulation in ((1, 8), (2, 12)):
            settings = ["save_strategy=no", f"gradient_accumulation_steps={accumulation}"]
            recipe = load_recipe(find_recipe(name), settings)
            roles = assign(shape(4, 1), use_vllm=True, on_cpu=False, vllm_devices=devices)
            plan = make_plan(recipe, roles, gpu_memory_gib=80, on_cpu=False)
            assert plan.timing is not None
            seconds = plan.timing.step_s - (0 if plan.timing.ahead else plan.timing.save)
            found[f"{name}, vLLM on {devices}"] = seconds
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["speed", "learning"], help="run one part")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of each side of the speed part")
    parser.add_argument("--turn", type=int, default=2, help="steps that a side takes at a time")
    parser.add_argument("--hidden-size", type=int, default=192, help="width of the model of the speed part")
    parser.add_argument("--layers", type=int, default=3, help="its layers")
    parser.add_argument("--accumulation", type=int, default=1, help="16 x 8 completions a step, times this")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning-steps", type=int, default=90)
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of the learning part")
    parser.add_argument("--jobs", type=int, default=1, help="runs of the learning part at a time, two processes each")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if not PYTHON.exists():
        print("overlap: no .venv-vllm, so nothing was measured: `make vllm-cpu`", file=sys.stderr)
        return 0
    steps = planned()
    best = {recipe: min(s for name, s in steps.items() if name.startswith(f"{recipe},")) for recipe in (WITHOUT, WITH)}
    ratio = best[WITH] / best[WITHOUT]
    found: dict[str, Any] = {"planned": steps}
    bars = {f"planned step of the published recipe <= {PLANNED:g} x ({ratio:.2f} x)": ratio <= PLANNED}
    with tempfile.TemporaryDirectory() as directory:
        if arguments.only != "learning":
            found["speed"] = speed = measure_speed(arguments, Path(directory))
            bars[f"steps a minute >= {RATIO:g} x ({speed['ratio']:.2f} x)"] = speed["ratio"] >= RATIO
        if arguments.only != "speed":
            found["learning"] = learned = measure_learning(arguments, Path(directory))
            after = {s: [each[ahead]["after"]["sampled"] for ahead in (0, 1)] for s, each in learned.items()}
            bars["held-out success within 5 points on every seed"] = all(
                abs(a - b) <= POINTS for a, b in after.values()
            )
            rises = [(each[1]["before"], each[1]["after"]) for each in learned.values()]
            bars["it rises by >= 25 points on every seed"] = all(b["sampled"] - a["sampled"] >= RISE for a, b in rises)
            bars["95 % intervals apart on every seed"] = all(b["ci95"][0] > a["ci95"][1] for a, b in rises)
    if arguments.json:
        print(json.dumps({**found, "bars": bars}))
        return 0 if all(bars.values()) else 1
    print("planned:", ", ".join(f"{name} {seconds:.1f} s a step" for name, seconds in steps.items()))
    for name, side in found["speed"]["sides"].items() if "speed" in found else ():
        phases = " ".join(f"{phase} {seconds:.2f}" for phase, seconds in side["phases"].items())
        print(f"{name:18} {side['steps_per_minute']:6.2f} steps/min  {phases}")
    for seed, runs in found["learning"].items() if "learning" in found else ():
        for ahead, report in runs.items():
            before, after_last = (
                "{:.3f} [{:.3f}, {:.3f}]".format(report[when]["sampled"], *report[when]["ci95"])
                for when in ("before", "after")
            )
            print(f"seed {seed}, ahead {ahead}: {before} -> {after_last}, sample size {report['sample_size']:.3f}")
    for bar, met in bars.items():
        print(f"bar: {bar}: {'met' if met else 'MISSED'}")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
