"""Does the second task learn? Success on held-out arithmetic before and after GRPO, and two controls.

    .venv/bin/python bench/qa_learning.py [--seeds 0 1 2] [--jobs 2] [--set KEY=VALUE ...] [--json]

Each seed trains configs/recipes/qa-cpu.yaml with its own warm start, one thread each, `--jobs` at a time, and measures
one sampled answer to each held-out question at step 0 and at the end. Two controls, with the first seed: `random`, the
same run paid by a random reward; `imitation`, no GRPO, and a warm start that is longer by the time that GRPO took.

Bars: the warm start gets 10 to 40 %; on every seed success rises by at least 20 points and the 95 % intervals do not
overlap; neither control rises by 5 points.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

POINTS = 0.20
START = (0.10, 0.40)
FLAT = 0.05
"""Most that a control may rise: twice the standard error of a difference over 800 questions."""
EVALUATE = ("--samples", "1", "--engine", "transformers", "--json")
RANDOM = "rewards={random: 1.0}"


def mini_r1(folder: Path, *arguments: str | Path) -> str:
    """Run the program with one thread and a cache in the folder; return what it prints."""
    environment = {**os.environ, "MINI_R1_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    program = [Path(sys.executable).parent / "mini-r1", *arguments]
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{arguments}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


def run(folder: Path, seed: int, *settings: str) -> dict[str, Any]:
    """Train one run and measure it at step 0 and at its end."""
    path = folder / "run"
    overrides = [f"--set={each}" for each in (f"seed={seed}", f"warm_start.seed={seed}", *settings)]
    started = time.perf_counter()
    mini_r1(folder, "train", "qa-cpu", "--run-dir", path, *overrides)
    seconds = time.perf_counter() - started
    (made,) = (folder / "cache" / "models").glob("*/warm_start.json")
    warm = json.loads(made.read_text())
    figures = {
        name: json.loads(mini_r1(folder, "evaluate", path, *which, *EVALUATE))
        for name, which in {"before": ("--step", "0"), "after": ("--newest",)}.items()
    }
    kept = ("sampled", "ci95", "format", "by_digits", "by_operators")
    return {
        **{name: {key: values[key] for key in kept} for name, values in figures.items()},
        "arithmetic": warm["arithmetic_accuracy"],
        "seconds_warm_start": warm["seconds"],
        "seconds_grpo": seconds - warm["seconds"],
    }


def measure(seeds: list[int], jobs: int, settings: list[str]) -> dict[str, dict[str, Any]]:
    """Run the seeds and the controls; return their results by name."""
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(jobs) as pool:

        def start(name: str, seed: int, *more: str) -> Any:
            folder = Path(directory) / name
            folder.mkdir()
            return pool.submit(run, folder, seed, *settings, *more)

        waiting = {f"seed {seed}": start(f"seed-{seed}", seed) for seed in seeds}
        waiting["random"] = start("random", seeds[0], RANDOM)
        results = {name: job.result() for name, job in waiting.items()}
        first = results[f"seed {seeds[0]}"]
        longer = 1 + first["seconds_grpo"] / first["seconds_warm_start"]
        recipe = json.loads(
            mini_r1(Path(directory), "recipes", "show", "qa-cpu", "--json", *(f"--set={each}" for each in settings))
        )
        steps = round(recipe["warm_start"]["steps"] * longer)
        results["imitation"] = start(
            "imitation", seeds[0], f"warm_start.steps={steps}", "max_steps=1", "warmup_steps=0"
        ).result()
        results["imitation"]["after"] = results["imitation"].pop("before")
        results["imitation"]["before"] = first["before"]
        return results


def bars(results: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Return whether each bar is met."""
    seeds = [result for name, result in results.items() if name.startswith("seed")]

    def rise(result: dict[str, Any]) -> float:
        return float(result["after"]["sampled"] - result["before"]["sampled"])

    return {
        f"the warm start gets {START[0]:.0%} to {START[1]:.0%}": all(
            START[0] <= each["before"]["sampled"] <= START[1] for each in seeds
        ),
        f"rises by >= {POINTS:.0%} on every seed": all(rise(each) >= POINTS for each in seeds),
        "95 % intervals apart on every seed": all(
            each["after"]["ci95"][0] > each["before"]["ci95"][1] for each in seeds
        ),
        "a random reward does not raise it": rise(results["random"]) < FLAT,
        "longer imitation does not raise it": rise(results["imitation"]) < FLAT,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    results = measure(given.seeds, given.jobs, given.settings)
    met = bars(results)
    if given.json:
        print(json.dumps({"runs": results, "bars": met}))
        return 0 if all(met.values()) else 1
    heads = f"{'run':10} {'before':>7} {'after':>7} {'rise':>7}   95 % before      95 % after"
    print(f"{heads}      columns right  warm s  GRPO s")
    for name, each in results.items():
        before, after = each["before"], each["after"]
        limits = "   ".join(f"{each['ci95'][0]:5.1%} - {each['ci95'][1]:5.1%}" for each in (before, after))
        print(
            f"{name:10} {before['sampled']:7.1%} {after['sampled']:7.1%} {after['sampled'] - before['sampled']:+7.1%}"
            f"   {limits}   {each['arithmetic']:13.1%} {each['seconds_warm_start']:7.0f} {each['seconds_grpo']:7.0f}"
        )
    for by in ("by_digits", "by_operators"):
        first = results[f"seed {given.seeds[0]}"]
        groups = (
            f"{key}: {first['before'][by][key]['sampled']:.0%} to {first['after'][by][key]['sampled']:.0%}"
            for key in first["after"][by]
        )
        print(f"seed {given.seeds[0]}, {by.removeprefix('by_')}: {', '.join(groups)}")
    for bar, fine in met.items():
        print(f"{'met   ' if fine else 'MISSED'} {bar}")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
