"""Training's side of `push_to_hub: true`: rank 0 starts a process that pushes, and waits for it only at the end.

Nothing here raises once training has begun: an error of the hub or the network must not lose a run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from mini_r1.console import printable
from mini_r1.errors import KitError
from mini_r1.hub.branch_contents import is_on_hub
from mini_r1.hub.publish import default_name
from mini_r1.hub.push import END, PUSH_RECORD, SAVED
from mini_r1.hub.upload import LOGIN_HINT, find_token, is_offline
from mini_r1.machine.lifeline import SUPERVISOR
from mini_r1.recipe.fields import Recipe
from mini_r1.run.files import read_object
from mini_r1.run.run_dir import RunDir

logger = logging.getLogger(__name__)

END_WAIT_S = 600.0
"""Seconds that a finished run waits for its last push: a 3B model of 6 GB needs 80 Mbit/s. The GPUs idle meanwhile."""
LOOK_EVERY_S = 0.2
KILLED_WAIT_S = 5.0
_NOT_PASSED_ON = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", SUPERVISOR, "MINI_R1_JOB_TOKEN", "WANDB_API_KEY"})


def refuse(recipe: Recipe) -> None:
    """Raise KitError before the first step, on rank 0, if nothing can be pushed, or nothing of it could be loaded."""
    if not recipe.push_to_hub:
        return
    later = "or set push_to_hub: false and `mini-r1 publish` the run afterwards"
    if find_token() is None:
        raise KitError(f"push_to_hub is true, and {LOGIN_HINT}; {later}")
    if is_offline():
        raise KitError(f"push_to_hub is true, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: unset it, {later}")
    if recipe.use_peft and not is_on_hub(recipe.model_name_or_path):
        raise KitError(
            f"push_to_hub is true, and an adapter of {recipe.model_name_or_path}, which is not on the hub, could not "
            "be loaded: set push_to_hub: false, or use_peft: false"
        )


class Pushing:
    """The process that pushes; without `push_to_hub` every method does nothing.

    Its log is in the attempt's directory; the result is printed on the console.
    """

    def __init__(self, recipe: Recipe, run: RunDir, attempt: Path, console: Console) -> None:
        self._recipe = recipe
        self._run = run
        self._log = attempt / "hub.log"
        self._console = console
        self._process: subprocess.Popen[str] | None = None
        self._start()

    def saved(self) -> None:
        """Push a new snapshot, or an older attempt's that was never pushed."""
        self._send(SAVED)

    def finish(self, stop: Callable[[], bool]) -> None:
        """Push everything, wait for it up to END_WAIT_S seconds or until `stop`, and report the result."""
        if not self._recipe.push_to_hub:
            return
        self._send(END)
        # Half of the hang limit, because the launcher sees no progress meanwhile.
        deadline = time.monotonic() + min(END_WAIT_S, self._recipe.hang_timeout_s / 2)
        self._print("pushing what is left to the hub")
        while self._running and time.monotonic() < deadline and not stop():
            time.sleep(LOOK_EVERY_S)
        self.leave()
        record = read_object(self._run.path / PUSH_RECORD)
        pushed, error = record.get("pushed"), record.get("error")
        missing = {saved.step for saved in self._run.complete_snapshots()} - set(
            pushed if isinstance(pushed, list) else ()
        )
        if not missing and not error:
            self._print(f"all snapshots are on {record.get('address')}")
            return
        repo = str(record.get("repo") or default_name(self._run, self._recipe))
        command = ["mini-r1", "publish", str(self._run.path), "--repo", repo]
        command += [] if self._recipe.hub_private_repo else ["--public"]
        why = f" ({error})" if error else ""
        self._print(
            f"not everything was pushed{why}: `{shlex.join(command)}` sends what is missing; see {self._log}",
            "yellow",
        )

    def leave(self) -> None:
        """Kill the process; the next start sends what it was sending."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it may wait for a dead disk
                process.wait(KILLED_WAIT_S)

    def _print(self, line: str, style: str | None = None) -> None:
        self._console.print(printable(line), style=style, markup=False)

    @property
    def _running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _start(self) -> None:
        if not self._recipe.push_to_hub:
            return
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-m", "mini_r1.hub.push", str(self._run.path)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    text=True,
                    start_new_session=True,  # the trainer alone acts on a signal to the job's processes
                )
        except OSError:
            logger.exception("the process that pushes to the hub could not be started")

    def _send(self, order: str) -> None:
        if not self._running:
            self.leave()
            self._start()
        try:
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.write(f"{order}\n")
                self._process.stdin.flush()
        except OSError:
            logger.warning("the process that pushes to the hub has ended")
