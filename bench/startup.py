"""Does the command line start fast? `mini-r1 --help` against a bare Typer app with two commands.

    .venv/bin/python bench/startup.py [--pairs 15] [--json]

Both are started as processes of this interpreter, in turn; compared are the medians of their wall times. Bar: at most
1.5 times the bare app, and torch is not imported; exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
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
    "import sys; sys.argv = ['mini-r1', '--help']\n"
    "from mini_r1.cli import main\n"
    "try: main()\n"
    "finally: print('torch' in sys.modules, file=sys.stderr)"
)


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


def torch_is_imported() -> bool:
    """Whether `mini-r1 --help` loads torch."""
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    return done.stderr.split()[-1] == "True"


def measure(pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of `pairs` starts each: (mini-r1, bare)."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "bare_app.py").write_text(BARE)
        kit = [sys.executable, "-c", START.format(path=directory, module="mini_r1.cli")]
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
    torch = torch_is_imported()
    passed = ratio <= BAR and not torch
    if arguments.json:
        print(json.dumps({"pairs": arguments.pairs, "kit_seconds": round(statistics.median(kit), 4),
                          "bare_seconds": round(statistics.median(bare), 4), "ratio": round(ratio, 3), "bar": BAR,
                          "torch_imported": torch, "passed": passed}))  # fmt: skip
    else:
        for name, times in (("mini-r1 --help", kit), ("bare Typer app", bare)):
            print(f"{name:15} {statistics.median(times) * 1000:6.0f} ms median of {len(times)}, "
                  f"{min(times) * 1000:.0f}-{max(times) * 1000:.0f} ms")  # fmt: skip
        print(f"bar: <= {BAR} x bare, torch not imported: {'met' if passed else 'MISSED'} "
              f"({ratio:.2f} x, torch {'imported' if torch else 'not imported'})")  # fmt: skip
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
