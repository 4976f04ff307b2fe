"""GRPO in three steps: rollout, score, loss. A thin subclass of TRL 0.14.0's GRPOTrainer.

TRL 0.14.0 generates inside the loss, once for every micro-batch, and calculates log-probabilities without the attention
mask and without the temperature that the completions were sampled with. Here one rollout serves all micro-batches of
an optimizer step (`get_batch_samples` of transformers 4.48 hands them over together), rewards and advantages follow,
and the loss sees prepared tensors. docs/trl-mends.md lists every difference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedTokenizerBase, PrinterCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from mini_r1.countdown import task
from mini_r1.generation.prompts import token_ids
from mini_r1.generation.sampler import SamplingConfig, sample, step_seed
from mini_r1.rundir import RunDir, seal
from mini_r1.training.checkpoints import save_snapshot

ADVANTAGE_EPSILON = 1e-4
"""Added to a group's standard deviation; TRL 0.14.0's value."""


@dataclass(frozen=True, slots=True)
class RewardPlan:
    """What is rewarded: names in the registry of `countdown.rewards` and the weight of each."""

    names: tuple[str, ...]
    weights: tuple[float, ...]


@dataclass(slots=True)
class Completion:
    """One sampled completion and everything known about it."""

    problem: task.Problem
    prompt: str
    prompt_ids: list[int]
    ids: list[int]
    truncated: bool
    """Cut at max_completion_length, without an end token."""
    text: str = ""
    verdict: task.Verdict | None = None
    rewards: tuple[float, ...] = ()
    """One for each name of the RewardPlan, without weights."""
    reward: float = 0.0
    advantage: float = 0.0

    def record(self, step: int, names: Sequence[str]) -> dict[str, Any]:
        """The row of completions.jsonl."""
        assert self.verdict is not None
        verdicts = asdict(self.verdict)
        reason = verdicts.pop("reason")
        return {
            "step": step,
            "nums": list(self.problem.nums),
            "target": self.problem.target,
            "prompt": self.prompt,
            "completion": self.text,
            "rewards": {**verdicts, **dict(zip(names, self.rewards, strict=True))},
            "reward": self.reward,
            "reason": reason,
            "advantage": self.advantage,
            "tokens": len(self.ids),
            "truncated": self.truncated,
        }


OnRollout = Callable[[int, list[dict[str, Any]]], None]
"""Called on rank 0 with the optimizer step and the records of all ranks' completions."""
OnPhase = Callable[[str], None]
"""Called with the name of the phase that begins: rollout, score, update, save."""


class CountdownTrainer(GRPOTrainer):
    """GRPOTrainer with one rollout for each optimizer step.

    Args:
        model: a loaded model, so that its dtype, attention and revision are the recipe's.
        rewards: what to reward; all four verdicts of the game are logged besides.
        args: TRL's configuration.
        train_dataset: rows of `prompt` (text), `nums` and `target`, in the order in which they are to be used.
        processing_class: the tokenizer; pads on the left.
        eos_token_ids: tokens that end a completion.
        run: where checkpoints and snapshots go.
        on_rollout: receives every completion of a step.
        on_phase: receives the phases.
        callbacks: transformers callbacks.
    """

    def __init__(
        self,
        model: Any,
        *,
        rewards: RewardPlan,
        args: GRPOConfig,
        train_dataset: Any,
        processing_class: PreTrainedTokenizerBase,
        eos_token_ids: Sequence[int],
        run: RunDir,
        on_rollout: OnRollout,
        on_phase: OnPhase,
        callbacks: list[Any],
    ) -> None:
        super().__init__(
            model=model,
            reward_funcs=[],  # scored in `_score`, once for the whole step
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)  # prints raw dictionaries where the kit draws its own line
        self._rewards = rewards
        self._eos_token_ids = list(eos_token_ids)
        self._run = run
        self._on_rollout = on_rollout
        self._on_phase = on_phase
        self._update_started: float | None = None

    def _get_train_sampler(self) -> Sampler:
        return SequentialSampler(self.train_dataset)  # `order.run_order` has shuffled the rows

    # --- one optimizer step ---

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int) -> tuple[list[dict[str, Any]], None]:
        """All micro-batches of the next optimizer step, with completions and advantages."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches)
        if not batches:  # transformers asks once more at the end of the data
            return [], None
        self._on_phase("rollout")
        with self._timed("rollout"):
            completions = self._rollout([row for batch in batches for row in batch])
        self._on_phase("score")
        with self._timed("score"):
            self._score(completions)
            self._record(completions)
        self._on_phase("update")
        self._update_started = time.perf_counter()
        return self._micro_batches(completions, len(batches)), None

    def _rollout(self, rows: Sequence[dict[str, Any]]) -> list[Completion]:
        """Sample num_generations completions for each row; those of one row stand next to one another."""
        prompts = token_ids(self.processing_class, [row["prompt"] for row in rows])
        config = SamplingConfig(
            max_new_tokens=self.max_completion_length,
            temperature=self.args.temperature,
            num_generations=self.num_generations,
        )
        seed = step_seed(self.args.seed, self.state.global_step, self.accelerator.process_index)
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
            sampled = sample(
                model,
                prompts,
                config,
                eos_token_ids=self._eos_token_ids,
                pad_token_id=self.processing_class.pad_token_id,
                seed=seed,
            )
        texts = self.processing_class.batch_decode(sampled, skip_special_tokens=True)
        completions = []
        for i, (ids, text) in enumerate(zip(sampled, texts, strict=True)):
            row = rows[i // self.num_generations]
            completions.append(
                Completion(
                    problem=task.Problem(tuple(row["nums"]), row["target"]),
                    prompt=row["prompt"],
                    prompt_ids=prompts[i // self.num_generations],
                    ids=ids,
                    truncated=ids[-1] not in self._eos_token_ids,
                    text=text,
                )
            )
        return completions

    def _score(self, completions: Sequence[Completion]) -> None:
        """Fill in verdicts, rewards and advantages (reward minus the group's mean, over its standard deviation)."""
        names, weights = self._rewards.names, self._rewards.weights
        for c in completions:
            c.verdict = task.judge(c.text, c.problem)
            c.rewards = tuple(task.reward_values(names, c.text, c.problem, c.verdict))
            c.reward = sum(weight * value for weight, value in zip(weights, c.rewards, strict=True))
        groups = torch.tensor([c.reward for c in completions]).view(-1, self.num_generations)
        mean, std = groups.mean(dim=1, keepdim=True), groups.std(dim=1, keepdim=True)
        for c, advantage in zip(
            completions, ((groups - mean) / (std + ADVANTAGE_EPSILON)).flatten().tolist(), strict=True
        ):
            c.advantage = advantage
        self._metrics["reward_std"].append(self._mean_over_ranks(std.mean().item()))
        self._metrics["frac_groups_all_equal"].append(self._mean_over_ranks((std == 0).float().mean().item()))

    def _record(self, completions: Sequence[Completion]) -> None:
        """Metrics of the step over all ranks, and every completion to the run directory."""
        step = self.state.global_step + 1
        records = gather_object([c.record(step, self._rewards.names) for c in completions])
        for name in records[0]["rewards"]:
            self._metrics[f"rewards/{name}"].append(_mean(r["rewards"][name] for r in records))
        self._metrics["reward"].append(_mean(r["reward"] for r in records))
        self._metrics["success"].append(_mean(r["rewards"]["equation"] for r in records))
        self._metrics["completion_length"].append(_mean(r["tokens"] for r in records))
        self._metrics["frac_truncated"].append(_mean(r["truncated"] for r in records))
        if self.accelerator.is_main_process:
            self._on_rollout(step, records)

    def _micro_batches(self, completions: Sequence[Completion], count: int) -> list[dict[str, Any]]:
        """Cut the completions into `count` batches of equal size, like lengths together.

        The loss is a mean over completions of a mean over tokens, so which batch a completion is in does not change
        the step's gradient, and short completions are not padded to the longest one.
        """
        ordered = sorted(completions, key=lambda c: len(c.ids))
        size = len(ordered) // count
        return [self._collate(ordered[i * size : (i + 1) * size]) for i in range(count)]

    def _collate(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Prompts padded on the left, completions on the right: input_ids and attention_mask are (B, P + C)."""
        prompt_width = max(len(c.prompt_ids) for c in completions)
        width = max(len(c.ids) for c in completions)
        pad = self.processing_class.pad_token_id
        ids, mask = [], []
        for c in completions:
            left, right = prompt_width - len(c.prompt_ids), width - len(c.ids)
            ids.append([pad] * left + c.prompt_ids + c.ids + [pad] * right)
            mask.append([0] * left + [1] * (len(c.prompt_ids) + len(c.ids)) + [0] * right)
        device = self.accelerator.device
        attention_mask = torch.tensor(mask, device=device)
        return {
            "input_ids": torch.tensor(ids, device=device),
            "attention_mask": attention_mask,
            "completion_mask": attention_mask[:, prompt_width:],
            "advantages": torch.tensor([c.advantage for c in completions], device=device),
        }

    # --- loss ---

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """GRPO's loss of one micro-batch (DeepSeekMath, arXiv:2402.03300, equation 3, one update for each rollout).

        Its value is beta times the KL: the policy term is exp(logp - logp.detach()) = 1 times advantages that average
        to 0 in every group. So it prints as 0 early on; its gradient is the policy gradient all the same.
        """
        mask = inputs["completion_mask"]
        lengths = mask.sum(dim=1)
        logps = self._completion_logps(model, inputs)
        policy = torch.exp(logps - logps.detach()) * inputs["advantages"].unsqueeze(1)
        token_loss = -policy
        if self.beta:
            with torch.no_grad():
                reference = self._completion_logps(self.ref_model, inputs)
            # The k3 estimator of KL(policy || reference), http://joschu.net/blog/kl-approx.html
            difference = reference - logps
            kl = torch.exp(difference) - difference - 1
            token_loss = token_loss + self.beta * kl
            self._metrics["kl"].append(self._mean_over_ranks(_sequence_mean(kl.detach(), mask, lengths).item()))
        return _sequence_mean(token_loss, mask, lengths)

    def _completion_logps(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Log-probability of each completion token under softmax(logits / temperature): (B, C).

        The attention mask hides the left padding, and positions start at each prompt's first real token: both as in
        the rollout.
        """
        mask = inputs["attention_mask"]
        width = inputs["completion_mask"].shape[1]
        logits = model(
            input_ids=inputs["input_ids"],
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            num_logits_to_keep=width + 1,
        ).logits[:, :-1]  # the last position predicts what comes after the completion
        logits = logits.float() / self.args.temperature
        targets = inputs["input_ids"][:, -width:]
        return logits.gather(2, targets.unsqueeze(2)).squeeze(2) - logits.logsumexp(dim=2)

    # --- saving ---

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._run.checkpoints)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A full checkpoint and a 16-bit snapshot, both complete when this returns; then older checkpoints go."""
        self._on_phase("save")
        with self._timed("save"):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # every rank has written its part
            if self.accelerator.is_main_process:
                step = self.state.global_step
                seal(self._run.checkpoints / f"{PREFIX_CHECKPOINT_DIR}-{step}", self._run.checkpoints / f"step-{step}")
                save_snapshot(self.accelerator.unwrap_model(self.model), self.processing_class, self._run, step)
                self._run.prune_checkpoints()
            self.accelerator.wait_for_everyone()

    # --- metrics ---

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self._update_started is not None:  # the optimizer has just stepped
            self._metrics["time/update"].append(time.perf_counter() - self._update_started)
            self._update_started = None
        super()._maybe_log_save_evaluate(*args, **kwargs)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._metrics[f"time/{phase}"].append(time.perf_counter() - start)

    def _mean_over_ranks(self, value: float) -> float:
        return self.accelerator.gather(torch.tensor([value], device=self.accelerator.device)).mean().item()


def _sequence_mean(values: torch.Tensor, mask: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Mean over completions of the mean over a completion's tokens, for values and mask of shape (B, C)."""
    return ((values * mask).sum(dim=1) / lengths).mean()


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)
