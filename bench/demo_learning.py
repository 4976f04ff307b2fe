"""Does the demo's held-out success really rise? Three seeds, and a control that is rewarded by a coin.

    .venv/bin/python bench/demo_learning.py [--seeds 0 1 2] [--jobs 2] [--json]

Every seed has a warm start of its own, made now. Bars: on every seed success (sampled) rises by at least 25 points
with 95 % intervals that do not overlap; the control does not rise; warm start and GRPO together take at most 6 minutes
in the median, on two cores. About 12 minutes with two jobs, one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

POINTS = 0.25
SECONDS = 360.0
CONTROL = "rewards={random: 1.0}"


def demo(seed: int, control: bool, folder: Path) -> dict[str, Any]:
    """What `mini-r1 demo --json` ends with."""
    command = [
        Path(sys.executable).parent / "mini-r1", "demo", "--json", "--run-dir", folder / "run",
        "--set", f"seed={seed}", "--set", f"warm_start.seed={seed}", *(["--set", CONTROL] if control else []),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MINI_R1_CACHE": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"seed {seed}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def row(name: str, result: dict[str, Any]) -> str:
    """One line of the table."""
    before, after = result["before"], result["after"]
    cells = [
        f"{when['sampled']:.3f} [{when['ci95'][0]:.3f}, {when['ci95'][1]:.3f}] / {when['greedy']:.3f}"
        for when in (before, after)
    ]
    rise = after["sampled"] - before["sampled"]
    tries = f"{before['tries']:.2f} -> {after['tries']:.2f}"
    seconds = f"{result['seconds_warm_start']:5.0f} {result['seconds_grpo']:5.0f}"
    return f"{name:8} {cells[0]:30} {cells[1]:30} {rise:+.3f}  {tries}  {seconds}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="demos at a time, one thread each")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(arguments.jobs) as pool:
        waiting = {
            name: pool.submit(demo, seed, control, Path(directory) / name)
            for name, seed, control in [
                *((f"seed {seed}", seed, False) for seed in arguments.seeds),
                ("control", arguments.seeds[0], True),
            ]
        }
        results = {name: job.result() for name, job in waiting.items()}
    control = results["control"]
    learned = {name: result for name, result in results.items() if name != "control"}
    seconds = statistics.median(r["seconds_warm_start"] + r["seconds_grpo"] for r in learned.values())
    bars = {
        f"rises by >= {POINTS:.0%} on every seed": all(
            r["after"]["sampled"] - r["before"]["sampled"] >= POINTS for r in learned.values()
        ),
        "95 % intervals apart on every seed": all(
            r["after"]["ci95"][0] > r["before"]["ci95"][1] for r in learned.values()
        ),
        "the control does not rise": control["after"]["ci95"][0] <= control["before"]["ci95"][1],
        f"median of warm start + GRPO <= {SECONDS:.0f} s ({seconds:.0f} s)": seconds <= SECONDS,
    }
    if arguments.json:
        print(json.dumps({"results": results, "bars": bars}))
    else:
        problems = control["problems"]
        print(f"{problems} held-out problems; success sampled [95 % interval] / greedy, tries per answer, seconds")
        print(f"{'':8} {'before':30} {'after':30} rise    tries         warm  GRPO")
        for name, result in results.items():
            print(row(name, result))
        for bar, met in bars.items():
            print(f"bar: {bar}: {'met' if met else 'MISSED'}")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
