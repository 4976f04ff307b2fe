"""Run a bench and append what it printed to bench/RESULTS.md, with the machine, the versions and the command.

.venv/bin/python bench/_record.py bench/scorer.py [its arguments]
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"


def processor() -> str:
    """The processor's name, as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def installed(package: str) -> str:
    """`name version`, or that it is not installed."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def revision() -> str:
    """The commit measured."""
    command = ["git", "describe", "--always", "--dirty=+changes", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, cwd=RESULTS.parent).stdout.strip() or "no checkout"


def main() -> int:
    script, *arguments = sys.argv[1:]
    measured = revision()
    process = subprocess.Popen([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        print(line, end="", flush=True)
        printed.append(line)
    code = process.wait()
    if not printed:  # it ended before it measured anything, and said why on stderr
        return code
    packages = ", ".join(installed(name) for name in ("torch", "transformers", "trl"))
    system = f"{platform.system()}, Python {platform.python_version()}"
    machine = f"{processor()}, {os.cpu_count()} cores, {system}, {packages}"
    shown = Path(script).resolve().relative_to(RESULTS.parent.parent.resolve())
    entry = (
        f"\n## {Path(script).stem}, {time.strftime('%Y-%m-%d')}\n\n"
        f"`{' '.join(['.venv/bin/python', str(shown), *arguments])}` at {measured}, exit code {code}. {machine}.\n\n"
        f"```\n{''.join(printed).strip()}\n```\n"
    )
    with RESULTS.open("a", encoding="utf-8") as results:
        results.write(entry)
    return code


if __name__ == "__main__":
    sys.exit(main())
