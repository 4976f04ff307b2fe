"""The trainer against stock TRL 0.14.0: the same loss and gradients where stock is right, the right ones where not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from mini_r1.plan.memory import UpdateLimits
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.training.prepare import Policy
from mini_r1.training.rollout import Batch, Completion, collate, micro_batches, score, set_advantages
from mini_r1.training.rollout_engines import PolicyEngine
from mini_r1.training.trainer import CountdownTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from tests.training.flash_kernels import replace_kernels
from tests.training.silent_attempt import silent_attempt
from tests.training.test_packing import kernels  # noqa: F401

SHORT, LONG = Problem((3, 4, 5), 12), Problem((1, 2, 3, 4, 5, 6), 21)
GENERATIONS = 4


@pytest.fixture(scope="module")
def tokenizer(untrained: Path) -> Any:
    return AutoTokenizer.from_pretrained(untrained, padding_side="left")


def prompt(tokenizer: Any, problem: Problem) -> str:
    chat = CountdownTask().messages(problem, "script")
    return tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True)


def config(tmp_path: Path, **changes: Any) -> GRPOConfig:
    values = {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
        "num_generations": GENERATIONS, "max_completion_length": 12, "max_prompt_length": 64, "beta": 0.1,
        "temperature": 1.0, "report_to": [], "use_cpu": True, "seed": 5, "disable_tqdm": True,
    }  # fmt: skip
    return GRPOConfig(**{**values, **changes})


def perturbed(untrained: Path) -> Any:
    """A policy that differs from its reference, so that the KL term counts."""
    model = AutoModelForCausalLM.from_pretrained(untrained)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def kit(untrained: Path, tokenizer: Any, tmp_path: Path, **changes: Any) -> CountdownTrainer:
    args = config(tmp_path, **changes)
    data = datasets.Dataset.from_list([{"prompt": "", "nums": [1, 2], "target": 3}] * 2)
    reference = AutoModelForCausalLM.from_pretrained(untrained).eval() if args.beta else None
    attempt, policy = silent_attempt(tmp_path), Policy(perturbed(untrained), reference, tokenizer)
    engine = PolicyEngine(attempt.world, policy.eos_token_ids, tokenizer)
    return CountdownTrainer(attempt, policy, engine, args=args, train_dataset=data)


def batch_of(trainer: CountdownTrainer, completions: Sequence[Completion]) -> Batch:
    """One micro-batch of completions, reference included."""
    batch = collate(completions, 1 / len(completions), trainer.processing_class.pad_token_id, torch.device("cpu"))
    return with_reference(trainer, batch)


def with_reference(trainer: CountdownTrainer, batch: Batch) -> Batch:
    if trainer.beta:
        with torch.no_grad(), trainer._reference() as reference:
            batch["reference_logps"] = trainer._completion_logps(reference, batch)
    return batch


def stock(untrained: Path, tokenizer: Any, tmp_path: Path, rewards: Any, **changes: Any) -> GRPOTrainer:
    data = datasets.Dataset.from_list([{"prompt": ""}] * 2)
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(untrained), reward_funcs=rewards, args=config(tmp_path, **changes),
        train_dataset=data, processing_class=tokenizer,
    )  # fmt: skip
    trainer.model.load_state_dict(perturbed(untrained).state_dict())
    return trainer


def completions_of(tokenizer: Any, problems: Sequence[Problem]) -> list[Completion]:
    """GENERATIONS fixed completions for each problem, of different lengths, all ended by the model."""
    texts = ["3 + 4 = 7 (too low)\n", "5 - 3 = 2 + 1", "4 * 3 = 12 (yes)\n</think>", "1 + 2"]
    found = []
    for problem in problems:
        text = prompt(tokenizer, problem)
        for i in range(GENERATIONS):
            ids = tokenizer.encode(texts[i], add_special_tokens=False)[:11] + [tokenizer.eos_token_id]
            found.append(
                Completion(problem, text, tokenizer.encode(text, add_special_tokens=False), ids, False, texts[i])
            )
    return found


def with_advantages(completions: list[Completion], rewards: Sequence[float]) -> list[Completion]:
    groups = torch.tensor(rewards).view(-1, GENERATIONS)
    advantages = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    for completion, advantage in zip(completions, advantages.flatten().tolist(), strict=True):
        completion.advantage = advantage
    return completions


def feed(trainer: GRPOTrainer, tokenizer: Any, completions: Sequence[Completion]) -> None:
    """Let stock TRL 'generate' these completions."""
    width = max(len(c.ids) for c in completions)
    right = torch.tensor([c.ids + [tokenizer.pad_token_id] * (width - len(c.ids)) for c in completions])

    def generate(input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.cat([input_ids.repeat_interleave(GENERATIONS, dim=0), right], dim=1)

    trainer.model.generate = generate


def gradients(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


REWARDS = [0.0, 1.0, 2.0, 0.0, 1.0, 1.0, 0.0, 2.0]


def both(
    untrained: Path, tokenizer: Any, tmp_path: Path, problems: Sequence[Problem], **changes: Any
) -> tuple[float, torch.Tensor, float, torch.Tensor]:
    """Loss and gradients of the kit and of stock TRL from the same completions and rewards."""
    completions = with_advantages(completions_of(tokenizer, problems), REWARDS)
    ours = kit(untrained, tokenizer, tmp_path, **changes)
    loss = ours.compute_loss(ours.model, batch_of(ours, completions))
    loss.backward()
    theirs = stock(untrained, tokenizer, tmp_path, lambda prompts, completions: REWARDS, **changes)
    feed(theirs, tokenizer, completions)
    stock_loss = theirs.compute_loss(theirs.model, [{"prompt": prompt(tokenizer, p)} for p in problems])
    stock_loss.backward()
    return loss.item(), gradients(ours.model), stock_loss.item(), gradients(theirs.model)


def test_where_stock_is_right_loss_and_gradients_are_equal(untrained: Path, tokenizer: Any, tmp_path: Path) -> None:
    """One prompt length, temperature 1, beta > 0."""
    ours, our_gradients, theirs, their_gradients = both(untrained, tokenizer, tmp_path, [SHORT, SHORT])
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours != pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-4, atol=1e-7)


def test_stock_attends_to_padding_and_the_kit_does_not(untrained: Path, tokenizer: Any, tmp_path: Path) -> None:
    """Row 2: prompts of different length in one batch (trl#2708)."""
    ours, our_gradients, theirs, their_gradients = both(untrained, tokenizer, tmp_path, [SHORT, LONG])
    assert not torch.allclose(our_gradients, their_gradients, rtol=1e-2)
    alone = []
    for problem, rewards in ((SHORT, REWARDS[:4]), (LONG, REWARDS[4:])):  # no padding of prompts in either
        trainer = kit(untrained, tokenizer, tmp_path)
        completions = with_advantages(completions_of(tokenizer, [problem]), rewards)
        loss = trainer.compute_loss(trainer.model, batch_of(trainer, completions))
        loss.backward()
        alone.append((loss.item(), gradients(trainer.model)))
    assert ours == pytest.approx((alone[0][0] + alone[1][0]) / 2, rel=1e-5)
    torch.testing.assert_close(our_gradients, (alone[0][1] + alone[1][1]) / 2, rtol=1e-4, atol=1e-7)
    assert theirs != pytest.approx(ours, rel=1e-4)


def test_log_probabilities_are_at_the_sampling_temperature(untrained: Path, tokenizer: Any, tmp_path: Path) -> None:
    """Row 3: stock leaves the temperature out (trl#3029)."""
    completions = with_advantages(completions_of(tokenizer, [SHORT, SHORT]), REWARDS)
    trainer = kit(untrained, tokenizer, tmp_path, temperature=0.5)
    batch = batch_of(trainer, completions)
    logps = trainer._completion_logps(trainer.model, batch)
    row = completions[0]
    ids = torch.tensor([row.prompt_ids + row.ids])
    logits = trainer.model(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1]
    expected = (logits / 0.5).log_softmax(-1).gather(1, torch.tensor(row.ids).unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(logps[: len(row.ids)], expected, rtol=1e-4, atol=1e-5)
    ours, _, theirs, _ = both(untrained, tokenizer, tmp_path, [SHORT, SHORT], temperature=0.5)
    assert ours != pytest.approx(theirs, rel=1e-3)


def test_the_loss_prints_as_zero_while_the_gradient_is_real(untrained: Path, tokenizer: Any, tmp_path: Path) -> None:
    """Row 15: before the first update the policy is the reference, so the value is beta x 0."""
    trainer = kit(untrained, tokenizer, tmp_path)
    trainer.model.load_state_dict(AutoModelForCausalLM.from_pretrained(untrained).state_dict())
    completions = with_advantages(completions_of(tokenizer, [SHORT, SHORT]), REWARDS)
    loss = trainer.compute_loss(trainer.model, batch_of(trainer, completions))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert gradients(trainer.model).norm() > 1e-3


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_cutting_into_micro_batches_by_length_does_not_change_the_gradient(
    untrained: Path, tokenizer: Any, tmp_path: Path, count: int
) -> None:
    completions = with_advantages(completions_of(tokenizer, [SHORT, LONG]), REWARDS)
    whole = kit(untrained, tokenizer, tmp_path)
    whole.compute_loss(whole.model, batch_of(whole, completions)).backward()
    parts = kit(untrained, tokenizer, tmp_path)
    batches = micro_batches(completions, count, 1 / 8, completions[0], pad_token_id=0, device=torch.device("cpu"))
    assert len(batches) == count  # the ninth holds a completion that counts nothing
    for batch in batches:
        parts.compute_loss(parts.model, with_reference(parts, batch)).backward()
    torch.testing.assert_close(gradients(parts.model), gradients(whole.model), rtol=1e-4, atol=1e-7)


def plain_gradient(trainer: CountdownTrainer, completions: Sequence[Completion]) -> torch.Tensor:
    """The gradient of GRPO's loss by its formula: one sequence at a time, all logits, no padding."""
    model, beta = trainer.model, trainer.beta
    for c in completions:
        ids, answer = torch.tensor([c.prompt_ids + c.ids]), torch.tensor(c.ids).unsqueeze(1)

        def logps(network: Any, ids: torch.Tensor = ids, answer: torch.Tensor = answer) -> torch.Tensor:
            logits = network(input_ids=ids).logits[0, -len(answer) - 1 : -1]
            return (logits / trainer.args.temperature).log_softmax(-1).gather(1, answer).squeeze(1)

        own = logps(model)
        with torch.no_grad():
            difference = logps(trainer.ref_model) - own
        kl = torch.exp(difference + own.detach() - own) - (difference + own.detach() - own) - 1
        policy = torch.exp(own - own.detach()) * c.advantage
        ((beta * kl - policy).mean() / len(completions)).backward()
    return gradients(model)


def step_gradient(
    trainer: CountdownTrainer,
    completions: list[Completion],
    rewards: Sequence[float],
    monkeypatch: pytest.MonkeyPatch,
) -> torch.Tensor:
    """Return the gradient of a step over given completions and rewards, as transformers' loop takes it."""

    def scored(completions: list[Completion], **_: Any) -> None:
        score(CountdownTask(), completions, {"format": 1.0})
        for completion, reward in zip(completions, rewards, strict=True):
            completion.reward = reward

    monkeypatch.setattr(trainer, "_score", scored)
    monkeypatch.setattr(trainer, "_complete", lambda *_: completions)
    trainer.create_optimizer()
    count = trainer.args.gradient_accumulation_steps
    substeps, _ = trainer.get_batch_samples(iter([[{}]] * count), count)
    assert [bool(batches) for batches in substeps] == [False] * (count - 1) + [True]
    for batches in substeps:
        trainer.training_step(trainer.model, batches)
    return gradients(trainer.model)


@pytest.mark.parametrize(("tokens", "count"), [(1, 8), (80, 4), (150, 2), (300, 1)])
def test_a_step_has_the_gradient_of_the_formula_for_any_limit(
    untrained: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, count: int
) -> None:
    completions = completions_of(tokenizer, [SHORT, LONG])
    trainer = kit(untrained, tokenizer, tmp_path, gradient_accumulation_steps=2, temperature=0.8)
    trainer._limits = UpdateLimits(tokens, 0)
    found = step_gradient(trainer, completions, REWARDS, monkeypatch).clone()
    assert len(trainer._micro_values) == count
    trainer.model.zero_grad()
    torch.testing.assert_close(found, plain_gradient(trainer, completions), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("tokens", [80, 10_000])
def test_with_flash_attention_a_step_is_packed_and_has_the_same_gradient(
    untrained: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """By the stand-in kernels."""
    replace_kernels(monkeypatch)
    completions = completions_of(tokenizer, [SHORT, LONG])
    padded = kit(untrained, tokenizer, tmp_path)
    expected = step_gradient(padded, completions, REWARDS, monkeypatch)
    trainer = kit(untrained, tokenizer, tmp_path)
    for model in (trainer.model, trainer.ref_model):
        model.config._attn_implementation = "flash_attention_2"
    trainer._limits = UpdateLimits(tokens, 0)
    widths: list[tuple[int, ...]] = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, named: widths.append(named["input_ids"].shape), with_kwargs=True
    )
    found = step_gradient(trainer, completions, REWARDS, monkeypatch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    packed = widths[-len(trainer._micro_values) :]
    assert {rows for rows, _ in packed} == {1}
    assert sum(width for _, width in packed) == sum(c.length for c in completions)


def test_groups_without_a_difference_can_leave_the_update(
    untrained: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient is then the mean over the completions that are left; without any it is zero."""
    trainer = kit(untrained, tokenizer, tmp_path)
    trainer._attempt.recipe = trainer._attempt.recipe.model_copy(update={"drop_zero_variance_groups": True})
    completions = completions_of(tokenizer, [SHORT, LONG])
    found = step_gradient(trainer, completions, [1.0] * 4 + REWARDS[4:], monkeypatch).clone()
    trainer.model.zero_grad()
    torch.testing.assert_close(found, plain_gradient(trainer, completions[4:]), rtol=1e-4, atol=1e-7)
    trainer.model.zero_grad()
    assert step_gradient(trainer, completions, [1.0] * 8, monkeypatch).abs().max() == 0


def of_lengths(*lengths: int) -> list[Completion]:
    return [Completion(SHORT, "", [1] * 10, [1] * n, False) for n in lengths]


def test_advantages_come_from_the_weighted_sum_within_each_group() -> None:
    problem = Problem((6, 7), 42)
    texts = [
        "it is surely six times seven</think>\n<answer>6 * 7</answer>",
        "no",
        "6 * 7</think>\n<answer>6 * 7</answer>",
        "no",
    ]
    completions = [Completion(problem, "", [1], [1], False, text) for text in texts]
    score(CountdownTask(), completions, {"format": 1.0, "words": 0.5})
    set_advantages(completions, GENERATIONS)
    rewards = [c.verdict.rewards for c in completions if c.verdict]
    assert [each["equation"] for each in rewards] == [1, 0, 1, 0]
    assert [each["format"] for each in rewards] == [1.0, 0.0, 1.0, 0.0]
    assert completions[0].reward == pytest.approx(1.0 + 0.5 * rewards[0]["words"])
    assert rewards[0]["words"] > rewards[2]["words"] > 0
    assert sum(c.advantage for c in completions) == pytest.approx(0.0, abs=1e-5)
    assert completions[1].advantage == completions[3].advantage < 0


def test_without_scaling_the_advantage_is_the_difference_to_the_mean() -> None:
    completions = of_lengths(1, 1, 1, 1)
    for completion, reward in zip(completions, (0.0, 0.0, 0.0, 2.0), strict=True):
        completion.reward = reward
    set_advantages(completions, GENERATIONS, scale=False)
    assert [c.advantage for c in completions] == [-0.5, -0.5, -0.5, 1.5]


def test_a_group_with_equal_rewards_has_no_advantage_and_is_counted() -> None:
    completions = of_lengths(1, 1, 1, 1) + of_lengths(1, 1, 1, 1)
    for completion, reward in zip(completions, (0.1, 0.1, 0.1, 0.1, 0.0, 1.0, 0.0, 0.0), strict=True):
        completion.reward = reward
    statistics = set_advantages(completions, GENERATIONS)
    assert statistics.equal == 0.5
    assert [c.group_differs for c in completions] == [False] * 4 + [True] * 4
    assert [c.advantage for c in completions[:4]] == pytest.approx([0.0] * 4, abs=1e-3)


@pytest.mark.parametrize(("beta", "references"), [(0.0, 0), (0.1, 1)])
def test_no_reference_model_without_a_kl_term(
    untrained: Path, tokenizer: Any, tmp_path: Path, beta: float, references: int
) -> None:
    """Row 11: stock makes one for any beta."""
    assert stock(untrained, tokenizer, tmp_path, lambda **_: REWARDS, beta=beta).ref_model is not None
    assert (kit(untrained, tokenizer, tmp_path, beta=beta).ref_model is not None) == bool(references)
