"""Run the same tests many times, each time in a fork of this process, which has imported other people's packages.

A new Python imports pytest, hypothesis and torch for seconds. A fork has them, and imports the kit and its tests anew.
`python fork_server.py ARGUMENTS` runs `pytest ARGUMENTS` for each line of standard input, a JSON list of two limits:
seconds of CPU time for each process, and seconds for all. It answers with one line of JSON:

    code     pytest's exit code; null if a limit was reached
    cpu_s    CPU time of pytest and of what it started, seconds
    output   what it printed
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import select
import signal
import sys
import tempfile
from contextlib import suppress
from typing import IO, Any

PR_SET_PDEATHSIG = 1
"""prctl(2), from linux/prctl.h: a fork ends when this process does."""
OURS = ("mini_r1", "tests", "no_shrinking", "conftest", "__main__")


def third_party() -> list[str]:
    """Return the imported modules that no mutant changes, in the order of their import."""
    installed = (sys.prefix, sys.base_prefix)
    return [
        name
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] not in OURS and str(getattr(module, "__file__", None)).startswith(installed)
    ]


class KillersFirst:
    """A pytest plugin: tests that failed on an earlier mutant run first. One that is killed is then killed soon."""

    def __init__(self, killers: list[str]) -> None:
        self.killers = killers
        self.failed: list[str] = []

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Sort the tests by the last mutant that they killed."""
        order = {name: place for place, name in enumerate(self.killers)}
        items.sort(key=lambda item: order.get(item.nodeid, len(order)))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note a failed test."""
        if report.failed:
            self.failed.append(report.nodeid)


def run_pytest(arguments: list[str], cpu_s: int, killers: list[str], output: IO[bytes], noted: IO[str]) -> None:
    """Run pytest in this fork, and end it. CPU time, unlike time, does not depend on what else the machine does."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    for descriptor, file in enumerate((os.open(os.devnull, os.O_RDONLY), output.fileno(), output.fileno())):
        os.dup2(file, descriptor)
    import pytest

    sys.argv = ["pytest", *arguments]
    plugin = KillersFirst(killers)
    code = pytest.main(arguments, plugins=[plugin])
    json.dump([plugin.failed, third_party()], noted)
    for stream in (noted, sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def answer(arguments: list[str], cpu_s: int, wall_s: float, killers: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Run the tests once, and end what they started. Return the answer and the modules that they imported.

    A test that failed becomes the first of `killers`.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile("w+") as noted:
        child = os.fork()
        if child == 0:
            run_pytest(arguments, cpu_s, killers, output, noted)
        ended = os.pidfd_open(child)
        ready, _, _ = select.select([ended, sys.stdin], [], [], wall_s)  # standard input closes when the client ends
        os.close(ended)
        os.kill(child, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        _, status, used = os.wait4(child, 0)
        code = os.waitstatus_to_exitcode(status)
        over = ended not in ready or code in (-signal.SIGXCPU, -signal.SIGKILL)
        output.seek(0)
        noted.seek(0)
        printed = output.read().decode(errors="replace")
        failed, imported = json.loads(noted.read() or "[[], []]")
    killers[:] = [*failed, *(name for name in killers if name not in failed)]
    return {"code": None if over else code, "cpu_s": used.ru_utime + used.ru_stime, "output": printed}, imported


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints
    sys.path[0] = os.getcwd()  # as `python -m pytest` has it
    killers: list[str] = []
    for line in iter(sys.stdin.readline, ""):
        cpu_s, wall_s = json.loads(line)
        ended, imported = answer(sys.argv[1:], cpu_s, wall_s, killers)
        print(json.dumps(ended), file=answers, flush=True)
        if not sys.dont_write_bytecode:  # the first run: it has compiled everything
            for name in imported:
                with suppress(Exception):
                    importlib.import_module(name)
            os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "1", True


if __name__ == "__main__":
    main()
