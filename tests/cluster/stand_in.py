"""A process that behaves like a worker towards the launcher: `python stand_in.py WHAT [ARGUMENT]`.

It tests how the launcher handles exit codes, signals and silence in fractions of a second; test_launch.py has real
workers.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

FOLDER, RANK = Path(os.environ["MINI_R1_SUPERVISOR"]), os.environ["RANK"]


def beat(phase: str, step: int = 0, attempt: int | None = None) -> None:
    scratch = FOLDER / f".{RANK}.tmp"
    facts = {"step": step, "phase": phase, "attempt": attempt, "time": time.time(), "pid": os.getpid()}
    scratch.write_text(json.dumps(facts))
    scratch.replace(FOLDER / f"rank-{RANK}.heartbeat")


def sleep_in_a_reward() -> None:
    time.sleep(3600)


def main(what: str, argument: str = "") -> int:
    if what == "signals":  # what it inherited
        names = [
            n.name for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1) if signal.getsignal(n) == signal.SIG_IGN
        ]
        print("ignored:", *names)
        return 0
    if what == "silent":  # before its first sign of life
        time.sleep(3600)
    faulthandler.register(signal.SIGUSR2, file=(FOLDER / f"rank-{RANK}.stack").open("a"), all_threads=True)
    beat("start")
    print(f"rank {RANK} is here", flush=True)
    if what == "exit":
        print("first line\nlast line")
        return int(argument)
    if what == "die":
        os.kill(os.getpid(), int(argument))
    if what == "log":  # its attempt is known only later
        print("before the attempt", flush=True)
        Path(argument).mkdir(parents=True)
        beat("rollout", 3, int(Path(argument).name))
        print("in the attempt", flush=True)
        time.sleep(1)
        return 0
    if what == "print":  # a secret, and what would colour a terminal
        print(os.environ[argument], "\x1b[31m", flush=True)
        return 0
    if what == "hang":
        beat("reward", 7, int(argument))
        sleep_in_a_reward()
    if what == "wait":  # for others, giving signs of life
        while True:
            beat("update", 8, int(argument))
            time.sleep(0.1)
    if what == "child":
        child = subprocess.Popen(["sleep", "3600"])
        Path(argument).write_text(str(child.pid))
        return 0
    if what == "work":  # until asked to stop
        while not (FOLDER / "stop").exists():
            beat("rollout", 1, 1)
            time.sleep(0.05)
        print("stopping for", (FOLDER / "stop").read_text(), flush=True)
        return 143
    if what == "deaf":
        while True:
            beat("rollout", 1, 1)
            time.sleep(0.05)
    raise SystemExit(f"what is {what}?")


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
