"""Verdicts, rewards and advantages of a rollout, and its rows in completions.jsonl."""

from __future__ import annotations

import math

import pytest
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.rewards import judge
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


def test_a_completion_without_a_score_has_no_reward_and_is_not_left_out() -> None:
    found = Completion(PROBLEM, "", [1], [1], False)
    assert (found.reward, found.advantage, found.group_differs) == (0.0, 0.0, True)


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
