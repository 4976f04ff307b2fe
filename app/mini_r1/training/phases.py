"""The phase of a run: reported to the launcher by every rank, and by rank 0 in state.json.

state.json's heartbeat is the time at which the last phase began. It also holds the limit of a phase, because
`mini-r1 health` has no recipe to read before the first attempt: the longest phase, the download, comes earlier.
"""

from __future__ import annotations

import contextlib

from mini_r1.machine.processes import this_process
from mini_r1.recipe.fields import Recipe
from mini_r1.run.run_dir import RunDir
from mini_r1.training.supervised import Supervisor
from mini_r1.training.world import World


class Phases:
    """The phases of one start of the program, as `with Phases(...) as phases`.

    If the block fails before the attempt has begun, state.json is restored: a refused start changes nothing.
    """

    def __init__(self, recipe: Recipe, run: RunDir, world: World, supervisor: Supervisor) -> None:
        self._limit = recipe.hang_timeout_s
        self._run = run
        self._world = world
        self._supervisor = supervisor
        self._process = this_process()
        self._before = run.read_state()
        self._attempt: int | None = None

    def begin(self, name: str, step: int | None = None, attempt: int | None = None) -> None:
        """Report that a phase begins; `step` is the last finished one. Before the attempt begins `attempt` is None."""
        self._attempt = attempt
        self._supervisor.beat(name, step or 0, attempt)
        if not self._world.main:
            return
        known = self._before.get("step", 0) if step is None else step
        number = {} if attempt is None else {"attempt": attempt}
        try:
            self._run.write_state(
                "running", step=known, phase=name, **number, process=self._process, hang_timeout_s=self._limit
            )  # fmt: skip
        except OSError:
            if attempt is not None:
                raise  # before the attempt, the first file that has to be saved reports a full disk

    def __enter__(self) -> Phases:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None or self._attempt is not None or not self._world.main:
            return
        if self._before:
            self._run.restore_state(self._before)
            return
        with contextlib.suppress(OSError):
            self._run.state_file.unlink(missing_ok=True)
