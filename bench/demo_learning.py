"""Does the demo's held-out success rise, and does the demo take two minutes?

    .venv/bin/python bench/demo_learning.py [--seeds 0 1 2 3 4] [--jobs 2] [--only learning|time] [--json]

Learning: five seeds and a random-reward control, each with its own warm start and one thread, `--jobs` at a time.
It prints the median and the range over the random seeds, for each of them the rise with its interval (paired: every
problem is compared with itself), and how the model's tries compare with a random solver's (O/E; docs/evaluation.md).
Bars: on every random seed success (sampled) rises by at least 25 points and the 95 % intervals do not overlap; the
control does not rise.

Time: the plain `mini-r1 demo` three times, one after another, each with an empty cache and the threads that it chooses
itself. Bar: the median of the whole process is at most 120 s on two idle cores. The load average of the minute before
is printed with it: stop other work first.

About 15 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

POINTS = 0.25
SECONDS = 120.0
"""Seconds of the whole process, imports and both evaluations included."""
TIMED_RUNS = 3
CONTROL = "rewards={random: 1.0}"


def demo(folder: Path, *options: str, threads: int | None = None) -> dict[str, Any]:
    """Return what `mini-r1 demo --json` prints, with `seconds`: the wall time of its process."""
    program = str(Path(sys.executable).parent / "mini-r1")
    command = [program, "demo", "--json", "--run-dir", str(folder / "run"), *options]
    environment = {**os.environ, "MINI_R1_CACHE": str(folder / "cache")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment.pop("OMP_NUM_THREADS", None)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{options}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return {**json.loads(done.stdout), "seconds": time.perf_counter() - started}


def learn(seeds: list[int], jobs: int) -> tuple[dict[str, dict[str, Any]], dict[str, bool]]:
    """Run the seeds and the control; return their results and whether each bar is met."""
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(jobs) as pool:

        def start(name: str, seed: int, *options: str) -> Any:
            chosen = ["--set", f"seed={seed}", "--set", f"warm_start.seed={seed}", *options]
            return pool.submit(demo, Path(directory) / name, *chosen, threads=1)

        waiting = {f"seed {seed}": start(f"seed {seed}", seed) for seed in seeds}
        waiting["control"] = start("control", seeds[0], "--set", CONTROL)
        results = {name: job.result() for name, job in waiting.items()}
    control = results["control"]
    learned = [result for name, result in results.items() if name != "control"]
    return results, {
        f"rises by >= {POINTS:.0%} on every seed": all(r["rise"]["sampled"] >= POINTS for r in learned),
        "95 % intervals apart on every seed": all(r["after"]["ci95"][0] > r["before"]["ci95"][1] for r in learned),
        "the control does not rise": control["after"]["ci95"][0] <= control["before"]["ci95"][1],
    }


def measure_time() -> tuple[list[float], dict[str, bool]]:
    """Run the demo TIMED_RUNS times, one after another; return the seconds and whether the bar is met."""
    seconds = []
    for _ in range(TIMED_RUNS):
        with tempfile.TemporaryDirectory() as directory:
            seconds.append(demo(Path(directory))["seconds"])
    median = statistics.median(seconds)
    return seconds, {f"median of the whole demo <= {SECONDS:.0f} s ({median:.0f} s)": median <= SECONDS}


def row(name: str, result: dict[str, Any]) -> str:
    """Return one line of the table."""
    before, after = result["before"], result["after"]
    cells = [f"{interval(when['sampled'], when['ci95'])} / {when['greedy']:.3f}" for when in (before, after)]
    rise = f"{interval(result['rise']['sampled'], result['rise']['ci95'], sign='+')}"
    tries = f"{before['tries']:.2f} -> {after['tries']:.2f}"
    over = " -> ".join(over_random(when) for when in (before, after))
    seconds = f"{result['seconds_warm_start']:5.0f} {result['seconds_grpo']:5.0f}"
    return f"{name:8} {cells[0]:30} {cells[1]:30} {rise:25} {tries}  {over:42} {seconds}"


def interval(value: float, limits: list[float] | None, sign: str = "") -> str:
    """`0.345 [0.312, 0.378]`."""
    return f"{value:{sign}.3f}" + (f" [{limits[0]:{sign}.3f}, {limits[1]:{sign}.3f}]" if limits else "")


def over_random(figures: dict[str, Any]) -> str:
    """O/E against the random solver, with its interval."""
    solver = figures["baselines"]["random_solver"]
    ratio, limits = solver["observed_over_expected"], solver["observed_over_expected_ci95"]
    return "-" if ratio is None else f"{ratio:.2f}" + (f" [{limits[0]:.2f}, {limits[1]:.2f}]" if limits else "")


def over_seeds(learned: list[dict[str, Any]]) -> list[str]:
    """Median and range of the figures over the seeds, and the random solver's success on the same problems."""

    def line(name: str, values: list[float], form: str) -> str:
        return f"{name}: median {statistics.median(values):{form}}, {min(values):{form}} to {max(values):{form}}"

    solvers = [result["after"]["baselines"]["random_solver"] for result in learned]
    at_tries = {
        key: statistics.median(s["success_at_tries"][key] for s in solvers) for key in solvers[0]["success_at_tries"]
    }
    return [
        line("success before", [r["before"]["sampled"] for r in learned], ".1%"),
        line("success after", [r["after"]["sampled"] for r in learned], ".1%"),
        line("rise", [r["rise"]["sampled"] for r in learned], "+.1%"),
        line("tries per answer after", [r["after"]["tries"] for r in learned], ".2f"),
        line("O/E after, against the random solver", [s["observed_over_expected"] for s in solvers], ".2f"),
        "random solver, success by number of tries, median: "
        + ", ".join(f"{tries}: {share:.1%}" for tries, share in at_tries.items()),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="demos at a time in the learning part, one thread each")
    parser.add_argument("--only", choices=["learning", "time"], help="run one part")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    bars: dict[str, bool] = {}
    if arguments.only != "time":
        found["results"], met = learn(arguments.seeds, arguments.jobs)
        bars |= met
    if arguments.only != "learning":
        found["load"] = os.getloadavg()[0]
        found["seconds"], met = measure_time()
        bars |= met
    if arguments.json:
        print(json.dumps({**found, "bars": bars}))
        return 0 if all(bars.values()) else 1
    if "results" in found:
        problems = found["results"]["control"]["problems"]
        print(f"{problems} held-out problems; success sampled [95 % interval] / greedy, tries per answer, O/E, seconds")
        print(
            f"{'':8} {'before':30} {'after':30} {'rise, paired':25} {'tries':13} {'O/E, random solver':41} warm  GRPO"
        )
        for name, result in found["results"].items():
            print(row(name, result))
        learned = [result for name, result in found["results"].items() if name != "control"]
        print(f"over {len(learned)} seeds:", *over_seeds(learned), sep="\n  ")
    if "seconds" in found:
        runs = ", ".join(f"{seconds:.0f}" for seconds in found["seconds"])
        print(f"the whole demo, {TIMED_RUNS} runs in a row, load average {found['load']:.1f} before: {runs} s")
    for bar, met_bar in bars.items():
        print(f"bar: {bar}: {'met' if met_bar else 'MISSED'}")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
