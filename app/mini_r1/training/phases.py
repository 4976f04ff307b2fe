"""What a run is doing, from its first look at the data on: told to the launcher, and by rank 0 in state.json.

state.json's heartbeat is when the last phase began, and how long one may last stands beside it: `mini-r1 health` needs
no recipe, which a first start writes down only after the longest of its phases, the download.
"""

from __future__ import annotations

import contextlib
from types import TracebackType

from mini_r1.machine.processes import this_process
from mini_r1.recipe.fields import Recipe
from mini_r1.run.run_dir import RunDir
from mini_r1.training.supervised import Supervisor
from mini_r1.training.world import World


class Phases:
    """The phases of one start of the program, as `with Phases(...) as phases`.

    One that fails before its attempt has begun leaves state.json as it was: a start that was refused changed nothing.

    Args:
        recipe: for hang_timeout_s.
        run: the run directory, claimed.
        world: this process among the workers.
        supervisor: hears of every phase, of every rank.
    """

    def __init__(self, recipe: Recipe, run: RunDir, world: World, supervisor: Supervisor) -> None:
        self._limit = recipe.hang_timeout_s
        self._run = run
        self._world = world
        self._supervisor = supervisor
        self._process = this_process()
        self._before = run.read_state()
        self._attempt: int | None = None

    def attempt(self, number: int, step: int) -> None:
        """The attempt begins, and goes on after this step: it answers for its own end."""
        self._attempt = number
        self.begin("engine", step)

    def begin(self, name: str, step: int | None = None) -> None:
        """A phase begins; without a step before it is known where the run goes on."""
        self._supervisor.beat(name, step or 0, self._attempt)
        if not self._world.main:
            return
        known = self._before.get("step", 0) if step is None else step
        attempt = {} if self._attempt is None else {"attempt": self._attempt}
        try:
            self._run.write_state(
                "running", step=known, phase=name, **attempt, process=self._process, hang_timeout_s=self._limit
            )  # fmt: skip
        except OSError:
            if attempt:
                raise  # before that a full disk is told by whoever has something to save

    def __enter__(self) -> Phases:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None or self._attempt is not None or not self._world.main:
            return
        if self._before:
            self._run.restore_state(self._before)
        else:
            with contextlib.suppress(OSError):
                self._run.state_file.unlink(missing_ok=True)
