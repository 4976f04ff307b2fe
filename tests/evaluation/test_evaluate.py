"""Evaluation of the untrained demo model: what is counted, and that it is the same every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_r1.evaluation.measures import EvaluatedAnswer, count_by_frequency, limits, success
from mini_r1.evaluation.measuring import Evaluation, measure
from mini_r1.evaluation.statistics import rate_interval
from mini_r1.generation.completers import BATCH_ROWS, TransformersCompleter
from mini_r1.generation.model import load_model, load_tokenizer
from mini_r1.generation.sampler import SamplingConfig
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.rewards import judge

SETTINGS: dict[str, Any] = {
    "samples": 3,
    "sampling": SamplingConfig(max_new_tokens=12, temperature=1.0),
    "prompt_style": "script",
    "seed": 5,
}


@pytest.fixture(scope="module")
def loaded(model_directory: Path) -> tuple[Any, Any]:
    return load_model(str(model_directory), None, "float32", None), load_tokenizer(str(model_directory), None)


def evaluate(
    model: Any, tokenizer: Any, problems: list[Problem], batch_rows: int = BATCH_ROWS, **settings: Any
) -> Evaluation:
    return measure(CountdownTask(), TransformersCompleter(model, tokenizer, batch_rows), problems, **settings)


def answer(problem: Problem, text: str, tokens: int = 10, truncated: bool = False) -> EvaluatedAnswer:
    return EvaluatedAnswer(judge(text, problem), tokens, truncated)


def test_figures_by_hand() -> None:
    """Three problems, four samples each; every figure is worked out by hand."""
    easy, twin, hard = Problem((2, 5, 3), 10), Problem((3, 2, 5), 4), Problem((3, 5, 2, 1), 31)
    right = "2 + 5 = 7\n7 + 3 = 10</think>\n<answer>2 + 5 + 3</answer>"
    unformatted = "</think><answer>2 + 5 + 3</answer>"
    evaluation = Evaluation(
        CountdownTask(),
        greedy=[answer(easy, right), answer(twin, "nothing", truncated=True), answer(hard, "nothing")],
        sampled=[
            [answer(easy, right, 20), answer(easy, unformatted), answer(easy, "?", truncated=True), answer(easy, "?")],
            [
                answer(twin, right),
                answer(twin, "?"),
                answer(twin, "</think>\n<answer>5 - 3 + 22</answer>"),
                answer(twin, "?"),
            ],
            [answer(hard, "</think>\n<answer>3 * 5 * 2 * 1</answer>", 30)] * 3
            + [answer(hard, "</think>\n<answer>3 * 5 * 2 + 1</answer>")],
        ],
        temperature=0.9,
        seconds=1.23,
    )
    figures = evaluation.to_json(None)
    assert list(figures) == [
        "problems", "samples", "temperature", "greedy", "greedy_ci95", "sampled", "ci95", "pass_at_k", "by_size",
        "by_operators", "format", "tries", "completion_tokens", "truncated", "failures", "reasons", "baselines",
        "seconds",
    ]  # fmt: skip
    assert (figures["problems"], figures["samples"], figures["temperature"], figures["seconds"]) == (3, 4, 0.9, 1.2)
    assert figures["greedy"] == pytest.approx(1 / 3, abs=1e-6)
    assert figures["sampled"] == pytest.approx((2 / 4 + 0 + 1 / 4) / 3, abs=1e-6)
    assert list(figures["pass_at_k"]) == ["1", "2", "4"]
    assert figures["pass_at_k"]["1"] == {"value": figures["sampled"], "ci95": figures["ci95"]}
    assert figures["pass_at_k"]["2"]["value"] == pytest.approx((5 / 6 + 0 + 1 / 2) / 3, abs=1e-6)
    assert figures["pass_at_k"]["4"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert figures["format"] == pytest.approx(7 / 12, abs=1e-6)
    assert figures["tries"] == pytest.approx(4 / 12, abs=1e-6)
    assert figures["completion_tokens"] == pytest.approx((20 + 30 * 3 + 8 * 10) / 12, abs=1e-6)
    assert figures["truncated"] == pytest.approx(1 / 12, abs=1e-6)
    # The two problems over 2, 3 and 5 are one cluster: both have mean 1/4, which is no certainty.
    assert figures["ci95"] == pytest.approx([0.0549, 0.5719], abs=1e-4)  # Clopper and Pearson's of 3 of 12
    assert figures["by_size"]["4"]["sampled"] == 0.25
    assert list(figures["reasons"].items()) == [
        ("no </think>", 4),
        ("result is N, not N", 4),
        ("number N is not among the numbers", 1),
    ]
    assert figures["by_size"]["3"] == {
        "problems": 2, "sampled": 0.25, "ci95": None, "greedy": 0.5, "greedy_ci95": None,
    }  # fmt: skip
    assert {key: of["problems"] for key, of in figures["by_operators"].items()} == {
        "add_subtract_suffice": 2,
        "needs_multiply_or_divide": 1,
    }
    assert figures["failures"] == {
        "the equation is right as such, and its result is not the target": 4,
        "the thought never ends": 3,
        "a number that was not given, or too often": 1,
        "cut off at the longest length while still thinking": 1,
    }
    # Of (2, 5, 3) there are four signed sums. `right` makes two tries that leave a number out and answers with a third
    # one: its chances are 1/4, 1/3 and 1/2; every other answer is one try. 31 is no signed sum.
    sums = figures["baselines"]["signed_sums"]
    assert sums["expected"] == pytest.approx(2 * (1 / 4 + 1 / 3 + 1 / 2 + 3 / 4), abs=1e-3)
    assert sums["observed"] == 3
    assert sums["observed_over_expected"] == pytest.approx(3 / (11 / 3), abs=1e-3)
    assert sums["success_at_tries"]["all"] == pytest.approx(2 / 3, abs=1e-6)
    assert sums["by_operators"]["needs_multiply_or_divide"]["observed_over_expected"] is None
    assert sums["by_operators"]["add_subtract_suffice"]["observed"] == 2
    assert set(figures["baselines"]) == {"random_solver", "signed_sums"}
    assert set(figures["baselines"]["random_solver"]) == set(sums)
    assert json.loads(json.dumps(figures)) == figures


def test_the_random_solver_follows_the_rule_of_the_game() -> None:
    """2 and 3: by + - * five draws of six count, two of which are 6; by + - none is."""
    problem = Problem((2, 3), 6)
    rows = [answer(problem, "</think>")]
    for operators, share, every in (("+-*", 2 / 5, 1.0), ("+-", 0.0, 0.0)):
        figures = Evaluation(CountdownTask(), rows, [rows], 1.0, 0.0).to_json({"operators": operators})["baselines"][
            "random_solver"
        ]
        assert figures["success_at_tries"]["1"] == pytest.approx(share, abs=0.07)
        assert figures["success_at_tries"]["4"] == every  # there are three results
        assert figures["expected"] == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "truncated", "words"),
    [
        ("thinking", True, "cut off at the longest length while still thinking"),
        ("thinking", False, "the thought never ends"),
        ("</think>\n7", False, "no answer after the thought"),
        ("</think>\n<answer>3 + 5</answer>", False, "a number is left out"),
        ("</think>\n<answer>3 + 5 + 5</answer>", False, "a number that was not given, or too often"),
        ("</think>\n<answer>3 + 5 + 9</answer>", False, "a number that was not given, or too often"),
        ("</think>\n<answer>03 + 5 + 2</answer>", False, "the answer is no equation that can be read"),
        ("</think>\n<answer>3 × 5 + 2</answer>", False, "the answer is no equation that can be read"),
        ("</think>\n<answer></answer>", False, "the answer is no equation that can be read"),
        ("</think>\n<answer>2 / (5 - 5)</answer>", False, "a number that was not given, or too often"),
        ("</think>\n<answer>3 + 5 + 2 = 11</answer>", False, "the equation claims a result that it does not have"),
        ("</think>\n<answer>3 + 5 + 2 = x</answer>", False, "the answer is no equation that can be read"),
        (
            "</think>\n<answer>3 * 5 * 2</answer>",
            False,
            "the equation is right as such, and its result is not the target",
        ),
    ],
)
def test_why_an_answer_is_wrong_in_words(text: str, truncated: bool, words: str) -> None:
    verdict = judge(text, Problem((3, 5, 2), 10))
    assert not verdict.right
    assert CountdownTask().classify_failure(verdict.reason, truncated=truncated) == words


def test_division_by_zero_has_words_of_its_own() -> None:
    verdict = judge("</think>\n<answer>2 / (5 - 5)</answer>", Problem((2, 5, 5), 10))
    assert CountdownTask().classify_failure(verdict.reason, truncated=False) == "division by zero"


def test_two_evaluations_are_the_same(loaded: tuple[Any, Any], problems: list[Problem]) -> None:
    model, tokenizer = loaded
    torch.manual_seed(1)
    first = evaluate(model, tokenizer, problems, **SETTINGS)
    torch.manual_seed(2)
    second = evaluate(model, tokenizer, problems, **SETTINGS)
    assert (first.greedy, first.sampled) == (second.greedy, second.sampled)
    other = evaluate(model, tokenizer, problems, **{**SETTINGS, "seed": 6})
    assert (first.greedy, first.sampled) != (other.greedy, other.sampled)
    assert first.greedy == other.greedy
    assert [a.verdict.problem for a in first.greedy] == problems
    assert [[a.verdict.problem for a in answers] for answers in first.sampled] == [[p] * 3 for p in problems]


def test_more_samples_than_a_batch_holds_are_drawn_in_rounds(loaded: tuple[Any, Any], problems: list[Problem]) -> None:
    seen: list[int] = []
    found = evaluate(*loaded, problems[:2], **{**SETTINGS, "samples": 7}, batch_rows=3, on_progress=seen.append)
    assert [[answer.verdict.problem for answer in answers] for answers in found.sampled] == [
        [p] * 7 for p in problems[:2]
    ]
    assert max(later - before for before, later in zip([0, *seen], seen, strict=False)) <= 3
    for answers in found.sampled:
        assert len({answer.verdict.completion.text for answer in answers}) > 3  # no round repeats another's draws


def test_greedy_is_what_transformers_generates(loaded: tuple[Any, Any], problems: list[Problem]) -> None:
    model, tokenizer = loaded
    ours = evaluate(model, tokenizer, problems, **SETTINGS).greedy
    assert ours
    for problem, greedy in zip(problems, ours, strict=True):
        chat = CountdownTask().messages(problem, "script")
        text = tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True)
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
        assert greedy.verdict.completion.text == tokenizer.decode(ids, skip_special_tokens=True)
        assert greedy.tokens == len(ids)
        assert greedy.truncated == (ids[-1].item() != tokenizer.eos_token_id)


def test_progress_ends_at_the_total(loaded: tuple[Any, Any], problems: list[Problem]) -> None:
    seen: list[int] = []
    evaluate(*loaded, problems, **SETTINGS, on_progress=seen.append, batch_rows=6)
    assert seen[-1] == len(problems) * 4
    assert len(seen) > 4
    assert seen == sorted(seen)


def test_reasons_come_by_frequency_and_then_by_name() -> None:
    assert list(count_by_frequency(["b", "a", "c", "c"]).items()) == [("c", 2), ("a", 1), ("b", 1)]


def test_success_has_six_digits_and_k_up_to_64() -> None:
    problems = [Problem((n, n + 1, n + 2), 5) for n in range(1, 8)]
    greedy = [1, 0, 0, 0, 0, 0, 1]
    found = success(CountdownTask(), problems, greedy, [10, 0, 20, 0, 30, 0, 40], samples=100)
    assert list(found["pass_at_k"]) == ["1", "2", "4", "8", "16", "32", "64"]
    assert (found["greedy"], found["sampled"]) == (0.285714, 0.142857)
    # One greedy answer for each problem, however many are sampled.
    assert found["greedy_ci95"] == limits(rate_interval(greedy, 1, range(7)))
    assert found["greedy_ci95"] not in [limits(rate_interval(greedy, samples, range(7))) for samples in (0, 2)]
    assert limits((1 / 3, 2 / 3)) == [0.333333, 0.666667]
