"""Training's side of `push_to_hub: true`: rank 0 starts a process that pushes, and never waits for it but at the end.

Nothing here raises once training has begun: what the hub or the network do is no reason to lose a run.
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
from mini_r1.hub.push import END, RECORD, SAVED
from mini_r1.hub.upload import TOKENLESS, find_token, is_offline
from mini_r1.recipe.fields import Recipe
from mini_r1.run.files import read_object
from mini_r1.run.run_dir import RunDir

logger = logging.getLogger(__name__)

END_WAIT_S = 600.0
"""Seconds that a finished run waits for its last push: a 3B model of 6 GB in them needs 80 Mbit/s. GPUs stand idle
meanwhile, so no longer."""
LOOK_EVERY_S = 0.2
KILLED_WAIT_S = 5.0
_NOT_ITS_BUSINESS = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MINI_R1_SUPERVISOR", "MINI_R1_JOB_TOKEN", "WANDB_API_KEY"}
)


def refuse(recipe: Recipe) -> None:
    """Find out before the first step, on rank 0, that nothing can be pushed.

    Raises:
        KitError: there is no token, this process must not use the network, or nobody else could load what is pushed.
    """
    if not recipe.push_to_hub:
        return
    later = "or set push_to_hub: false and `mini-r1 publish` the run afterwards"
    if find_token() is None:
        raise KitError(f"push_to_hub is true, and {TOKENLESS}; {later}")
    if is_offline():
        raise KitError(f"push_to_hub is true, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: unset it, {later}")
    if recipe.use_peft and not is_on_hub(recipe.model_name_or_path):
        raise KitError(
            f"push_to_hub is true, and an adapter of {recipe.model_name_or_path}, which is on no hub, could be loaded "
            "by nobody else: set push_to_hub: false, or use_peft: false"
        )


class Pushing:
    """The process that pushes; without `push_to_hub` every method does nothing.

    Args:
        recipe: what is pushed, and whether.
        run: the run directory, with its recipe.yaml.
        attempt: where the log goes.
        console: for what became of it.
    """

    def __init__(self, recipe: Recipe, run: RunDir, attempt: Path, console: Console) -> None:
        self._run = run
        self._attempt = attempt
        self._console = console
        self._process: subprocess.Popen[str] | None = None
        self._on = recipe.push_to_hub
        self._repo = default_name(run, recipe)
        self._public = [] if recipe.hub_private_repo else ["--public"]
        self._longest = min(END_WAIT_S, recipe.hang_timeout_s / 2)  # the launcher sees one phase
        self._start()

    def saved(self) -> None:
        """There is a new snapshot, or an older attempt's that was never pushed."""
        self._tell(SAVED)

    def finish(self, stop: Callable[[], bool]) -> None:
        """Have everything pushed, wait for it as long as is decent, and say what became of it."""
        if not self._on:
            return
        self._tell(END)
        began = time.monotonic()
        self._say("pushing what is left to the hub")
        while self._running and time.monotonic() - began < self._longest and not stop():
            time.sleep(LOOK_EVERY_S)
        self.leave()
        told = read_object(self._run.path / RECORD)
        steps = {saved.step for saved in self._run.complete_snapshots()}
        found = told.get("pushed")
        pushed = {step for step in found if isinstance(step, int)} if isinstance(found, list) else set()
        missing = steps - pushed
        if not missing and not told.get("fault"):
            self._say(f"all snapshots are on {told.get('address')}")
            return
        why = f" ({told['fault']})" if told.get("fault") else ""
        repo = str(told.get("repo") or self._repo)
        command = ["mini-r1", "publish", str(self._run.path), "--repo", repo]
        self._say(
            f"not all was pushed{why}: `{shlex.join([*command, *self._public])}` sends what is missing; "
            f"{self._attempt / 'hub.log'} has the details",
            "yellow",
        )

    def leave(self) -> None:
        """End the process now; what it was sending is sent by the next start."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a dead disk is left to the system
            process.wait(KILLED_WAIT_S)
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()

    def _say(self, line: str, style: str | None = None) -> None:
        self._console.print(printable(line), style=style, markup=False)

    @property
    def _running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _start(self) -> None:
        if not self._on:
            return
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_ITS_BUSINESS}
        try:
            with (self._attempt / "hub.log").open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-m", "mini_r1.hub.push", str(self._run.path)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    text=True,
                    start_new_session=True,  # a signal to the job's processes is the trainer's to act on
                )
        except OSError:
            logger.exception("the process that pushes to the hub could not be started")

    def _tell(self, order: str) -> None:
        if not self._on:
            return
        if not self._running:
            self.leave()
            self._start()
        try:
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.write(f"{order}\n")
                self._process.stdin.flush()
        except OSError:
            logger.warning("the process that pushes to the hub has ended")
