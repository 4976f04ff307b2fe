"""Training's side of `push_to_hub: true`: rank 0 starts a process that pushes, and waits for it only at the end.

Nothing here raises once training has begun: an error of the hub or the network must not lose a run.
"""

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
from mini_r1.hub.hub_access import is_path
from mini_r1.hub.publish import default_name
from mini_r1.hub.push import END, PUSH_RECORD, SAVED
from mini_r1.hub.upload import require_token
from mini_r1.machine.lifeline import SUPERVISOR
from mini_r1.machine.nodes import JOB_TOKEN
from mini_r1.recipe.fields import Recipe
from mini_r1.run.files import read_object
from mini_r1.run.run_dir import RunDir

logger = logging.getLogger(__name__)

END_WAIT_S = 600.0
"""Seconds that a finished run waits for its last push: a 3B model of 6 GB needs 80 Mbit/s. The GPUs idle meanwhile."""
LOOK_EVERY_S = 0.2
KILLED_WAIT_S = 5.0
_NOT_PASSED_ON = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", SUPERVISOR, JOB_TOKEN, "WANDB_API_KEY"})


def refuse(recipe: Recipe) -> None:
    """Raise KitError before the first step, on rank 0, if nothing can be pushed, or nothing of it could be loaded."""
    if not recipe.push_to_hub:
        return
    try:
        require_token()
    except KitError as error:
        raise KitError(
            f"push_to_hub is true, and {error.message}, or set push_to_hub: false and `mini-r1 publish` the run "
            "afterwards"
        ) from error
    if recipe.use_peft and (recipe.built_in or is_path(recipe.model_name_or_path)):
        raise KitError(
            f"push_to_hub is true, and an adapter of {recipe.model_name_or_path}, which is not on the hub, could not "
            "be loaded: set push_to_hub: false, or use_peft: false"
        )


class Pushing:
    """The process that pushes. Its log is in the attempt's directory; the result is printed on the console."""

    def __init__(self, recipe: Recipe, run: RunDir, attempt: Path, console: Console) -> None:
        self._recipe = recipe
        self._run = run
        self._log = attempt / "hub.log"
        self._console = console
        self._process: subprocess.Popen[str] | None = None

    def push(self, order: str = SAVED) -> None:
        """Push what is new, also what an earlier attempt saved; start the process if it isn't running."""
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
        try:
            if not self._running:
                self.leave()
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
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.write(f"{order}\n")
                self._process.stdin.flush()
        except OSError as error:
            logger.warning("the process that pushes to the hub has ended or can't be started: %s", error)

    def finish(self, stop: Callable[[], bool]) -> None:
        """Push everything, wait for it up to END_WAIT_S seconds or until `stop`, and report the result."""
        self.push(END)
        # Half of the hang limit, because the launcher sees no progress meanwhile.
        deadline = time.monotonic() + min(END_WAIT_S, self._recipe.hang_timeout_s / 2)
        self._console.print("pushing what is left to the hub", markup=False)
        while self._running and time.monotonic() < deadline and not stop():
            time.sleep(LOOK_EVERY_S)
        self.leave()
        record = read_object(self._run.path / PUSH_RECORD)
        pushed, error = record.get("pushed"), record.get("error")
        known = pushed if isinstance(pushed, list) else []
        if not error and all(saved.step in known for saved in self._run.complete_snapshots()):
            self._console.print(printable(f"all snapshots are on {record.get('address')}"), markup=False)
            return
        repo = str(record.get("repo") or default_name(self._run, self._recipe))
        command = ["mini-r1", "publish", str(self._run.path), "--repo", repo]
        command += [] if self._recipe.hub_private_repo else ["--public"]
        why = f" ({error})" if error else ""
        line = f"not everything was pushed{why}: `{shlex.join(command)}` sends what is missing; see {self._log}"
        self._console.print(printable(line), style="yellow", markup=False)

    def leave(self) -> None:
        """Kill the process; the next start sends what it was sending."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it may wait for a dead disk
                process.wait(KILLED_WAIT_S)

    @property
    def _running(self) -> bool:
        return self._process is not None and self._process.poll() is None
