"""Evaluation of the untrained demo model: what is counted, and that it is the same every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_r1.countdown import task
from mini_r1.errors import KitError
from mini_r1.evaluation.evaluate import Answer, Evaluation, evaluate, folded
from mini_r1.generation.model import load_model, load_tokenizer

SETTINGS: dict[str, Any] = {
    "samples": 3,
    "temperature": 1.0,
    "max_new_tokens": 12,
    "prompt_style": "script",
    "seed": 5,
}


@pytest.fixture(scope="module")
def loaded(model_directory: Path) -> tuple[Any, Any]:
    return load_model(str(model_directory), None, "float32", None), load_tokenizer(str(model_directory), None)


def answer(problem: task.Problem, text: str, tokens: int = 10, truncated: bool = False) -> Answer:
    return Answer(problem, text, tokens, truncated, task.judge(text, problem))


def test_figures_by_hand() -> None:
    """Three problems, four samples each; every figure is worked out by hand."""
    easy, twin, hard = task.Problem((2, 5, 3), 10), task.Problem((3, 2, 5), 4), task.Problem((3, 5, 2, 1), 31)
    right = "2 + 5 = 7\n7 + 3 = 10</think>\n<answer>2 + 5 + 3</answer>"
    unformatted = "</think><answer>2 + 5 + 3</answer>"
    evaluation = Evaluation(
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
    figures = evaluation.to_json()
    assert list(figures) == [
        "problems", "samples", "temperature", "greedy", "greedy_ci95", "sampled", "ci95", "pass_at_k", "format",
        "tries", "completion_tokens", "truncated", "by", "reasons", "seconds",
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
    # The two problems over 2, 3 and 5 are one cluster: resampling can only draw clusters of mean 1/4 and 1/4.
    assert figures["ci95"] == [0.25, 0.25]
    assert figures["by"]["numbers"]["3"]["n"] == 2
    assert figures["by"]["numbers"]["3"]["greedy"] == 0.5
    assert figures["by"]["numbers"]["4"]["sampled"] == 0.25
    assert set(figures["by"]["operators"]) == {"+ and - suffice", "needs × or ÷"}
    assert list(figures["reasons"].items()) == [
        ("no </think>", 4),
        ("result is N, not N", 4),
        ("number N is not among the numbers", 1),
    ]
    assert json.loads(json.dumps(figures)) == figures


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("result is -3, not 24", "result is N, not N"),
        ("result is 7/2, not 24", "result is N, not N"),
        ("result is 123456789012345678901234.../7, not 24", "result is N, not N"),
        ("number 7 used 3 times, given twice", "number N used N times, given twice"),
        ("no </think>", "no </think>"),
    ],
)
def test_reasons_that_differ_in_numbers_are_one(reason: str, expected: str) -> None:
    assert folded(reason) == expected


def test_two_evaluations_are_the_same(loaded: tuple[Any, Any], problems: list[task.Problem]) -> None:
    model, tokenizer = loaded
    torch.manual_seed(1)
    first = evaluate(model, tokenizer, problems, **SETTINGS)
    torch.manual_seed(2)
    second = evaluate(model, tokenizer, problems, **SETTINGS)
    assert (first.greedy, first.sampled) == (second.greedy, second.sampled)
    other = evaluate(model, tokenizer, problems, **{**SETTINGS, "seed": 6})
    assert (first.greedy, first.sampled) != (other.greedy, other.sampled)
    assert first.greedy == other.greedy
    assert [a.problem for a in first.greedy] == problems
    assert [[a.problem for a in answers] for answers in first.sampled] == [[p] * 3 for p in problems]


def test_greedy_is_what_transformers_generates(loaded: tuple[Any, Any], problems: list[task.Problem]) -> None:
    model, tokenizer = loaded
    ours = evaluate(model, tokenizer, problems, **SETTINGS).greedy
    for problem, greedy in zip(problems, ours, strict=True):
        chat = task.messages(problem, "script")
        text = tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True)
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
        assert greedy.text == tokenizer.decode(ids, skip_special_tokens=True)
        assert greedy.tokens == len(ids)
        assert greedy.truncated == (ids[-1].item() != tokenizer.eos_token_id)


def test_progress_ends_at_the_total(loaded: tuple[Any, Any], problems: list[task.Problem]) -> None:
    seen: list[int] = []
    evaluate(*loaded, problems, **SETTINGS, on_progress=seen.append, batch_rows=6)
    assert seen[-1] == len(problems) * 4
    assert len(seen) > 4
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 0}, "samples must be at least 1, found 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"max_new_tokens": 0}, "at least 1 token"),
    ],
)
def test_numbers_out_of_range(
    loaded: tuple[Any, Any], problems: list[task.Problem], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(KitError, match=message):
        evaluate(*loaded, problems, **{**SETTINGS, **change})


def test_no_problems(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(KitError, match="no problems"):
        evaluate(*loaded, [], **SETTINGS)
