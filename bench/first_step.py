"""CPU seconds from `mini-r1 train demo-cpu` to its first optimizer step: to its begin, and to its end.

    .venv/bin/python bench/first_step.py [--pairs 5] [--python NAME=PATH ...] [--json]

Each run trains into a new directory, from a warm start that is in the cache, with Python's bytecode in place (a first
run of each fills both). One thread, 128 completions in the step, the same in every version of the demo's recipe. Read
when state.json shows the first rollout, and step 1: user and system time of the process and of the children that it
waited for. CPU time, because it is disturbed less by other work than wall time.

Several interpreters, e.g. of an older checkout, or of an environment without DeepSpeed, take turns; each is compared
with the first one. Without --python: this interpreter alone.
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
from pathlib import Path

TIMEOUT_S = 600
COMMAND = (
    "-m", "mini_r1", "train", "demo-cpu", "--set", "gradient_accumulation_steps=1", "--set", "max_steps=2",
    "--set", "warmup_steps=0",
)  # fmt: skip


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process and of its children that are over, from /proc/PID/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def first_step(python: str, folder: Path) -> tuple[float, float]:
    """Return the CPU seconds of one run to the begin and to the end of its first step.

    Raises:
        SystemExit: the run failed or took longer than TIMEOUT_S.
    """
    log, deadline, begin = folder / "log.txt", time.monotonic() + TIMEOUT_S, 0.0
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [python, *COMMAND, "--run-dir", str(folder / "run")],
            stdout=output, stderr=output, env={**environment, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
            try:
                state = json.loads((folder / "run" / "state.json").read_text())
            except (OSError, ValueError):  # not there yet
                continue
            if state.get("phase") == "rollout" and not begin:
                begin = cpu_seconds(process.pid)
            if state.get("step", 0) >= 1:
                return begin, cpu_seconds(process.pid)
    finally:
        process.kill()
        process.wait()
    sys.exit(f"{python} did not reach the first step:\n{log.read_text()[-2000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each interpreter")
    parser.add_argument("--python", action="append", metavar="NAME=PATH", help="an interpreter; several take turns")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    pythons = dict(named.split("=", 1) for named in arguments.python or [f"this={sys.executable}"])
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in pythons}
    for turn in range(arguments.pairs + 1):
        for name, python in pythons.items():
            with tempfile.TemporaryDirectory() as folder:
                measured = first_step(python, Path(folder))
            if turn:  # the first one made the warm start and the bytecode
                seconds[name].append(measured)
    medians = {
        name: [statistics.median(values) for values in zip(*pairs, strict=False)] for name, pairs in seconds.items()
    }
    if arguments.json:
        print(json.dumps({"seconds": seconds, "medians": medians}))
        return 0
    reference = next(iter(medians.values()))
    print(f"CPU seconds, medians of {arguments.pairs}; in brackets: of the first line")
    for name, (begin, end) in medians.items():
        print(f"{name:28} to the first step's begin {begin:5.2f} ({begin / reference[0]:.2f})", end="  ")
        print(f"to its end {end:5.2f} ({end / reference[1]:.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
