"""Does the command line start fast? `--help` against a bare Typer app, and what a launch costs that cannot start.

    .venv/bin/python bench/startup.py [--pairs 15] [--json]

The first two are started as processes of this interpreter, in turn; compared are the medians of their wall times. Bar:
at most 1.5 times the bare app. Then `launch` with a taken port, with a wrong key and with `--dry-run`, five times each.
Bar: each median below 1.5 CPU seconds. None of them imports torch. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAIRS = 15
BAR = 1.5
"""Largest ratio of medians, mini-r1 / bare, that issue 2 allows."""

BARE = '''
import typer

app = typer.Typer(add_completion=False)


@app.command()
def train(recipe: str, seed: int = 42) -> None:
    """Train one recipe."""


@app.command()
def score(file: str = "-") -> None:
    """Score completions."""


def main() -> None:
    app()
'''

# Both are imported and called, as a console script does it: Python caches the bytecode of either.
START = "import sys; sys.argv = ['app', '--help']; sys.path.insert(0, {path!r}); from {module} import main; main()"
LOADED = (
    "import sys\nfrom mini_r1.cli.app import main\ntry: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
)
LAUNCHES = 5
CPU_BAR = 1.5
"""CPU seconds of a launch that starts nothing."""


def seconds(command: list[str]) -> float:
    """Wall time of one start.

    Raises:
        SystemExit: it failed.
    """
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    elapsed = time.perf_counter() - started
    if done.returncode != 0 or "Usage" not in done.stdout:
        sys.exit(f"{command} did not print its help (status {done.returncode}): {done.stderr}")
    return elapsed


def imports_torch(*arguments: str) -> bool:
    """Return whether `mini-r1 ARGUMENTS` loads torch."""
    environment = {**os.environ, "MINI_R1_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, env=environment)
    return done.stderr.split()[-1] == "True"


def launches() -> dict[str, float]:
    """Return the median CPU seconds of each launch that starts nothing.

    Raises:
        SystemExit: one ended otherwise than it should, or imported torch.
    """
    found = {}
    with socket.socket() as taken, tempfile.TemporaryDirectory() as folder:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, arguments, code in (
            ("taken port", ["--port", port], 150),
            ("wrong key", ["--set", "lerning_rate=1"], 78),
            ("--dry-run", ["--dry-run"], 0),
        ):
            command = ["launch", "demo-cpu", "--gpus", "2", "--run-dir", f"{folder}/run", *arguments]
            if imports_torch(*command):
                sys.exit(f"launch with {name} imports torch")
            found[name] = statistics.median(cpu_seconds(command, code) for _ in range(LAUNCHES))
    return found


def cpu_seconds(arguments: list[str], code: int) -> float:
    """Return user and system time of `mini-r1 ARGUMENTS`.

    Raises:
        SystemExit: its exit code is another one.
    """
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "mini_r1", *arguments],
        capture_output=True, text=True, env={**os.environ, "MINI_R1_ACCELERATOR": "cpu"},
    )  # fmt: skip
    after = os.times()
    if done.returncode != code:
        sys.exit(f"{arguments} ended with {done.returncode} and not with {code}: {done.stderr}")
    return after.children_user + after.children_system - before.children_user - before.children_system


def measure(pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of `pairs` starts each: (mini-r1, bare)."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "bare_app.py").write_text(BARE)
        kit = [sys.executable, "-c", START.format(path=directory, module="mini_r1.cli.app")]
        bare = [sys.executable, "-c", START.format(path=directory, module="bare_app")]
        seconds(kit), seconds(bare)  # fill the caches of disk and bytecode
        measured = [(seconds(kit), seconds(bare)) for _ in range(pairs)]
    return [a for a, _ in measured], [b for _, b in measured]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"starts of each, at least {PAIRS} for a verdict")
    arguments = parser.parse_args()
    if arguments.pairs < 1:
        parser.error("--pairs must be at least 1")
    kit, bare = measure(arguments.pairs)
    ratio = statistics.median(kit) / statistics.median(bare)
    torch = imports_torch("--help")
    launched = launches()
    passed = ratio <= BAR and not torch and max(launched.values()) < CPU_BAR
    if arguments.json:
        print(json.dumps({"pairs": arguments.pairs, "kit_seconds": round(statistics.median(kit), 4),
                          "bare_seconds": round(statistics.median(bare), 4), "ratio": round(ratio, 3), "bar": BAR,
                          "torch_imported": torch, "launch_cpu_seconds": launched, "passed": passed}))  # fmt: skip
    else:
        for name, times in (("mini-r1 --help", kit), ("bare Typer app", bare)):
            print(f"{name:15} {statistics.median(times) * 1000:6.0f} ms median of {len(times)}, "
                  f"{min(times) * 1000:.0f}-{max(times) * 1000:.0f} ms")  # fmt: skip
        print(f"bar: <= {BAR} x bare, torch not imported: {'met' if passed else 'MISSED'} "
              f"({ratio:.2f} x, torch {'imported' if torch else 'not imported'})")  # fmt: skip
        for name, cpu in launched.items():
            met = "met" if cpu < CPU_BAR else "MISSED"
            print(f"launch, {name}: {cpu:.2f} CPU s, median of {LAUNCHES}, no torch; bar: below {CPU_BAR}: {met}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
