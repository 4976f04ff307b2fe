"""The loss against its formulas in float64, written once more with NumPy, for a sampling policy that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mini_r1.training.grpo_loss import OffPolicyCorrection, grpo_loss, loss_metrics
from mini_r1.training.rollout import Batch

from tests.training.test_trainer import (
    LONG,
    REWARDS,
    SHORT,
    batch_of,
    completions_of,
    gradients,
    kit,
    tokenizer,  # noqa: F401
    with_advantages,
)

BETA = 0.3
NONE = OffPolicyCorrection()
TIS = OffPolicyCorrection("tis", cap=1.5)
CLIP = OffPolicyCorrection("clip", cap=1.5, epsilon=0.2, epsilon_high=0.3)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


class Drawn:
    """Tokens that a known policy drew in many contexts, each with logits for the next token.

    Attributes:
        sampler, trained, reference: probabilities (N, vocabulary), float64.
    """

    def __init__(self, count: int = 400, vocabulary: int = 5) -> None:
        draw = np.random.default_rng(0)
        self.logits = draw.normal(size=(count, vocabulary))
        self.trained = softmax(self.logits)
        self.sampler = softmax(self.logits + 0.5 * draw.normal(size=(count, vocabulary)))
        self.reference = softmax(self.logits + 0.5 * draw.normal(size=(count, vocabulary)))
        self.tokens = np.array([draw.choice(vocabulary, p=p) for p in self.sampler])
        self.advantages = draw.normal(size=count)
        self.weights = draw.uniform(0.1, 1, size=count)

    def of(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the log-probability of each drawn token."""
        return np.log(probabilities[np.arange(len(self.tokens)), self.tokens])

    def batch(self) -> Batch:
        values = {
            "advantages": self.advantages, "weights": self.weights, "sampled_logps": self.of(self.sampler),
            "reference_logps": self.of(self.reference),
        }  # fmt: skip
        return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}

    def loss(self, correction: OffPolicyCorrection, batch: Batch | None = None) -> tuple[torch.Tensor, ...]:
        """Return the kit's loss, its gradient by the logits, and its sums, in float32."""
        logits = torch.tensor(self.logits, dtype=torch.float32, requires_grad=True)
        logps = logits.log_softmax(-1)[torch.arange(len(self.tokens)), torch.tensor(self.tokens)]
        loss, sums = grpo_loss(logps, batch or self.batch(), BETA, correction)
        loss.backward()
        assert logits.grad is not None
        return loss.detach(), logits.grad, sums

    def gradient(self, correction: OffPolicyCorrection) -> np.ndarray:
        """Return the gradient by the logits, derived by hand."""
        ratio = np.exp(self.of(self.trained) - self.of(self.sampler))
        weight = np.minimum(ratio, correction.cap) if correction.kind != "none" else 1.0
        policy = weight * self.advantages
        if correction.kind == "clip":
            above = (self.advantages > 0) & (ratio > 1 + correction.epsilon_high)
            below = (self.advantages < 0) & (ratio < 1 - correction.epsilon)
            policy = np.where(above | below, 0.0, ratio * self.advantages)
        kl = 1 - np.exp(self.of(self.reference) - self.of(self.trained))
        by_logp = (weight * BETA * kl - policy) * self.weights
        chosen = np.eye(self.logits.shape[1])[self.tokens]
        return by_logp[:, None] * (chosen - self.trained)


@pytest.mark.parametrize("correction", [NONE, TIS, CLIP], ids=lambda correction: correction.kind)
def test_gradients_equal_those_derived_by_hand_in_float64(correction: OffPolicyCorrection) -> None:
    drawn = Drawn()
    _, gradient, _ = drawn.loss(correction)
    np.testing.assert_allclose(gradient.numpy(), drawn.gradient(correction), rtol=1e-4, atol=1e-6)


def test_each_correction_changes_the_gradient_and_limits_some_tokens() -> None:
    drawn = Drawn()
    found = {c.kind: drawn.gradient(c) for c in (NONE, TIS, CLIP)}
    assert all(np.abs(found[a] - found[b]).max() > 0.1 for a, b in (("none", "tis"), ("tis", "clip")))
    for correction, name in ((TIS, "off_policy/capped"), (CLIP, "off_policy/clipped")):
        *_, sums = drawn.loss(correction)
        assert 0.05 < loss_metrics(sums.tolist(), correction, kl=True)[name] < 0.4


def test_without_a_correction_loss_and_gradient_are_the_old_ones_to_the_bit() -> None:
    """The old ones: TRL's formula as the trainer had it before `off_policy`, which knew no sampler."""
    drawn = Drawn()
    batch = drawn.batch()
    logits = torch.tensor(drawn.logits, dtype=torch.float32, requires_grad=True)
    logps = logits.log_softmax(-1)[torch.arange(len(drawn.tokens)), torch.tensor(drawn.tokens)]
    difference = batch["reference_logps"] - logps
    kl = torch.exp(difference) - difference - 1
    policy = torch.exp(logps - logps.detach()) * batch["advantages"]
    weights = batch["weights"]
    before = ((BETA * kl - policy) * weights).sum()
    before.backward()
    loss, gradient, sums = drawn.loss(NONE)
    assert loss.equal(before.detach())
    assert gradient.equal(logits.grad)
    entropy, gap = -(logps * weights).sum(), ((logps - batch["sampled_logps"]).abs() * weights).sum()
    assert sums[:4].equal(torch.stack([before, entropy, (kl * weights).sum(), gap]).detach())
    own = {name: value for name, value in batch.items() if name != "sampled_logps"}  # the trainer samples itself
    loss, gradient, sums = drawn.loss(NONE, own)
    assert loss.equal(before.detach())
    assert gradient.equal(logits.grad)
    assert len(sums) == 3


def expected_batch(advantage: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Batch]:
    """Return the tokens that a sampler with the probabilities 1/8, 3/8, 4/8 draws, each as often as it is expected."""
    sampler = torch.tensor([1 / 8, 3 / 8, 4 / 8])
    tokens = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2])
    trained = torch.tensor([0.3, -0.2, 0.5]).log_softmax(-1).requires_grad_()
    batch = {
        "advantages": advantage[tokens], "weights": torch.full((8,), 1 / 8), "sampled_logps": sampler.log()[tokens],
        "reference_logps": torch.tensor([0.2, 0.3, 0.5]).log()[tokens],
    }  # fmt: skip
    return trained, tokens, batch


@pytest.mark.parametrize("correction", [NONE, OffPolicyCorrection("tis", cap=10)], ids=["none", "tis"])
def test_the_mean_ratio_over_the_sampler_is_1_and_its_kl_is_exact(correction: OffPolicyCorrection) -> None:
    trained, tokens, batch = expected_batch(torch.zeros(3))
    _, sums = grpo_loss(trained[tokens], batch, BETA, correction)
    found = loss_metrics(sums.tolist(), correction, kl=True)
    sampler = torch.tensor([1 / 8, 3 / 8, 4 / 8])
    assert found["off_policy/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert found["off_policy/kl"] == pytest.approx((sampler * (sampler.log() - trained.detach())).sum(), abs=1e-6)
    second = (trained.detach().exp() ** 2 / sampler).sum()  # the mean of the squared ratio
    assert found["off_policy/sample_size"] == pytest.approx(1 / second, rel=1e-5)
    entropy, kl = -(trained.exp() * trained).sum(), found["kl"]
    reference = torch.tensor([0.2, 0.3, 0.5]).log()
    exact = (trained.exp() * (trained - reference)).sum()
    weighted = correction.kind == "tis"  # then entropy and KL are those of the trained policy
    assert (found["entropy"] == pytest.approx(entropy.item(), rel=1e-5)) == weighted
    assert (kl == pytest.approx(exact.item(), rel=1e-5)) == weighted


def test_with_weights_that_are_not_capped_the_expected_gradient_is_that_of_the_trained_policy() -> None:
    advantage = torch.tensor([1.0, -2.0, 0.5])
    trained, tokens, batch = expected_batch(advantage)
    on_policy = -trained.detach().exp() * advantage  # of -sum p A lp by each lp
    found = {}
    for correction in (NONE, OffPolicyCorrection("tis", cap=10)):
        trained.grad = None
        grpo_loss(trained[tokens], batch, 0.0, correction)[0].backward()
        found[correction.kind] = trained.grad.clone()
    torch.testing.assert_close(found["tis"], on_policy)
    assert not torch.allclose(found["none"], on_policy, rtol=0.1)


def test_a_completion_that_only_fills_up_counts_nowhere_and_extreme_ratios_stay_finite() -> None:
    batch = {
        "advantages": torch.tensor([1.0, -1.0, 1.0]), "weights": torch.tensor([0.5, 0.5, 0.0]),
        "sampled_logps": torch.tensor([-500.0, -0.1, -3.0]), "reference_logps": torch.tensor([-0.2, -0.2, -0.2]),
    }  # fmt: skip
    for correction in (TIS, CLIP):
        logps = torch.tensor([-0.1, -0.2, -0.3], requires_grad=True)
        loss, sums = grpo_loss(logps, batch, BETA, correction)
        loss.backward()
        assert logps.grad.isfinite().all()
        assert logps.grad[2] == 0
        assert sums[4] == 2  # tokens
    none_left = {**batch, "weights": torch.zeros(3)}
    _, sums = grpo_loss(logps.detach(), none_left, BETA, TIS)
    assert set(loss_metrics(sums.tolist(), TIS, kl=True)) == {"loss", "entropy", "kl", "logp_gap"}


@pytest.mark.parametrize("correction", [TIS, CLIP], ids=lambda correction: correction.kind)
def test_a_model_s_gradient_is_that_of_the_formula_in_float64(
    untrained: Path,
    tokenizer: Any,  # noqa: F811
    tmp_path: Path,
    correction: OffPolicyCorrection,
) -> None:
    """The trainer's reference is the sampler: a model of which every probability is known."""
    trainer = kit(untrained, tokenizer, tmp_path, temperature=0.8)
    trainer._correction = correction
    completions = with_advantages(completions_of(tokenizer, [SHORT, LONG]), REWARDS)
    doubles = {name: model.double() for name, model in (("ref", trainer.ref_model), ("own", trainer.model))}

    def logps(name: str, completion: Any) -> torch.Tensor:
        answer = torch.tensor(completion.ids).unsqueeze(1)
        ids = torch.tensor([completion.prompt_ids + completion.ids])
        logits = doubles[name](input_ids=ids).logits[0, -len(answer) - 1 : -1]
        return (logits / 0.8).log_softmax(-1).gather(1, answer).squeeze(1)

    limited = 0
    for completion in completions:
        with torch.no_grad():
            q = logps("ref", completion)
        completion.sampled_logps = q.tolist()
        lp = logps("own", completion)
        ratio = torch.exp(lp - q)
        weight = ratio.detach().clamp(max=correction.cap)
        kl = torch.exp(q - lp) - (q - lp) - 1
        if correction.kind == "tis":
            per_token = weight * (trainer.beta * kl - torch.exp(lp - lp.detach()) * completion.advantage)
            limited += int((ratio > correction.cap).sum())
        else:
            bounded = ratio.clamp(1 - correction.epsilon, 1 + correction.epsilon_high)
            objective = torch.minimum(ratio * completion.advantage, bounded * completion.advantage)
            per_token = weight * trainer.beta * kl - objective
            limited += int((objective != ratio * completion.advantage).sum())
        (per_token.mean() / len(completions)).backward()
    assert limited
    expected = gradients(trainer.model).float()
    trainer.model.zero_grad()
    for model in doubles.values():
        model.float()
    trainer.compute_loss(trainer.model, batch_of(trainer, completions)).backward()
    torch.testing.assert_close(gradients(trainer.model), expected, rtol=2e-4, atol=1e-6)
