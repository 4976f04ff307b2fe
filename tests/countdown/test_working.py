"""An answer worked out agrees with the scorer."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import example, given
from hypothesis import strategies as st
from mini_r1.tasks.countdown.expression import check_answer
from mini_r1.tasks.countdown.solver import solve
from mini_r1.tasks.countdown.worked_solution import Working, work_out

NUMBERS = st.lists(st.integers(1, 30), min_size=1, max_size=4)


def work(answer: str, nums: list[int]) -> Working:
    return work_out(f"</think>\n<answer>{answer}</answer>", nums)


def test_every_operation_is_shown_in_the_order_it_is_computed() -> None:
    found = work("(1 + 2) / -4 * 10", [1, 2, 4, 10])
    assert found.steps == ["1 + 2 = 3", "3 ÷ (-4) = -3/4", "(-3/4) × 10 = -15/2"]
    assert found.value == "-15/2"
    assert (found.missing, found.extra) == ([], [])


def test_numbers_left_out_and_not_given_are_named() -> None:
    found = work("7 * 7 = 49", [7, 8, 9])
    assert (found.missing, found.extra) == ([8, 9], [7])
    assert found.value == "49"


def test_a_division_by_zero_ends_the_working() -> None:
    found = work("5 / (3 - 3) + 1", [1, 3, 3, 5])
    assert found.steps == ["3 - 3 = 0".replace("-", "−"), "5 ÷ 0: division by zero"]
    assert found.value is None


def test_what_is_no_answer_has_no_working() -> None:
    assert work_out("no end", [1]) == Working(None, [], None, [], [])
    assert work("6 times 7", [6, 7]) == Working("6 times 7", [], None, [], [])
    huge = work(f"{'9' * 400} * {'8' * 100}", [9, 8])
    assert (huge.steps, huge.value, huge.extra) == ([], None, [])


@given(NUMBERS, st.integers(-50, 200))
def test_a_solution_is_worked_out_to_the_target(nums: list[int], target: int) -> None:
    answer = solve(nums, target)
    if answer is None:
        return
    found = work(answer, nums)
    assert check_answer(answer, nums, target) is None
    assert Fraction(found.value or "nan") == target
    assert (found.missing, found.extra) == ([], [])
    assert len(found.steps) == len(nums) - 1


@given(st.text(alphabet="0123456789+-*/() =.", max_size=60), NUMBERS, st.integers(0, 100))
@example("1 + 2", [1, 2], 3)
@example("1 + 2", [1, 2], 4)
def test_scorer_and_working_agree_on_any_text(answer: str, nums: list[int], target: int) -> None:
    found = work(answer, nums)
    error = check_answer(answer, nums, target)
    if error is None:
        assert found.value == str(target)
        assert (found.missing, found.extra) == ([], [])
    elif "=" not in answer:
        assert found.value != str(target) or found.missing or found.extra
