"""GRPO in three steps: rollout, score, loss. A thin subclass of TRL 0.14.0's GRPOTrainer.

TRL 0.14.0 generates inside the loss, once for every micro-batch, and calculates log-probabilities without the attention
mask and without the temperature that the completions were sampled with. Here one rollout serves all micro-batches of
an optimizer step (`get_batch_samples` of transformers 4.48 hands them over together), rewards and advantages follow,
and the loss sees prepared tensors. docs/trl-fixes.md lists every difference.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate.utils import gather_object
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerControl
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import grpo_trainer

from mini_r1.errors import Stopped
from mini_r1.generation.prompts import completion_texts, token_ids
from mini_r1.generation.sampler import SamplingConfig, Stop, never, step_seed
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.countdown import task
from mini_r1.training.batches import Batch, micro_batches
from mini_r1.training.checkpoints import check_space, save_snapshot, saving, seal_together, space_needed
from mini_r1.training.gradients import GradientGuard
from mini_r1.training.logprobs import completion_logps, plain_head
from mini_r1.training.metrics import summary
from mini_r1.training.rollout import Completion, RewardPlan, compare, judge
from mini_r1.training.rollout_engines import Engine, SeedOfRank
from mini_r1.training.verify_sync import SyncCheck
from mini_r1.training.watch import Trouble, Watch
from mini_r1.training.window import Window
from mini_r1.training.world import World

logger = logging.getLogger(__name__)

HELD_OUT_RANK = -2
"""The rank of an evaluation during training in `step_seed`, counted down from here by the workers; -1 is that of
`mini-r1 evaluate`."""

OnRollout = Callable[[int, list[dict[str, Any]]], None]
"""Called on rank 0 with the optimizer step and the records of all ranks' completions."""
OnPhase = Callable[[str], None]
"""Called with the name of the phase that begins: sync, rollout, score, reference, update, evaluate, save."""
OnTrouble = Callable[[int, list[Trouble]], None]
"""Called with the optimizer step and what is wrong after it."""


class CountdownTrainer(GRPOTrainer):
    """GRPOTrainer with one rollout for each optimizer step.

    Args:
        model: a loaded model, so that its dtype, attention and revision are the recipe's; may carry an adapter.
        reference: the policy that the KL is taken to; None without a KL term, and with an adapter, which is switched
            off instead.
        rewards: what to reward; all four verdicts of the game are logged besides.
        args: TRL's configuration.
        train_dataset: rows of `prompt` (text), `nums` and `target`, in the order in which they are to be used.
        held_out: such rows to measure success on while training goes on.
        processing_class: the tokenizer; pads on the left.
        eos_token_ids: tokens that end a completion.
        engine: what samples completions.
        sync_check: looks whether an engine with weights of its own got them; None: nobody looks.
        run: where checkpoints and snapshots go.
        world: this process among the workers.
        stop: whether a worker was asked to stop. A rollout, a scoring or an evaluation is abandoned then: the weights
            are still those of the last finished step, and the resumed run draws the same completions.
        checkpoint_only: whether the save that is due has no snapshot; not asked at the end.
        watch: what looks wrong.
        on_rollout: receives every completion of a step; None on the other ranks.
        on_phase: receives the phases.
        on_trouble: receives what the watch found.
        callbacks: transformers callbacks.
    """

    def __init__(
        self,
        model: Any,
        *,
        reference: Any,
        rewards: RewardPlan,
        args: GRPOConfig,
        train_dataset: Any,
        held_out: Sequence[dict[str, Any]],
        processing_class: PreTrainedTokenizerBase,
        eos_token_ids: Sequence[int],
        engine: Engine,
        sync_check: SyncCheck | None = None,
        run: RunDir,
        world: World,
        stop: Stop = never,
        checkpoint_only: Callable[[], bool] = never,
        watch: Watch,
        on_rollout: OnRollout | None,
        on_phase: OnPhase,
        on_trouble: OnTrouble,
        callbacks: list[Any],
    ) -> None:
        self._guard = GradientGuard()
        # TRL makes a reference whatever beta is, and loads it without dtype or revision under ZeRO-3.
        with patch.multiple(
            grpo_trainer, create_reference_model=lambda _: reference, is_deepspeed_zero3_enabled=lambda: False
        ):
            super().__init__(
                model=model,
                reward_funcs=[],  # scored once for the whole step
                args=args,
                train_dataset=train_dataset,
                processing_class=processing_class,
                callbacks=[*callbacks, self._guard],
            )
        self.remove_callback(PrinterCallback)  # prints raw dictionaries where the kit draws its own line
        if self.is_deepspeed_enabled:
            # transformers has divided the loss by the accumulation already, and the engine would do it again.
            self.accelerator.backward = partial(self.accelerator.backward, scale_wrt_gas=False)
        self.control: TrainerControl
        self.stopped_by: Trouble | None = None
        self.evaluation_due = False
        """Whether a stop abandoned the evaluation of the last finished step: a resume has to begin with it."""
        self._rewards = rewards
        self._held_out = held_out
        self._eos_token_ids = list(eos_token_ids)
        self._engine = engine
        self._sync_check = sync_check
        self._loaded_step: int | None = None
        self._run = run
        self._world = world
        self._stop = stop
        self._abandoned = False
        self._checkpoint_only = checkpoint_only
        self._watch = watch
        self._on_rollout = on_rollout
        self._on_phase = on_phase
        self._on_trouble = on_trouble
        self._plain_head: bool | None = None
        self._window = Window()
        self._step_values: dict[str, float] = {}
        self._micro_values: list[torch.Tensor] = []
        self._update_started: float | None = None

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Train to the end, from the beginning or from a checkpoint's folder."""
        with warnings.catch_warnings():
            if resume_from_checkpoint is not None:
                self._watch.load(self._window.load(Path(resume_from_checkpoint)))
                # Of pickles whose hashes are in the manifest of this very run.
                warnings.filterwarnings("ignore", "You are using `torch.load` with `weights_only=False`", FutureWarning)
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _get_train_sampler(self) -> Sampler:
        return SequentialSampler(self.train_dataset)  # `order.run_order` has shuffled the rows

    # --- rollout ---

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int) -> tuple[list[Batch], None]:
        """Return the micro-batches of the next step, with completions, advantages and reference; none after a stop."""
        if self._abandoned:  # transformers asks for all steps of the epoch before it looks whether to stop
            return [], None
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches)
        if not batches:  # transformers asks once more at the end of the data
            return [], None
        try:
            prepared, records = self._prepare([row for batch in batches for row in batch], len(batches))
        except Stopped:
            self._abandon("rollout")
            return [], None
        if self._on_rollout is not None:
            self._on_rollout(self.state.global_step + 1, records)
        self._on_phase("update")
        self._update_started = time.perf_counter()
        return prepared, None

    def _prepare(self, rows: Sequence[dict[str, Any]], count: int) -> tuple[list[Batch], list[dict[str, Any]]]:
        """Return the `count` micro-batches of a step over these rows, and the records of all ranks' completions.

        Raises:
            Stopped: on every rank.
        """
        self._load_engine()
        with self._phase("rollout"):
            completions = self._complete(
                rows, self.num_generations, lambda rank: step_seed(self.args.seed, self.state.global_step, rank)
            )
        with self._phase("score"):
            self._world.unless_stopped(lambda: judge(completions, self._rewards, self._stop))
            groups = compare(completions, self._rewards, self.num_generations)
            records = self._records(completions)
            counted = sum(c.group_differs or not self._rewards.drop_equal_groups for c in completions)
            means = self._mean_over_ranks(torch.tensor([groups.reward_std, groups.equal, float(counted)]))
            self._step_values.update(summary(records))
            self._step_values.update(zip(("reward_std", "frac_groups_all_equal"), means, strict=False))
            self._step_values["tokens_per_second"] = (
                sum(record["tokens"] for record in records) / self._step_values["time/rollout"]
            )
        prepared = micro_batches(
            completions,
            count,
            pad_token_id=self.processing_class.pad_token_id,
            device=self.accelerator.device,
            drop_equal_groups=self._rewards.drop_equal_groups,
            counted=means[2],
        )
        if self.beta:
            with self._phase("reference"), self._reference() as reference, torch.no_grad():
                for batch in prepared:
                    if self._world.any(self._stop()):
                        raise Stopped
                    batch["reference_logps"] = self._completion_logps(reference, batch)
        return prepared, records

    def _abandon(self, what: str) -> None:
        """End training after the last finished step; save it if that was not done. Every rank has to call it."""
        self._abandoned = True
        step = self.state.global_step
        saved = self._world.from_main(lambda: [checkpoint.step for checkpoint in self._run.complete_checkpoints()])
        logger.info("asked to stop: the %s after step %d is abandoned", what, step)
        self.control.should_training_stop = True
        self.control.should_save = step > max(saved, default=0)

    def _load_engine(self) -> None:
        """Bring an engine with weights of its own to those of this step; at a resume it has the untrained model's."""
        if self._engine.separate and self._loaded_step != self.state.global_step:
            with self._phase("sync"):
                self._engine.load(self.model_wrapped, self.accelerator)
            self._loaded_step = self.state.global_step
            if self._sync_check is not None:
                self._step_values.update(self._sync_check(self.model_wrapped, self.accelerator))

    def _complete(self, rows: Sequence[dict[str, Any]], num_generations: int, seed: SeedOfRank) -> list[Completion]:
        """Sample completions for each row; those of one row stand next to one another. Every rank has to call it."""
        prompts = token_ids(self.processing_class, [row["prompt"] for row in rows]) if rows else []
        config = SamplingConfig(self.max_completion_length, self.args.temperature, num_generations)
        sampled = self._engine.sample(self.model_wrapped, self.accelerator, prompts, config, seed)
        texts = completion_texts(self.processing_class, [each.ids for each in sampled])
        completions = []
        for i, (each, text) in enumerate(zip(sampled, texts, strict=True)):
            row = rows[i // num_generations]
            completions.append(
                Completion(
                    problem=task.Problem(tuple(row["nums"]), row["target"]),
                    prompt=row["prompt"],
                    prompt_ids=prompts[i // num_generations],
                    ids=each.ids,
                    truncated=each.ids[-1] not in self._eos_token_ids,
                    text=text,
                    sampled_logps=each.logps,
                )
            )
        return completions

    def _records(self, completions: Sequence[Completion]) -> list[dict[str, Any]]:
        """Of the completions of all ranks, on every rank."""
        step = self.state.global_step + 1
        records: list[dict[str, Any]] = gather_object([c.record(step, self._rewards.names) for c in completions])
        return records

    @contextmanager
    def _reference(self) -> Iterator[Any]:
        """The reference policy: a model of its own, or this one with its adapter switched off."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        model = self.accelerator.unwrap_model(self.model_wrapped)
        was_training = model.training
        model.eval()
        try:
            with model.disable_adapter():
                yield model
        finally:
            model.train(was_training)

    # --- loss ---

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """GRPO's loss of one micro-batch (DeepSeekMath, arXiv:2402.03300, equation 3, one update for each rollout).

        Its value is beta times the KL: the policy term is exp(logp - logp.detach()) = 1 times advantages that average
        to 0 in every group. So it prints as 0 early on; its gradient is the policy gradient all the same.
        """
        logps = self._completion_logps(model, inputs)
        kl = torch.zeros_like(logps)
        if self.beta:
            # The k3 estimator of KL(policy || reference), http://joschu.net/blog/kl-approx.html
            difference = inputs["reference_logps"] - logps
            kl = torch.exp(difference) - difference - 1
        policy = torch.exp(logps - logps.detach()) * inputs["advantages"].unsqueeze(1)
        loss = _mean_of_completions(self.beta * kl - policy, inputs)
        # Tokens were sampled from the policy itself, so the mean of -logp estimates its entropy without bias.
        entropy = _mean_of_completions(-logps, inputs)
        values = [loss, entropy, _mean_of_completions(kl, inputs)]
        if "sampled_logps" in inputs:
            values.append(_mean_of_completions((logps.detach() - inputs["sampled_logps"]).abs(), inputs))
        self._micro_values.append(torch.stack(values).detach())
        return loss

    def _completion_logps(self, model: Any, inputs: Batch) -> torch.Tensor:
        """(B, C), see `logprobs.completion_logps`."""
        unwrapped = self.accelerator.unwrap_model(model)
        head = unwrapped.get_output_embeddings()
        if self._plain_head is None:
            self._plain_head = plain_head(model, head, inputs) is not None
        vocabulary = unwrapped.config.get_text_config().vocab_size
        return completion_logps(model, head if self._plain_head else None, vocabulary, inputs, self.args.temperature)

    # --- after a step ---

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        """transformers calls this after each optimizer step, and logs, evaluates and saves in it if asked to."""
        if self._update_started is not None:  # not at the end of the data, where it is called once more
            self._end_of_step(grad_norm, time.perf_counter() - self._update_started)
            self._update_started = None
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _end_of_step(self, grad_norm: Any, seconds: float) -> None:
        """Add the step's metrics to the window and look at them; `seconds` is how long its update took."""
        values, self._step_values = self._step_values, {}
        values["time/update"] = seconds
        means = self._mean_over_ranks(torch.stack(self._micro_values).mean(dim=0))
        self._micro_values = []
        values.update(zip(("loss", "entropy", "kl", "logp_gap"), means, strict=False))
        if not self.beta:
            del values["kl"]
        if not self.args.fp16:  # there an infinite norm is part of the game: the loss scaler finds its scale by it
            values["grad_norm"] = self._guard.norm if grad_norm is None else float(grad_norm)
        for name, value in values.items():
            self._window.add(name, value)
        self._look_for_trouble(values)

    def _look_for_trouble(self, values: dict[str, float]) -> None:
        """Tell what is wrong after the step, and stop with a checkpoint where the recipe wants that."""
        troubles = self._watch.check(self.state.global_step, values)
        if not troubles:
            return
        self._on_trouble(self.state.global_step, troubles)
        self.stopped_by = next((trouble for trouble in troubles if trouble.stop), None)
        if self.stopped_by is not None:
            self.control.should_training_stop = True
            # Under DeepSpeed the engine has taken the step already: not to be saved over a good checkpoint.
            self.control.should_save = not (self.is_deepspeed_enabled and self.stopped_by.name == "not_finite")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the window's means to a training line; TRL's own version would add them to an evaluation's, too."""
        if "loss" in logs:
            logs = {**logs, **self._window.take()}
        super(GRPOTrainer, self).log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Sample one completion of each held-out problem; TRL 0.14.0 crashes here (open-r1#216).

        The same problems with the same luck each time, so that two steps can be compared.
        """
        try:
            self._load_engine()
            with self._phase("evaluate"):
                own = self._held_out[self._world.rank :: self._world.size]
                completions = self._complete(own, 1, lambda rank: step_seed(self.args.seed, 0, HELD_OUT_RANK - rank))
                judge(completions, self._rewards)
                records = self._records(completions)
        except Stopped:
            self.evaluation_due = True
            self.control.should_evaluate = False
            self._abandon("evaluation")
            return {}
        metrics = {f"eval_{name}": value for name, value in summary(records).items()}
        metrics["eval_problems"] = len(records)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --- saving ---

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._run.checkpoints)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a full checkpoint and a 16-bit snapshot, both complete on return; then delete older checkpoints."""
        step, world = self.state.global_step, self._world
        snapshot = self.control.should_training_stop or not self._checkpoint_only()
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
            zero = self.accelerator.state.deepspeed_plugin
            facts = {"zero_stage": zero.zero_stage if zero else 0}
            if self.evaluation_due:
                facts["evaluation_due"] = True
            seal_together(folder, self._run, step, world, facts)

    def _save_snapshot(self, unwrapped: Any) -> None:
        """On rank 0. Weights gathered from ZeRO-3's shards are freed on return: the checkpoint gathers them anew."""
        zero = self.accelerator.state.deepspeed_plugin
        gathered = self.accelerator.get_state_dict(self.model_wrapped) if zero and zero.zero_stage == 3 else None
        if self._world.main:
            save_snapshot(unwrapped, self.processing_class, self._run, self.state.global_step, gathered)

    # --- small things ---

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Say that a phase begins, and how long it took (in seconds, with the next step's metrics)."""
        self._on_phase(name)
        start = time.perf_counter()
        yield
        self._step_values[f"time/{name}"] = time.perf_counter() - start

    def _mean_over_ranks(self, values: torch.Tensor) -> list[float]:
        """(N,) -> N means, the same on every rank."""
        gathered = self.accelerator.gather(values.to(self.accelerator.device).unsqueeze(0))
        means: list[float] = gathered.mean(dim=0).tolist()
        return means


def _mean_of_completions(values: torch.Tensor, inputs: Batch) -> torch.Tensor:
    """Weighted sum over completions of the mean over a completion's tokens: (B, C) -> ()."""
    mask = inputs["completion_mask"]
    return ((values * mask).sum(dim=1) / mask.sum(dim=1) * inputs["weights"]).sum()
