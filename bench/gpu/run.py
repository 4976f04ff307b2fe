"""All measurements on a GPU, in one command that can be interrupted and called again.

It prints what it will run and how long that takes on an H100, then runs one unit after the other. Each unit is a
separate process with one small JSON file in FOLDER, which is written while the unit runs: nothing that was measured is
lost. Called again, it runs what is missing. A unit starts only if it is expected to end before --limit-s.

    update      seconds of reference pass and update by themselves, profiles, and variants that change one suspect each
    sync        the weight sync to vLLM (needs vLLM; without it the result says "not run")
    memory      peak memory of a training GPU against the plan; these units run at once
    trl-fixes   log-probabilities and gradients against float32, the kit's and stock TRL's
    scratch     the recipe scratch-1gpu, two random seeds at once
    step-time   a whole step without vLLM against stock TRL 0.14.0
    smoke       `mini-r1 doctor --smoke`

At the end everything in FOLDER is printed, with the machine, versions and this command, and written to
FOLDER/RESULTS.md; --record appends it to bench/RESULTS.md. What was not run is listed there. Models and logs are in
--scratch, several GiB. Exit code 1: a unit failed, or a bar is missed. The newest TRL is measured by peers.py, which
installs it first; its results in FOLDER are printed here, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import _common as common
import _report
from _record import RESULTS, installed, processor
from mini_r1.machine.provenance import code_revision
from mini_r1.run.files import read_object, write_json

HERE = Path(__file__).resolve().parent
EXAMPLES = """examples:
  .venv/bin/python bench/gpu/run.py --out gpu-results                     everything, about 35 minutes on an H100
  .venv/bin/python bench/gpu/run.py --out gpu-results --only update,sync  two parts
  .venv/bin/python bench/gpu/run.py --out gpu-results --limit-s 480       what fits in 8 minutes; then the same again
  .venv/bin/python bench/gpu/run.py --out gpu-results --report --json     run nothing, print the results as JSON
  .venv/bin/python bench/gpu/run.py --out smoke --scale tiny              all of it with a tiny model on a CPU: a smoke
                                                                          run of the benches, its figures mean nothing
  .venv/bin/python bench/gpu/run.py --out small --scale small             scratch alone, with a small model that two
                                                                          CPU cores teach in one to two hours
"""
NO_GPU = (
    "run.py: no NVIDIA GPU was found, and nothing was measured. Run this command on a machine with one, or add "
    "`--scale tiny` for a smoke run of the benches on a CPU"
)
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "flash-attn", "vllm")
GRACE_S = 25
"""After the limit a unit is ended: it expected less than it took."""
SMOKE = "smoke"
SCRATCH = Path(tempfile.gettempdir()) / "mini-r1-gpu-bench"
HEARTBEAT_S = 30
"""Between two lines about a unit that runs."""
RUNNING: list[subprocess.Popen[bytes]] = []
"""The units' processes, to end them with Ctrl-C."""
AT_ONCE = ("memory.py", "scratch.py")


@dataclass(frozen=True, eq=False)
class Unit:
    """One process, one file.

    Attributes:
        name: of the file.
        script: that measures it; for `smoke` none.
        arguments: of the script.
        expected_s: on one H100, start and model included. An estimate, if it was never run.
        least_s: to get anything out of it; None: it is all or nothing.
    """

    name: str
    script: str
    arguments: dict[str, Any] = field(default_factory=dict)
    expected_s: int = 30
    least_s: int | None = None

    @property
    def needs_s(self) -> int:
        """Below which it is not begun."""
        return self.expected_s if self.least_s is None else self.least_s


def units(scale: str, rounds: int) -> list[Unit]:
    """In the order in which they are run."""
    if scale == "small":
        return [Unit("scratch-small", "scratch.py", {"seed": 0, "scale": "small"}, 6000, 60)]
    if scale == "tiny":
        return [
            Unit("update-tiny-kit", "update_time.py", {"shape": "tiny", "side": "kit", "limit": 64}, 90),
            Unit("update-tiny-stock", "update_time.py", {"shape": "tiny", "side": "stock", "limit": 64}, 60),
            Unit("sync-tiny", "sync.py", {"shape": "tiny"}, 60),
            Unit("step-time-tiny", "step_time.py", {"shape": "tiny", "limit": 64, "rounds": rounds}, 60),
            Unit("memory-tiny-1", "memory.py", {"shape": "tiny", "limit": 64}, 30),
            Unit("memory-tiny-4", "memory.py", {"shape": "tiny", "limit": 64, "prompts": 4, "accumulation": 2}, 30),
            Unit("trl-fixes-tiny", "trl_fixes.py", {"shape": "tiny", "limit": 64}, 30),
            Unit("scratch-tiny", "scratch.py", {"seed": 0, "scale": "tiny"}, 120),
            Unit(SMOKE, "", expected_s=150),
        ]
    return [
        Unit("update-0.5b-kit", "update_time.py", {"shape": "0.5b", "side": "kit"}, 180, 60),
        Unit("update-0.5b-stock", "update_time.py", {"shape": "0.5b", "side": "stock"}, 90, 60),
        Unit("sync-1.5b", "sync.py", {"shape": "1.5b"}, 120),
        Unit("memory-0.5b-1", "memory.py", {"shape": "0.5b"}, 45),
        Unit("memory-0.5b-8", "memory.py", {"shape": "0.5b", "prompts": 8, "accumulation": 4}, 50),
        Unit("memory-1.5b-2", "memory.py", {"shape": "1.5b", "prompts": 2}, 65),
        Unit("trl-fixes-0.5b", "trl_fixes.py", {"shape": "0.5b"}, 70),
        Unit("scratch-0", "scratch.py", {"seed": 0}, 600, 200),
        Unit("scratch-1", "scratch.py", {"seed": 1}, 600, 200),
        Unit("step-time-0.5b", "step_time.py", {"shape": "0.5b", "rounds": rounds}, 90 + 140 * rounds, 230),
        Unit("step-time-1.5b", "step_time.py", {"shape": "1.5b", "rounds": rounds}, 115 + 175 * rounds, 290),
        Unit(SMOKE, "", expected_s=110),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", default="", help="parts or units, with commas: step-time, memory-0.5b-1, ...")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="seconds of this call; no limit")
    parser.add_argument("--rounds", type=int, default=2, help="timed steps of each side")
    parser.add_argument("--scale", choices=("full", "small", "tiny"), default="full")
    parser.add_argument("--scratch", type=Path, default=SCRATCH)
    parser.add_argument("--report", action="store_true", help="run nothing, print what is in the folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end; progress is on stderr")
    parser.add_argument("--record", action="store_true", help="append to bench/RESULTS.md")
    given = parser.parse_args()
    wanted = [name for name in given.only.split(",") if name]
    chosen = [unit for unit in units(given.scale, given.rounds) if not wanted or _named(unit, wanted)]
    if not chosen:
        parser.error(f"nothing is called {given.only}: {', '.join(unit.name for unit in units(given.scale, 1))}")
    if given.scale == "full" and not given.report and not common.gpu():
        sys.exit(NO_GPU)
    given.out.mkdir(parents=True, exist_ok=True)
    given.scratch.mkdir(parents=True, exist_ok=True)
    end = time.time() + given.limit_s
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the unit that runs is ended, too
    left = []
    if not given.report:
        announce(batches(chosen), given.out)
    for units_at_once in [] if given.report else batches(chosen):
        with ThreadPoolExecutor(len(units_at_once)) as pool:
            try:
                whole = list(pool.map(lambda unit: _measured(unit, given, end), units_at_once))
            except KeyboardInterrupt:
                for process in RUNNING:
                    _kill(process)
                sys.exit("interrupted: what was measured is kept, the same command resumes")
        left += [unit.name for unit, done in zip(units_at_once, whole, strict=True) if not done]
    results = {path.stem: read_object(path) for path in sorted(given.out.glob("*.json"))}
    text = entry(results, left)
    print(json.dumps({"results": results, "left": left, "bars": _report.bars(results)}) if given.json else text)
    (given.out / "RESULTS.md").write_text(text, encoding="utf-8")
    if given.record:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(text)
    failed = any(result.get("error") for result in results.values())
    return 1 if failed or not all(met for _, met in _report.bars(results)) else 0


def batches(chosen: list[Unit]) -> list[list[Unit]]:
    """Units that are run at once: those whose figures are each process's own; their seconds are not."""
    return [list(group) for _, group in groupby(chosen, lambda unit: unit.script if unit.script in AT_ONCE else unit)]


def announce(parts: list[list[Unit]], out: Path) -> None:
    """Print what will be run, and for how long on an H100; of units that run at once the longest counts."""
    seconds = 0
    for part in parts:
        missing = [unit for unit in part if not _whole(unit, out / f"{unit.name}.json")]
        seconds += max((unit.expected_s for unit in missing), default=0)
        for unit in part:
            progress(f"{unit.name:20} {f'about {unit.expected_s} s' if unit in missing else 'is there'}")
    progress(f"expected on an H100: {seconds / 60:.0f} min; an interrupted run resumes with the same command")


def progress(line: str) -> None:
    """Print a line that is not a result."""
    print(line, file=sys.stderr, flush=True)


def _named(unit: Unit, wanted: list[str]) -> bool:
    return any(unit.name == name or unit.name.startswith(f"{name}-") for name in wanted)


def _measured(unit: Unit, given: Any, end: float) -> bool:
    """Run a unit if it has to be and can be; whether it is whole then."""
    file = given.out / f"{unit.name}.json"
    if _whole(unit, file):
        progress(f"{unit.name}: is there")
        return True
    if time.time() + unit.needs_s > end:
        progress(f"{unit.name}: {unit.needs_s} s are too long for what is left of this call")
        return False
    progress(f"{unit.name}: begins, {unit.expected_s} s expected")
    started = time.time()
    log = given.scratch / f"{unit.name}.log"
    code, output = _ran(unit, _command(unit, given, file, end), log, end + GRACE_S - started)
    seconds = time.time() - started
    result = {**read_object(file), **whence(), "seconds_of_unit": seconds}
    result.pop("error", None)
    if unit.name == SMOKE:
        launches = {
            path.name: path.read_text("utf-8", errors="replace")[-2000:]
            for path in sorted((given.scratch / SMOKE).glob("*-start-node-*.txt"))
        }
        result.update(exit_code=code, seconds=seconds, output=output[-6000:], launches=launches, complete=code == 0)
    if code:
        result["error"] = f"exit code {code} after {seconds:.0f} s\n{output[-3000:]}"
    write_json(file, result)
    how = "FAILED" if code else "not run" if result.get("not_run") else "done"
    progress(f"{unit.name}: {how} after {seconds:.0f} s")
    return _whole(unit, file)


def _whole(unit: Unit, file: Path) -> bool:
    result = read_object(file)
    enough = len(result.get("rounds", [])) >= unit.arguments.get("rounds", 0)
    return bool(result.get("complete")) and not result.get("error") and enough


def _command(unit: Unit, given: Any, file: Path, end: float) -> list[str]:
    if unit.name == SMOKE:
        shutil.rmtree(given.scratch / SMOKE, ignore_errors=True)
        return [sys.executable, "-m", "mini_r1", "doctor", "--smoke", "--run-dir", str(given.scratch / SMOKE)]
    options = {**unit.arguments, "out": file, "scratch": given.scratch}
    if unit.script in ("step_time.py", "scratch.py"):
        options["deadline"] = end - 10
    return [sys.executable, str(HERE / unit.script), *(f"--{key}={value}" for key, value in options.items())]


def _ran(unit: Unit, command: list[str], log: Path, timeout_s: float) -> tuple[int, str]:
    """Exit code and output; a process that takes too long is ended with all that it started."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(common.BENCH.parent / "app"), *filter(None, [environment.get("PYTHONPATH")])]
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
            start_new_session=True,
        )  # fmt: skip
        RUNNING.append(process)
        began = time.time()
        while (code := process.poll()) is None:
            left = began + timeout_s - time.time()
            if left <= 0:
                _kill(process)
                code = 124
                break
            with suppress(subprocess.TimeoutExpired):
                process.wait(min(left, HEARTBEAT_S))
                continue
            lines = log.read_text("utf-8", errors="replace").splitlines()
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            progress(f"{unit.name}: {time.time() - began:.0f} of about {unit.expected_s} s; {last[:100]}")
    return code, log.read_text("utf-8", errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a unit with all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def whence(script: str = "run.py") -> dict[str, str]:
    """Where a result comes from."""
    return {"machine": machine(), "command": command(script), "revision": code_revision() or "no checkout"}


def machine() -> str:
    """The GPU, asked of the driver without a context on it, or the processor; system and versions."""
    packages = ", ".join(installed(name) for name in PACKAGES)
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{common.gpu() or 'no GPU; '}{processor()}, {os.cpu_count()} cores, {system}, {packages}"


def command(script: str) -> str:
    """This call, as it would be typed in a checkout, without this machine's folders."""
    shown: list[str] = []
    words = iter(sys.argv[1:])
    for word in words:
        name, sign, _ = word.partition("=")
        if name not in ("--out", "--scratch"):
            shown.append(word)
            continue
        if not sign:
            next(words, None)
        shown += ["--out", "FOLDER"] if name == "--out" else []
    return shlex.join([".venv/bin/python", f"bench/gpu/{script}", *shown])


def entry(results: _report.Results, left: list[str]) -> str:
    """A section for bench/RESULTS.md; commands, revisions and machines are the results' own, of one call or several."""
    said = [result for result in results.values() if "machine" in result] or [whence()]
    commands, revisions, machines = (
        list(dict.fromkeys(str(result[key]) for result in said)) for key in ("command", "revision", "machine")
    )
    body = _report.lines(results)
    body += ["", *(f"bar: {bar}: {'met' if met else 'MISSED'}" for bar, met in _report.bars(results))]
    if left:
        body.append(f"still to do: {', '.join(left)}")
    heading = "; ".join(f"`{each}`" for each in commands)
    text = "\n".join(body).strip()
    return (
        f"\n## gpu, {time.strftime('%Y-%m-%d')}\n\n{heading} at {', '.join(revisions)}. {' / '.join(machines)}.\n\n"
        f"```\n{text}\n```\n"
    )


if __name__ == "__main__":
    sys.exit(main())
