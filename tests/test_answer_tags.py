"""Tags of a completion after any prefill: prefills of rows, thought, answer, format, and kinds of failure."""

from __future__ import annotations

import pytest
from mini_r1.tasks.answer_tags import (
    check_format,
    classify_missing_answer,
    find_thought,
    last_answer,
    own_prefill,
    prefill_of,
)


@pytest.mark.parametrize(
    ("prefill", "stored"),
    [
        ("<think>", {}),
        ("Let me see. <think>", {}),
        ("", {"prefill": ""}),
        ("<think>First, ", {"prefill": "<think>First, "}),
        ("<think></think><think>", {"prefill": "<think></think><think>"}),
    ],
)
def test_a_row_stores_a_prefill_that_does_more_than_open_the_thought(prefill: str, stored: dict[str, str]) -> None:
    assert own_prefill(prefill) == stored
    assert prefill_of(stored) == (prefill if stored else "<think>")


@pytest.mark.parametrize("value", [None, 3, ["<think>"]])
def test_a_prefill_that_is_no_text_counts_as_none(value: object) -> None:
    assert prefill_of({"prefill": value}) == "<think>"


@pytest.mark.parametrize(
    ("completion", "prefill", "answer"),
    [
        ("<answer>1</answer>", "", ("1", None)),
        ("It is 1.", "", (None, "no answer block")),
        ("", "", (None, "no answer block")),
        ("<think>a <answer>1</answer>", "", (None, "no </think>")),
        # A tag at the very start.
        ("</think> none", "", (None, "no answer after </think>")),
        ("</think> <think>", "", (None, "no answer after </think>")),
        ("1</answer>", "<answer>", ("1", None)),
        ("1</answer>", "<think>a</think>\n<answer>", ("1", None)),
        ("</answer>", "", (None, "no answer block")),
        ("a</think></answer>", "<think>", (None, "</answer> without <answer>")),
        (
            "a</think>\n<answer>1</answer> b</think>", "<think>",
            (None, "an answer follows the first </think>, but the last </think> counts"),
        ),
    ],
)  # fmt: skip
def test_the_last_answer_after_a_prefill(completion: str, prefill: str, answer: tuple[str | None, str | None]) -> None:
    assert last_answer(completion, prefill) == answer


@pytest.mark.parametrize(
    ("completion", "prefill", "thought"),
    [
        ("a</think>b", "<think>", ("a", True)),
        ("a", "<think>", ("a", False)),
        (" <think>a</think>b", "", ("a", True)),
        ("a</think>b", "", ("a", True)),
        ("a<answer>1", "", ("a", True)),
        ("a<answer>1</think>", "", ("a<answer>1", True)),
        ("<think>a<answer>1", "", ("a<answer>1", False)),
        ("a<answer>1", "<think>", ("a<answer>1", False)),
        # The prefill has opened the thought: a second tag is a part of it.
        ("<think>a</think>", "<think>", ("<think>a", True)),
    ],
)
def test_the_thought(completion: str, prefill: str, thought: tuple[str, bool]) -> None:
    assert find_thought(completion, prefill) == thought


@pytest.mark.parametrize(
    ("completion", "prefill", "found"),
    [
        ("a</think>\n<answer>1</answer>", "<think>", (18, None)),
        (" \n<think>a</think>\n<answer>1</answer>", "", (27, None)),
        ("a</think>\n<answer>1</answer>", "", (None, "the text does not begin with <think>")),
        ("a</think>\n<answer>1</answer>", "Sure! <think>Now ", (18, None)),
        # The prefill holds the start of the answer, or a part of it.
        ("1</answer>", "<think>a</think>\n<answer>", (0, None)),
        ("+ 2</answer>", "<think>a</think>\n<answer>1 ", (0, None)),
        ("<think>a</think>\n<answer>1</answer>", "<think>", (None, "a second <think> in the thought")),
        ("a", "<think>", (None, "no </think>")),
        ("a</think>\n<answer>1", "<think>", (18, "the answer block is not closed")),
    ],
)
def test_the_format_after_a_prefill(completion: str, prefill: str, found: tuple[int | None, str | None]) -> None:
    assert check_format(completion, prefill) == found


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("no </think>", "the thought never ends"),
        ("no answer block", "no answer"),
        ("no answer after </think>", "no answer after the thought"),
        ("the answer is in the thought, none follows </think>", "no answer after the thought"),
        ("the answer block is not closed", "the answer block is not closed"),
        ("result is 7, not 24", None),
        ("correct", None),
    ],
)
def test_the_kind_of_failure_of_a_missing_answer(reason: str, kind: str | None) -> None:
    assert classify_missing_answer(reason, truncated=False) == kind
    cut = "cut off at the longest length while still thinking" if reason == "no </think>" else kind
    assert classify_missing_answer(reason, truncated=True) == cut
