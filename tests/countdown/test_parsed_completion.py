"""A completion taken apart: the format rule and the last answer against regular expressions, each error."""

from __future__ import annotations

import itertools
import re

import pytest
from mini_r1.tasks.answer_tags import last_answer
from mini_r1.tasks.countdown.parsed_completion import ParsedCompletion, parse_completion
from mini_r1.tasks.countdown.problem import Problem

FORMAT = re.compile(r"<think>(?:(?!</?think>)[\s\S])*</think>\n<answer>(?:(?!</?answer>)[\s\S])*</answer>")
# In the text after the last </think>, the last <answer> that is closed, up to its first end.
BLOCK = re.compile(r"[\s\S]*<answer>([\s\S]*?)</answer>[\s\S]*")
PIECES = ("</think>", "\n", "<answer>", "</answer>", "1", "<think>")
TEXTS = ["".join(pieces) for count in range(7) for pieces in itertools.product(PIECES, repeat=count)]
FRAMES = ("{}", "a{}", "</think>\n<answer>{}", "</think>\n<answer>1</answer>{}", "{}</think>\n<answer>1</answer>")


def parse(text: str) -> ParsedCompletion:
    return parse_completion(text, Problem((1,), 1))


def test_the_format_is_a_regular_expression() -> None:
    texts = [frame.format(text) for frame in FRAMES for text in TEXTS[:2000]]
    kept = [parse(text).format_error is None for text in texts]
    assert kept == [FORMAT.fullmatch(f"<think>{text}") is not None for text in texts]
    assert 20 < sum(kept) < len(kept)


def test_the_last_complete_block_after_the_last_thought_is_the_answer() -> None:
    found = {text: parse(text).answer for text in TEXTS}
    for text, answer in found.items():
        _, closed, after = text.rpartition("</think>")
        match = BLOCK.fullmatch(after) if closed else None
        assert answer == (match[1] if match else None), text
    assert sum(answer is not None for answer in found.values()) > 100


@pytest.mark.parametrize(
    ("completion", "error"),
    [
        ("", "no </think>"),
        ("a\n<answer>1</answer>", "no </think>"),
        ("<think></think>\n<answer>1</answer>", "a second <think> in the thought"),
        ("a</think><answer>1</answer>", "</think> is not followed by one newline and <answer>"),
        ("a</think>\n\n<answer>1</answer>", "</think> is not followed by one newline and <answer>"),
        ("a</think>\n<answer>1", "the answer block is not closed"),
        ("</answer></think>\n<answer>1", "the answer block is not closed"),
        ("a</think>\n<answer>1</answer></answer>", "a stray </answer> after the answer block"),
        ("a</think>\n<answer><answer>1</answer>", "a second <answer> in the answer block"),
        ("a</think>\n<answer>1</answer><answer>", "a second <answer> that is not closed"),
        ("a</think>\n<answer>1</answer>\n", "white space after </answer>"),
        ("</think>\n<answer></answer>", None),
        ("a <answer>1</answer></think>\n<answer>1<think></think></answer>", None),
    ],
)
def test_each_error_of_the_format(completion: str, error: str | None) -> None:
    assert parse(completion).format_error == error


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("", (None, "no </think>")),
        ("<answer>1</answer>", (None, "no </think>")),
        ("</think>", (None, "no answer after </think>")),
        ("<answer>1</answer></think>", (None, "the answer is in the thought, none follows </think>")),
        ("</think><answer>1", (None, "the answer block is not closed")),
        ("</think><answer>1</answer><answer>2</answer><answer>3", ("2", None)),
        ("</think><answer></answer>", ("", None)),
    ],
)
def test_the_last_answer(completion: str, answer: tuple[str | None, str]) -> None:
    assert last_answer(completion) == answer


@pytest.mark.parametrize(
    ("completion", "thought"), [("", ""), ("ab", "ab"), ("</think>", ""), ("a</think>b</think>", "a")]
)
def test_the_thought(completion: str, thought: str) -> None:
    assert parse(completion).thought == thought
