"""`rollout_ahead: 1`: vLLM samples the next step's completions while this step is trained. The order: docs/overlap.md.

vLLM samples in other processes, so no thread is needed: the trainer posts the prompts, trains, and collects. What
vLLM samples with the weights of one step before can't be sampled again after a resume, which has newer weights. So it
is stored with the checkpoint, as JSON, once vLLM is done.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from mini_r1.errors import KitError, Stopped
from mini_r1.generation.sampler import SamplingConfig, Stop, step_seed
from mini_r1.generation.vllm_client import Generated
from mini_r1.run.files import load_object, write_text
from mini_r1.run.manifest import MANIFEST
from mini_r1.run.run_dir import RunDir
from mini_r1.training.rollout_engines import Prompts, SharedEngine
from mini_r1.training.world import World

logger = logging.getLogger(__name__)

MAX_BYTES = 1 << 31
"""Largest stored rollout that is read; a token takes about 30 bytes."""


@dataclass(slots=True)
class Rollout:
    """The completions that an optimizer step is trained on, of all ranks."""

    step: int  # the optimizer step, from 1
    policy_step: int  # optimizer steps that the weights had taken which sampled it
    prompts: list[list[int]]  # of rank 0, then of rank 1, ...
    completions: list[Generated] | None = None  # those of one prompt next to one another; None while vLLM samples
    seconds: float = 0.0  # in vLLM


class RolloutAhead:
    """The rollouts that have begun and are not trained on yet. Every rank makes every call."""

    def __init__(self, engine: SharedEngine, world: World, config: SamplingConfig, seed: int) -> None:
        self._engine = engine
        self._world = world
        self._config = config
        self._seed = seed
        self._rollouts: dict[int, Rollout] = {}  # by step

    @property
    def in_flight(self) -> int | None:
        """The step whose completions vLLM samples and this process has not collected; None if there is none."""
        return next((step for step, rollout in self._rollouts.items() if rollout.completions is None), None)

    def begin(self, step: int, policy_step: int, prompts: Prompts) -> None:
        """Have vLLM begin the rollout of a step; `prompts` are this rank's, and vLLM has the weights of `policy_step`.

        The seed is that of the step, as without rollouts ahead.
        """
        of_all = [list(prompt) for of_rank in gather_object([list(prompts)]) for prompt in of_rank]
        self._engine.begin(of_all, self._config, step_seed(self._seed, step - 1, 0))
        self._rollouts[step] = Rollout(step, policy_step, of_all)

    def collect(self, stop: Stop) -> None:
        """Wait for what vLLM samples, if anything; on Stopped it continues, and this may be called again."""
        step = self.in_flight
        if step is not None:
            done = self._engine.finish(stop)
            self._rollouts[step].completions, self._rollouts[step].seconds = done.completions, done.seconds

    def has(self, step: int, prompts: Prompts) -> bool:
        """Return whether the rollout of a step is there, and forget earlier steps'; `prompts` are this rank's.

        False if none has begun. One that was stored for other prompts is dropped.
        """
        self._rollouts = {other: rollout for other, rollout in self._rollouts.items() if other >= step}
        rollout = self._rollouts.get(step)
        of_all = [prompt for of_rank in gather_object([list(prompts)]) for prompt in of_rank]
        if rollout is not None and sorted(rollout.prompts) != sorted(of_all):
            logger.warning("the rollout stored for step %d has other prompts: it is dropped", step)
            del self._rollouts[step]
        return step in self._rollouts

    def take(self, step: int, prompts: Prompts) -> tuple[list[Generated], Rollout]:
        """Return this rank's completions of its prompts, and the whole rollout, which `collect` has waited for."""
        rollout, size = self._rollouts[step], self._config.num_generations
        assert rollout.completions is not None, "it is still sampled"
        groups: dict[tuple[int, ...], list[list[Generated]]] = {}  # by prompt, which may come twice
        for i, prompt in enumerate(rollout.prompts):
            groups.setdefault(tuple(prompt), []).append(rollout.completions[i * size : (i + 1) * size])
        # In the order of the ranks, whose number may have changed since a rollout was stored.
        of_ranks = gather_object([list(prompts)])
        each = [[done for prompt in of_rank for done in groups[tuple(prompt)].pop(0)] for of_rank in of_ranks]
        return each[self._world.rank], rollout

    def store(self, run: RunDir, step: int, stop: Stop, *, stopping: bool) -> None:
        """Store what a resume from the checkpoint of this step can't sample again; wait for it first.

        If `stop` returns true meanwhile, or if the run is stopping and vLLM's process has ended, the rollout is
        discarded: the checkpoint is complete without it.
        """
        self._world.from_main(lambda: _prune(run))
        rollout = self._rollouts.get(step + 1)
        if rollout is None or rollout.policy_step == step:  # a resume has these weights
            return
        try:
            if rollout.completions is None:
                self.collect(stop)
        except KitError as error:
            if not stopping and not isinstance(error, Stopped):
                raise
            why = "the grace period is too short to wait for it" if isinstance(error, Stopped) else error.message
            logger.warning("the rollout of step %d is discarded: %s", step + 1, why)
            return
        self._world.from_main(lambda: _write(run, step, rollout))

    def load(self, run: RunDir, step: int) -> None:
        """Load what was stored with the checkpoint of this step; without it the log says so."""
        rollout = self._world.from_main(lambda: _read(run, step))
        if rollout is not None:
            self._rollouts[rollout.step] = rollout
        else:
            text = "checkpoint %d has no rollout of step %d: it is sampled with the checkpoint's own weights, age 0"
            logger.warning(text, step, step + 1)


def _path(run: RunDir, step: int) -> Path:
    return run.checkpoints / f"rollout-{step}.json"


def _digest(run: RunDir, step: int) -> str:
    """Return what identifies a checkpoint: a step may be saved twice, by two attempts."""
    return hashlib.sha256((run.checkpoints / f"step-{step}" / MANIFEST).read_bytes()).hexdigest()


def _write(run: RunDir, step: int, rollout: Rollout) -> None:
    """Write a rollout next to the checkpoint of `step`."""
    assert rollout.completions is not None
    values: dict[str, Any] = {
        "checkpoint": _digest(run, step),
        "step": rollout.step,
        "policy_step": rollout.policy_step,
        "seconds": rollout.seconds,
        "prompts": rollout.prompts,
        "ids": [completion.ids for completion in rollout.completions],
        "logps": [completion.logps for completion in rollout.completions],
    }
    write_text(_path(run, step), json.dumps(values))


def _prune(run: RunDir) -> None:
    """Delete the rollouts whose checkpoints are gone, and what a kill left of one."""
    kept = {_path(run, saved.step) for saved in run.complete_checkpoints()}
    for path in (*run.checkpoints.glob("rollout-*.json"), *run.checkpoints.glob(".rollout-*")):
        if path not in kept:
            path.unlink(missing_ok=True)


def _read(run: RunDir, step: int) -> Rollout | None:
    """Return the rollout stored with a checkpoint; None if there is none, or one that doesn't fit."""
    try:
        values = load_object(_path(run, step), MAX_BYTES)
        if values["checkpoint"] != _digest(run, step):
            return None
        completions = [Generated(ids, logps) for ids, logps in zip(values["ids"], values["logps"], strict=True)]
        return Rollout(values["step"], values["policy_step"], values["prompts"], completions, values["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
