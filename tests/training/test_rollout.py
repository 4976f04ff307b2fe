"""Verdicts, rewards and advantages of a rollout, and its rows in completions.jsonl."""

from __future__ import annotations

import math

import pytest
from mini_r1.errors import KitError, Stopped
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.rewards import judge
from mini_r1.tasks.reward_file import CodeReward
from mini_r1.training.rollout import ADVANTAGE_EPSILON, Completion, score, set_advantages

PROBLEM = Problem((6, 7), 42)
RIGHT, WRONG = "x</think>\n<answer>6 * 7</answer>", "x</think>\n<answer>6 + 7</answer>"


def completions(*rewards: float) -> list[Completion]:
    return [Completion(PROBLEM, "", [1], [1], False, reward=reward) for reward in rewards]


def test_a_reward_is_the_weighted_sum() -> None:
    found = [Completion(PROBLEM, "", [1], [1], False, text) for text in (RIGHT, WRONG, "")]
    score(CountdownTask(), found, {"equation": 2.0, "format": 0.5})
    assert [c.reward for c in found] == [2.5, 0.5, 0.0]
    assert [c.verdict.right for c in found if c.verdict] == [1, 0, 0]


def test_a_reward_of_a_file_gets_prompts_texts_and_the_columns_of_the_task() -> None:
    calls = []

    def length(prompts: list[str], completions: list[str], nums: list[list[int]], target: list[int]) -> list[float]:
        calls.append((prompts, completions, nums, target))
        return [float(len(text)) for text in completions]

    code = CodeReward("mine.py:length", length, ("prompts", "completions", "nums", "target"))
    problems = (PROBLEM, Problem((1, 2), 3))
    texts = (RIGHT, "abc")
    found = [
        Completion(problem, prompt, [1], [1], False, text)
        for problem, prompt, text in zip(problems, ("p", "q"), texts, strict=True)
    ]
    score(CountdownTask(), found, {"equation": 2.0, "mine.py:length": 0.5}, code=[code])
    assert calls == [(["p", "q"], list(texts), [[6, 7], [1, 2]], [42, 3])]
    assert [c.reward for c in found] == [2.0 + len(RIGHT) / 2, 1.5]
    assert found[1].rewards["mine.py:length"] == 3.0

    score(CountdownTask(), [], {"mine.py:length": 0.5}, code=[code])
    assert len(calls) == 1, "there was nothing to reward"


def test_a_reward_of_a_file_that_fails_names_the_step() -> None:
    code = CodeReward("mine.py:empty", lambda completions: [], ("completions",))
    for given, named in (({}, 0), ({"step": 7}, 7)):
        with pytest.raises(KitError, match=f"returned 0 values for 1 completions, step {named}:"):
            score(CountdownTask(), completions(0.0), {"mine.py:empty": 1.0}, code=[code], **given)


def test_a_stop_leaves_the_rest_without_a_verdict() -> None:
    found = completions(0.0, 0.0, 0.0)
    answers = iter([False, True])
    with pytest.raises(Stopped):
        score(CountdownTask(), found, {"equation": 1.0}, lambda: next(answers))
    assert [c.verdict is None for c in found] == [False, True, True]


def test_a_completion_is_judged_after_its_prefill() -> None:
    for prefill, reward in (("", 0.0), ("<think>", 1.0)):
        found = Completion(PROBLEM, "", [1], [1], False, RIGHT)
        score(CountdownTask(), [found], {"format": 1.0}, prefill=prefill)
        assert found.reward == reward


def test_a_completion_without_a_score_has_no_reward_and_is_not_left_out() -> None:
    found = Completion(PROBLEM, "", [1], [1], False)
    assert (found.reward, found.advantage, found.group_differs) == (0.0, 0.0, True)
    assert found.policy_step == 0


def test_a_row_has_every_field_of_a_completion() -> None:
    (found,) = [Completion(PROBLEM, "a prompt", [1, 2], [3, 4, 5], True, RIGHT, policy_step=6, advantage=0.5)]
    score(CountdownTask(), [found], {"words": 4.0})
    row = found.record(CountdownTask(), 7)
    assert row == {
        "task": "countdown", **judge(RIGHT, PROBLEM).record(), "step": 7, "prompt": "a prompt",
        "rewards": {"format": 1, "equation": 1, "format_original": 1, "equation_original": 1, "words": 0.05},
        "reward": 0.2, "advantage": 0.5, "tokens": 3, "truncated": True, "policy_step": 6,
    }  # fmt: skip


def test_an_advantage_is_the_distance_from_the_groups_mean_in_standard_deviations() -> None:
    found = completions(0.0, 2.0, 10.0, 16.0)
    statistics = set_advantages(found, 2)
    first, second = math.sqrt(2), math.sqrt(18)
    expected = [-1 / (first + ADVANTAGE_EPSILON), 1 / (first + ADVANTAGE_EPSILON)]
    expected += [-3 / (second + ADVANTAGE_EPSILON), 3 / (second + ADVANTAGE_EPSILON)]
    assert [c.advantage for c in found] == pytest.approx(expected, rel=1e-6)
    assert statistics.reward_std == pytest.approx((first + second) / 2)
    assert statistics.equal == 0


def test_a_tiny_difference_is_not_amplified() -> None:
    assert ADVANTAGE_EPSILON == 1e-4  # TRL 0.14.0's
    found = completions(0.0, 1e-4 * math.sqrt(2))
    set_advantages(found, 2)
    assert [c.advantage for c in found] == pytest.approx([-math.sqrt(0.5) / 2, math.sqrt(0.5) / 2], rel=1e-3)


def test_without_scaling_it_is_the_distance() -> None:
    found = completions(0.0, 2.0, 10.0, 16.0)
    set_advantages(found, 2, scale=False)
    assert [c.advantage for c in found] == [-1.0, 1.0, -3.0, 3.0]


@pytest.mark.parametrize(
    ("rewards", "size", "differs"),
    [
        ((0.1, 0.1, 0.1, 0.2), 2, [False, True]),
        ((0.1, 0.2, 0.1, 0.1), 2, [True, False]),
        ((0.1, 0.1, 0.1, 0.1, 0.1, 0.2), 3, [False, True]),
        ((0.1, 0.1, 0.1, 0.2, 0.1, 0.1), 3, [False, True]),
        ((0.1,) * 4, 2, [False, False]),
    ],
)
def test_a_group_differs_if_any_of_its_rewards_does(rewards: tuple[float, ...], size: int, differs: list[bool]) -> None:
    found = completions(*rewards)
    statistics = set_advantages(found, size)
    assert [c.group_differs for c in found] == [group for group in differs for _ in range(size)]
    assert statistics.equal == differs.count(False) / len(differs)
