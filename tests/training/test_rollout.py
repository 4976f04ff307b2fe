"""Verdicts, rewards and advantages of a rollout, and its rows in completions.jsonl."""

from __future__ import annotations

import math

import pytest
from mini_r1.tasks.countdown import task
from mini_r1.training.rollout import ADVANTAGE_EPSILON, Completion, RewardPlan, compare, judge

PROBLEM = task.Problem((6, 7), 42)
RIGHT, WRONG = "x</think>\n<answer>6 * 7</answer>", "x</think>\n<answer>6 + 7</answer>"


def completions(*rewards: float) -> list[Completion]:
    return [Completion(PROBLEM, "", [1], [1], False, reward=reward) for reward in rewards]


def test_a_reward_is_the_weighted_sum() -> None:
    found = [Completion(PROBLEM, "", [1], [1], False, text) for text in (RIGHT, WRONG, "")]
    judge(found, RewardPlan(("equation", "format"), (2.0, 0.5)))
    assert [c.rewards for c in found] == [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)]
    assert [c.reward for c in found] == [2.5, 0.5, 0.0]
    assert [c.verdict.equation for c in found if c.verdict] == [1, 0, 0]


def test_every_reward_has_a_weight() -> None:
    with pytest.raises(ValueError, match="zip"):
        judge([Completion(PROBLEM, "", [1], [1], False, RIGHT)], RewardPlan(("equation", "format"), (2.0,)))


def test_what_nobody_has_judged_has_no_reward_and_is_not_left_out() -> None:
    found = Completion(PROBLEM, "", [1], [1], False)
    assert (found.reward, found.advantage, found.group_differs) == (0.0, 0.0, True)
    plan = RewardPlan(("equation",), (1.0,))
    assert (plan.scale, plan.drop_equal_groups) == (True, False)


def test_a_row_needs_a_name_for_each_reward() -> None:
    (found,) = completions(0.0)
    judge([found], RewardPlan(("equation", "words"), (1.0, 1.0)))
    with pytest.raises(ValueError, match="zip"):
        found.record(1, ["equation"])


def test_a_row_has_what_is_known_of_a_completion() -> None:
    (found,) = [Completion(PROBLEM, "a prompt", [1, 2], [3, 4, 5], True, RIGHT, advantage=0.5)]
    judge([found], RewardPlan(("words",), (4.0,)))
    row = found.record(7, ["words"])
    assert row == {
        **task.record(PROBLEM, RIGHT, task.judge(RIGHT, PROBLEM)), "step": 7, "prompt": "a prompt",
        "rewards": {"format": 1, "equation": 1, "format_original": 1, "equation_original": 1, "words": 0.05},
        "reward": 0.2, "advantage": 0.5, "tokens": 3, "truncated": True,
    }  # fmt: skip


def test_an_advantage_is_the_distance_from_the_groups_mean_in_standard_deviations() -> None:
    found = completions(0.0, 2.0, 10.0, 16.0)
    statistics = compare(found, RewardPlan((), ()), 2)
    first, second = math.sqrt(2), math.sqrt(18)
    expected = [-1 / (first + ADVANTAGE_EPSILON), 1 / (first + ADVANTAGE_EPSILON)]
    expected += [-3 / (second + ADVANTAGE_EPSILON), 3 / (second + ADVANTAGE_EPSILON)]
    assert [c.advantage for c in found] == pytest.approx(expected, rel=1e-6)
    assert statistics.reward_std == pytest.approx((first + second) / 2)
    assert statistics.equal == 0


def test_a_tiny_difference_is_not_blown_up() -> None:
    assert ADVANTAGE_EPSILON == 1e-4  # TRL 0.14.0's
    found = completions(0.0, 1e-4 * math.sqrt(2))
    compare(found, RewardPlan((), ()), 2)
    assert [c.advantage for c in found] == pytest.approx([-math.sqrt(0.5) / 2, math.sqrt(0.5) / 2], rel=1e-3)


def test_without_scaling_it_is_the_distance() -> None:
    found = completions(0.0, 2.0, 10.0, 16.0)
    compare(found, RewardPlan((), (), scale=False), 2)
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
    statistics = compare(found, RewardPlan((), ()), size)
    assert [c.group_differs for c in found] == [group for group in differs for _ in range(size)]
    assert statistics.equal == differs.count(False) / len(differs)
