"""GRPO in three steps: rollout, score, loss. A thin subclass of TRL 0.14.0's GRPOTrainer.

TRL 0.14.0 generates inside the loss, once for every micro-batch, and calculates log-probabilities without the attention
mask and without the temperature that the completions were sampled with. Here one rollout serves all micro-batches of
an optimizer step (`get_batch_samples` of transformers 4.48 hands them over together), rewards and advantages follow,
and the loss gets prepared tensors. docs/trl-fixes.md lists every difference.
"""

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate.utils import gather_object
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, TrainerControl
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import grpo_trainer

from mini_r1.errors import Stopped
from mini_r1.generation.prompts import completion_texts, token_ids
from mini_r1.generation.sampler import SamplingConfig, step_seed
from mini_r1.generation.stop_strings import is_truncated
from mini_r1.generation.vllm_client import Generated
from mini_r1.plan.memory import UNKNOWN_LIMITS, UpdateLimits
from mini_r1.tasks.registry import find_task
from mini_r1.tasks.reward_file import CodeReward
from mini_r1.training.attempt import Attempt
from mini_r1.training.grpo_loss import OffPolicyCorrection, grpo_loss, loss_metrics
from mini_r1.training.logprobs import completion_logps, plain_head, separates_packed
from mini_r1.training.metrics import Window, summary
from mini_r1.training.prepare import Policy
from mini_r1.training.rollout import Batch, Completion, micro_batches, score, set_advantages, split
from mini_r1.training.rollout_ahead import RolloutAhead
from mini_r1.training.rollout_engines import Engine, SeedOfRank, SharedEngine
from mini_r1.training.saving_trainer import SavingTrainer
from mini_r1.training.watch import Alert, GradientGuard, Watch

logger = logging.getLogger(__name__)

HELD_OUT_RANK = -2
"""The rank of an evaluation during training in `step_seed`, counted down from here by the workers; -1 is that of
`mini-r1 evaluate`."""


class CountdownTrainer(SavingTrainer):
    """GRPOTrainer with one rollout for each optimizer step, over rows of `prompt` (text) and the task's columns.

    When it is asked to stop it abandons a rollout, a scoring or an evaluation: the weights are still those of the last
    finished step, and the resumed run draws the same completions.
    """

    def __init__(
        self,
        attempt: Attempt,
        policy: Policy,
        engine: Engine,
        *,
        args: GRPOConfig,
        train_dataset: Any,
        held_out: Sequence[dict[str, Any]] = (),
        code: Sequence[CodeReward] = (),
        limits: UpdateLimits = UNKNOWN_LIMITS,
    ) -> None:
        self._guard = GradientGuard()
        # TRL makes a reference for any beta, and loads it without dtype or revision under ZeRO-3.
        with patch.multiple(
            grpo_trainer, create_reference_model=lambda _: policy.reference, is_deepspeed_zero3_enabled=lambda: False
        ):
            super().__init__(
                model=policy.model,
                reward_funcs=[],  # scored once for the whole step
                args=args,
                train_dataset=train_dataset,
                processing_class=policy.tokenizer,
                callbacks=[*attempt.callbacks, self._guard],
            )
        self.remove_callback(PrinterCallback)  # prints raw dictionaries; the kit prints its own line
        if self.is_deepspeed_enabled:
            # transformers has divided the loss by the accumulation already, and the engine would do it again.
            self.accelerator.backward = partial(self.accelerator.backward, scale_wrt_gas=False)
        self.control: TrainerControl
        self.stopped_by: Alert | None = None
        self.evaluation_due = False  # set if a stop abandons the last step's evaluation: a resume begins with it
        self._attempt, self._world, self._run = attempt, attempt.world, attempt.run
        self._task = find_task(attempt.recipe.task)
        self._correction = OffPolicyCorrection.from_recipe(attempt.recipe)
        prefill = self._task.prompt(attempt.recipe.prompt_style).prefill
        self._score = partial(score, self._task, weights=attempt.recipe.resolved_rewards(), prefill=prefill, code=code)
        self._watch = Watch(attempt.recipe.watch)
        self._held_out = held_out
        self._limits = limits
        logger.info("micro-batches of at most %d tokens, %d bytes of logits kept", limits.tokens, limits.logits_bytes)
        self._eos_token_ids = policy.eos_token_ids
        self._engine = engine
        sampling = SamplingConfig.from_recipe(attempt.recipe, self.num_generations, self.args.temperature)
        self._sampling = replace(sampling, max_new_tokens=self.max_completion_length)
        self._ahead: RolloutAhead | None = None
        if attempt.recipe.rollout_ahead and isinstance(engine, SharedEngine):
            self._ahead = RolloutAhead(engine, attempt.world, self._sampling, self.args.seed)
        self._rows_after: list[dict[str, Any]] | None = None  # those of the step after the next, for a rollout ahead
        self._loaded_step: int | None = None
        self._abandoned = False
        self._plain_head: bool | None = None
        self._packed = False
        self._window = Window()
        self._step_values: dict[str, float] = {}
        self._micro_values: list[torch.Tensor] = []
        self._update_started: float | None = None

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Train to the end, from the beginning or from a checkpoint's folder."""
        with warnings.catch_warnings():
            if resume_from_checkpoint is not None:
                folder = Path(resume_from_checkpoint)
                self._watch.load(self._window.load(folder))
                if self._ahead is not None:
                    self._ahead.load(self._run, int(folder.name.removeprefix("step-")))
                # These pickles' hashes are in the manifest of this run.
                warnings.filterwarnings("ignore", "You are using `torch.load` with `weights_only=False`", FutureWarning)
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _get_train_sampler(self) -> Sampler:
        return SequentialSampler(self.train_dataset)  # `schedule.run_order` has shuffled the rows

    # --- rollout ---

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int) -> tuple[list[list[Batch]], None]:
        """Return the micro-batches of the next step, all in its last batch; none after a stop."""
        if self._abandoned:  # transformers asks for all steps of the epoch before it checks whether to stop
            return [], None
        rows = self._rows_after if self._rows_after is not None else self._next_rows(epoch_iterator, num_batches)
        if not rows:  # transformers asks once more at the end of the data
            return [], None
        self._rows_after = self._next_rows(epoch_iterator, num_batches) if self._ahead else None
        try:
            prepared = self._prepare(rows)
        except Stopped:
            self._abandon("rollout")
            return [], None
        # transformers and accelerate count `gradient_accumulation_steps` batches a step and synchronize in the last.
        return [[]] * (num_batches - 1) + [prepared], None

    def _next_rows(self, epoch_iterator: Iterator[Any], num_batches: int) -> list[dict[str, Any]]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches)
        return [row for batch in batches for row in batch]

    def _prepare(self, rows: Sequence[dict[str, Any]]) -> list[Batch]:
        """Return the micro-batches of a step over these rows, the same number on every rank."""
        recipe, drop = self._attempt.recipe, self._attempt.recipe.drop_zero_variance_groups
        completions = self._rollout(rows)
        with self._phase("score"):
            step = self.state.global_step + 1
            self._world.unless_stopped(lambda: self._score(completions, stop=self._attempt.stop, step=step))
            groups = set_advantages(completions, self.num_generations, scale=recipe.scale_rewards)
            records = gather_object([c.record(self._task, step) for c in completions])
            kept = [c for c in completions if c.group_differs or not drop]
            means = self._mean_over_ranks(torch.tensor([groups.reward_std, groups.equal, float(len(kept))]))
            self._step_values |= summary(self._task, records)
            self._step_values |= zip(("reward_std", "frac_groups_all_equal"), means, strict=False)
            if completions[0].sampled_logps is not None:
                self._step_values["off_policy/age"] = self.state.global_step - completions[0].policy_step
            tokens = sum(record["tokens"] for record in records)
            self._step_values["tokens_per_second"] = tokens / self._step_values["time/rollout"]
        # transformers divides by the accumulation, DDP and DeepSpeed take the mean over the ranks.
        weight = self.args.gradient_accumulation_steps / means[2] if means[2] else 0.0
        self._check(self.model_wrapped)
        needed = max(1, len(split(kept, self._limits.tokens, packed=self._packed)))
        prepared = micro_batches(
            kept,
            max(gather_object([needed])),
            weight,
            filler=min(completions, key=lambda c: c.length),
            packed=self._packed,
            pad_token_id=self.processing_class.pad_token_id,
            device=self.accelerator.device,
        )
        if self.beta:
            with self._phase("reference"), self._reference() as reference, torch.no_grad():
                for batch in prepared:
                    if self._world.any(self._attempt.stop()):
                        raise Stopped
                    batch["reference_logps"] = self._completion_logps(reference, batch)
        self._attempt.rollout(self.state.global_step + 1, records)
        self._begin_phase("update")
        self._update_started = time.perf_counter()
        return prepared

    def _abandon(self, what: str) -> None:
        """End training after the last finished step, which is saved if it has no checkpoint. A collective."""
        self._abandoned = True
        step = self.state.global_step
        saved = self._world.from_main(lambda: [checkpoint.step for checkpoint in self._run.complete_checkpoints()])
        logger.info("asked to stop: the %s after step %d is abandoned", what, step)
        self.control.should_training_stop = True
        self.control.should_save = step > max(saved, default=0)

    def _load_engine(self) -> None:
        """Update an engine's own weights to those of this step; at a resume it has the untrained model's."""
        engine = self._engine
        if isinstance(engine, SharedEngine) and self._loaded_step != self.state.global_step:
            with self._phase("sync"):
                engine.load(self.model_wrapped, self.accelerator)
            self._loaded_step = self.state.global_step
            if engine.check is not None:
                self._step_values |= engine.check(self.model_wrapped, self.accelerator)

    def _rollout(self, rows: Sequence[dict[str, Any]]) -> list[Completion]:
        """Return the completions of the next rows; if vLLM samples ahead, have it begin those of the rows after."""
        done = self.state.global_step
        if self._ahead is None:
            self._load_engine()
            with self._phase("rollout"):
                return self._complete(rows, self.num_generations, lambda rank: step_seed(self.args.seed, done, rank))
        self._collect()
        self._load_engine()
        prompts = self._prompts(rows)
        if not self._ahead.has(done + 1, prompts):  # the first step of a run, or of an attempt that has none stored
            self._ahead.begin(done + 1, done, prompts)
            self._collect()
        if self._rows_after:
            self._ahead.begin(done + 2, done, self._prompts(self._rows_after))
        sampled, rollout = self._ahead.take(done + 1, prompts)
        self._step_values["time/rollout"] = rollout.seconds
        self._step_values.setdefault("time/wait", 0.0)  # a stored rollout is not waited for
        return self._completions(rows, prompts, sampled, rollout.policy_step)

    def _collect(self) -> None:
        """Wait for the rollout that vLLM samples ahead, if any: only then does it take weights or other prompts."""
        if self._ahead is not None and self._ahead.in_flight is not None:
            with self._phase("rollout", "wait"):
                self._ahead.collect(self._attempt.stop)

    def _complete(self, rows: Sequence[dict[str, Any]], num_generations: int, seed: SeedOfRank) -> list[Completion]:
        """Sample completions for each row, those of one row next to one another. A collective."""
        prompts = self._prompts(rows)
        config = replace(self._sampling, num_generations=num_generations)
        sampled = self._engine.sample(self.model_wrapped, self.accelerator, prompts, config, seed)
        return self._completions(rows, prompts, sampled, self.state.global_step)

    def _prompts(self, rows: Sequence[dict[str, Any]]) -> list[list[int]]:
        return token_ids(self.processing_class, [row["prompt"] for row in rows]) if rows else []

    def _completions(
        self,
        rows: Sequence[dict[str, Any]],
        prompts: Sequence[list[int]],
        sampled: Sequence[Generated],
        policy_step: int,
    ) -> list[Completion]:
        num_generations = len(sampled) // max(1, len(rows))
        texts = completion_texts(self.processing_class, [each.ids for each in sampled])
        inputs = [pair for pair in zip(rows, prompts, strict=True) for _ in range(num_generations)]
        return [
            Completion(
                problem=self._task.parse(row, "the training data"),
                prompt=row["prompt"],
                prompt_ids=prompt_ids,
                ids=each.ids,
                truncated=is_truncated(each.ids, text, self._eos_token_ids, self._sampling.stop),
                text=text,
                policy_step=policy_step,
                sampled_logps=each.logps,
            )
            for (row, prompt_ids), each, text in zip(inputs, sampled, texts, strict=True)
        ]

    @contextmanager
    def _reference(self) -> Iterator[Any]:
        """Yield the reference policy: another model, or this one with its adapter switched off."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        model = self.accelerator.unwrap_model(self.model_wrapped)
        was_training = model.training
        with model.disable_adapter():
            yield model.eval()
        model.train(was_training)

    # --- loss ---

    def training_step(self, model: Any, inputs: list[Batch], num_items_in_batch: Any = None) -> torch.Tensor:
        """Add up the gradients of a step's micro-batches and return their loss; they are synchronized in the last.

        With DeepSpeed the last one takes the optimizer step.
        """
        loss = torch.zeros((), device=self.accelerator.device)
        for number, batch in enumerate(inputs, start=1):
            last = number == len(inputs)
            wait = nullcontext() if last or self.is_deepspeed_enabled else self.accelerator.no_sync(model)
            if self.is_deepspeed_enabled:
                model.set_gradient_accumulation_boundary(last)
                # ZeRO-2 adds up in the host's memory, if it offloads, only for an accumulation above 1.
                model.optimizer.gradient_accumulation_steps = len(inputs)
            with wait:
                loss += super().training_step(model, batch)
        return loss

    def floating_point_ops(self, inputs: list[Batch]) -> int:
        """Return transformers' estimate for the micro-batches of a step."""
        return sum(map(super().floating_point_ops, inputs))

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the loss of a micro-batch, see `grpo_loss`."""
        logps = self._completion_logps(model, inputs)
        loss, sums = grpo_loss(logps, inputs, self.beta, self._correction)
        self._micro_values.append(sums)
        return loss

    def _completion_logps(self, model: Any, inputs: Batch) -> torch.Tensor:
        """Return (N,), see `logprobs.completion_logps`."""
        self._check(model)
        unwrapped = self.accelerator.unwrap_model(model)
        vocabulary = unwrapped.config.get_text_config().vocab_size
        head = unwrapped.get_output_embeddings() if self._plain_head else None
        kept = self._limits.logits_bytes
        return completion_logps(model, head, vocabulary, inputs, self.args.temperature, kept)

    def _check(self, model: Any) -> None:
        """Find out once how this kind of model may be called. A collective under ZeRO-3."""
        if self._plain_head is not None:
            return
        device, unwrapped = self.accelerator.device, self.accelerator.unwrap_model(model)
        self._plain_head = plain_head(model, unwrapped.get_output_embeddings(), device)
        # Without a plain head the logits of all prompt tokens would be calculated too.
        if self._plain_head and unwrapped.config._attn_implementation == "flash_attention_2":
            self._packed = separates_packed(model, device)
            logger.info("sequences are %s", "packed" if self._packed else "padded: this model can't tell them apart")

    # --- after a step ---

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        """Add the step's metrics; transformers calls this after each optimizer step to log, evaluate and save."""
        if self._update_started is not None:  # not at the end of the data, where it is called once more
            self._step_values["time/update"] = time.perf_counter() - self._update_started
            self._update_started = None
            self._end_of_step(grad_norm)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _end_of_step(self, grad_norm: Any) -> None:
        """Add the step's metrics to the window and check them."""
        values, self._step_values = self._step_values, {}
        sums = torch.stack(self._micro_values).sum(dim=0)
        means = self._mean_over_ranks(sums / self.args.gradient_accumulation_steps)
        self._micro_values = []
        values |= loss_metrics(means, self._correction, kl=bool(self.beta))
        if not self.args.fp16:  # the loss scaler finds its scale by infinite norms
            values["grad_norm"] = self._guard.norm if grad_norm is None else float(grad_norm)
        self._window.add(values)
        alerts = self._watch.check(self.state.global_step, values)
        if alerts:
            self._attempt.trouble(self.state.global_step, alerts)
        self.stopped_by = next((alert for alert in alerts if alert.stop), self.stopped_by)
        if self.stopped_by is not None:
            self.control.should_training_stop = True
            # DeepSpeed's engine has taken the step already: don't save it over a good checkpoint.
            self.control.should_save = not (self.is_deepspeed_enabled and self.stopped_by.name == "not_finite")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the window's means to a training line; TRL's version would add them to an evaluation's, too."""
        if "loss" in logs:
            logs = {**logs, **self._window.take()}
        super(GRPOTrainer, self).log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Sample one completion of each held-out problem; TRL 0.14.0 crashes here (open-r1#216).

        Problems and seeds are the same each time, so that two steps can be compared.
        """
        try:
            self._collect()
            self._load_engine()
            with self._phase("evaluate"):
                own = self._held_out[self._world.rank :: self._world.size]
                completions = self._complete(own, 1, lambda rank: step_seed(self.args.seed, 0, HELD_OUT_RANK - rank))
                self._score(completions, step=self.state.global_step + 1)
                records = gather_object([c.record(self._task, self.state.global_step + 1) for c in completions])
        except Stopped:
            self.evaluation_due = True
            self.control.should_evaluate = False
            self._abandon("evaluation")
            return {}
        metrics = {f"eval_{name}": value for name, value in summary(self._task, records).items()}
        metrics["eval_problems"] = len(records)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --- helpers ---

    def _mean_over_ranks(self, values: torch.Tensor) -> list[float]:
        """Return N means of a tensor (N,), the same on every rank."""
        gathered = self.accelerator.gather(values.to(self.accelerator.device).unsqueeze(0))
        return gathered.mean(dim=0).tolist()  # type: ignore[no-any-return]
