"""Processes that train, forked from a server that has imported torch and TRL once: a start saves the imports.

Several of them are the ranks of one job on this machine, as a launcher starts them:

    with Workers(2, train, recipe, "--run-dir", run, folder=tmp_path) as workers:
        assert [ended.code for ended in workers.wait()] == [0, 0]

One is any command of the kit, in place of the console script: `run_forked("train", recipe, folder=tmp_path)`.
What a library reads from the environment while it is imported was read by the server: HF_HOME, HF_ENDPOINT and
HF_HUB_OFFLINE of a test have no effect here.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest.mock import patch

PRELOADED = ["mini_r1.cli.app", "mini_r1.cli.training_commands", "mini_r1.training.train", "mini_r1.recipe.recipe_file"]
SERVER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",  # these tests are about processes on the CPU, and a CUDA context survives no fork
    "DS_ACCELERATOR": "cpu",
}
# A start of multiprocessing reads the exit codes of all processes that have ended, also of those that another thread
# waits for. Only one reader gets the code; the other one would report 255.
EXIT_CODES = threading.RLock()


@dataclass(frozen=True, slots=True)
class Ended:
    """How one rank ended."""

    code: int
    """Its exit status; minus the number of the signal that killed it."""
    output: str
    errors: str


class Workers:
    """Processes that each call `function(*args)` with their rank in the environment; those that still run are killed.

    Args:
        world_size: how many; None for one process that is no rank of anything.
        function: of a module that can be imported.
        args: its arguments, to be pickled.
        folder: where the output of each rank is kept.
        environment: variables besides those of this process, set before `function` is called.
    """

    def __init__(
        self,
        world_size: int | None,
        function: Callable[..., object],
        *args: Any,
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        folder.mkdir(parents=True, exist_ok=True)
        common = {**os.environ, **SERVER_ENVIRONMENT, **(environment or {})}
        if world_size is not None:
            common |= {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        self._logs = []
        self._processes = []
        for rank in range(world_size or 1):
            logs = (folder / f"{os.urandom(4).hex()}.out", folder / f"{os.urandom(4).hex()}.err")
            own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world_size is not None else common
            self._logs.append(logs)
            self._processes.append(context.Process(target=_begin, args=(own, Path.cwd(), logs, function, args)))

    def __enter__(self) -> Workers:
        with EXIT_CODES, patch.dict(os.environ, SERVER_ENVIRONMENT):  # the first start ever starts the server too
            for process in self._processes:
                process.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        with EXIT_CODES:
            for process in self._processes:
                process.kill()
                process.join()

    def running(self) -> bool:
        """Whether any of them has not ended yet."""
        with EXIT_CODES:
            return any(process.is_alive() for process in self._processes)

    def kill(self) -> None:
        """SIGKILL to all of them."""
        self.send(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to those that still run."""
        with EXIT_CODES:
            for process in self._processes:
                if process.is_alive() and process.pid is not None:
                    os.kill(process.pid, number)

    def wait(self, timeout_s: float = 60) -> list[Ended]:
        """How each rank ended, by rank.

        Raises:
            AssertionError: a rank still runs when the time is over; with output and stacks.
        """
        running = {process.sentinel for process in self._processes}
        deadline = time.monotonic() + timeout_s
        while running:
            left = deadline - time.monotonic()
            assert left > 0, f"a rank still runs after {timeout_s:g} s:\n{self._where()}"
            running -= set(connection.wait(running, left))
        with EXIT_CODES:
            codes = [process.exitcode for process in self._processes]
        return [
            Ended(code, output.read_text(), errors.read_text())
            for code, (output, errors) in zip(codes, self._logs, strict=True)
            if code is not None
        ]

    def _where(self) -> str:
        """Return each rank's output, with the stacks of those that still run."""
        self.send(signal.SIGUSR2)
        time.sleep(1)  # for the tracebacks to be written
        return "\n".join(
            f"--- rank {rank}\n{output.read_text()}{errors.read_text()}"
            for rank, (output, errors) in enumerate(self._logs)
        )


def kit(*args: str | Path) -> None:
    """`mini-r1 ARGS`, as a function for Workers."""
    from mini_r1.cli.app import main

    sys.argv = ["mini-r1", *map(str, args)]
    main()


def train(*args: str | Path) -> None:
    """`mini-r1 train ARGS`, as a function for Workers."""
    kit("train", *args)


def run_forked(*args: str | Path, folder: Path, timeout_s: float = 300) -> Ended:
    """Run `mini-r1 ARGS` to its end; `folder` is for its output."""
    with Workers(None, kit, *args, folder=folder) as workers:
        (ended,) = workers.wait(timeout_s)
    return ended


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: it does not hold when the time is over.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {timeout_s:g} s"
        time.sleep(0.01)


def _begin(
    environment: Mapping[str, str],
    folder: Path,
    logs: tuple[Path, Path],
    function: Callable[..., object],
    args: tuple[Any, ...],
) -> None:
    for descriptor, log in zip((1, 2), logs, strict=True):
        with log.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    faulthandler.register(signal.SIGUSR2)  # tracebacks of all threads, to standard error
    os.chdir(folder)  # the server has those of the test that started it
    os.environ.clear()
    os.environ.update(environment)
    function(*args)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
