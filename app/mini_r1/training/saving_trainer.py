"""TRL's trainer with the kit's saves: checkpoint and snapshot complete on return, and phases that are reported."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from mini_r1.run.run_dir import RunDir
from mini_r1.training.attempt import Attempt
from mini_r1.training.checkpoints import check_space, save_snapshot, saving, seal_together, space_needed
from mini_r1.training.metrics import Window
from mini_r1.training.rollout_ahead import RolloutAhead
from mini_r1.training.watch import Watch
from mini_r1.training.world import World


class SavingTrainer(GRPOTrainer):
    """GRPOTrainer that saves as the kit does; a subclass sets what is declared here."""

    evaluation_due: bool  # set if a stop abandons the last step's evaluation: a resume begins with it
    _attempt: Attempt
    _world: World
    _run: RunDir
    _watch: Watch
    _window: Window
    _ahead: RolloutAhead | None  # None without `rollout_ahead`
    _step_values: dict[str, float]  # metrics of the step that runs

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._run.checkpoints)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a full checkpoint and a 16-bit snapshot, both complete on return; then delete older checkpoints."""
        step, world = self.state.global_step, self._world
        snapshot = self.control.should_training_stop or not self._attempt.checkpoint_only
        with self._phase("save"), saving(self._run, world.main):
            unwrapped = self.accelerator.unwrap_model(self.model)
            trained = sum(p.numel() for p in unwrapped.parameters() if p.requires_grad)
            world.from_main(lambda: check_space(self._run, space_needed(self._run, trained, snapshot=snapshot)))
            if snapshot:
                self._save_snapshot(unwrapped)  # before the checkpoint: one that is complete has its snapshot
            super()._save_checkpoint(model, trial)
            folder = self._run.checkpoints / f"{PREFIX_CHECKPOINT_DIR}-{step}"
            if world.main:
                self._window.save(folder, self._watch.state())
            due = {"evaluation_due": True} if self.evaluation_due else {}
            seal_together(folder, self._run, step, world, {"zero_stage": self._zero_stage, **due})
        if self._ahead is not None:
            # After the checkpoint: a run that is killed while it waits for vLLM has saved.
            with self._phase("rollout", "wait"), saving(self._run, world.main):
                stopping = self.control.should_training_stop
                self._ahead.store(self._run, step, self._attempt.grace_is_over, stopping=stopping)
        self._attempt.saved()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights that a resume reads; under DeepSpeed they are in its own files, so nothing is written.

        transformers 4.48.1 gathers and writes them once more there, and never reads that copy.
        """
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)

    def _save_snapshot(self, unwrapped: Any) -> None:
        """Save on rank 0. Weights gathered from ZeRO-3's shards are freed on return."""
        gathered = self.accelerator.get_state_dict(self.model_wrapped) if self._zero_stage == 3 else None
        if self._world.main:
            save_snapshot(unwrapped, self.processing_class, self._run, self.state.global_step, gathered)

    @property
    def _zero_stage(self) -> int:
        plugin = self.accelerator.state.deepspeed_plugin
        return plugin.zero_stage if plugin else 0

    def _begin_phase(self, name: str) -> None:
        self._attempt.phase(name, None if self._ahead is None else self._ahead.in_flight)

    @contextmanager
    def _phase(self, name: str, timed: str | None = None) -> Iterator[None]:
        """Report that a phase begins; its seconds are among the next step's metrics, by the name `timed` if given."""
        self._begin_phase(name)
        start = time.perf_counter()
        yield
        metric = f"time/{timed or name}"
        self._step_values[metric] = self._step_values.get(metric, 0.0) + time.perf_counter() - start
