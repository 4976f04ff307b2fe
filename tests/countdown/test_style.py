"""What counts as a try, a reflection and an enumerating or wordy thought, by texts labelled by hand."""

from __future__ import annotations

import pytest
from mini_r1.tasks.countdown import rewards
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.rewards import Verdict


def judge(text: str) -> Verdict:
    return rewards.judge(text, Problem((8, 2), 10))


ONE = [
    "8 + 2 = 10 - 3 = 7 (too low)\n",
    "44 + 19 + 35 = 98",
    "- 95 - 21 = 74, then 74 + 3 = 77",
    "(44 + 19) * 2 = 126 is too large",
    "44 + (19 - 35) = 28",
    "First, I try 44-19=25.",
    "6 × 7 = 42",
    "42 ÷ 6 = 7",
    "6 x 7 = 42",
    r"\(6 \times 7 = 42\)",
    r"$42 \div 6 = $7",
    "5 - 9 = -4",
    "5 + -9 = -4",
    "3 * 3 != 8",
    "3 * 3 ≠ 8",
    "10 / 3 ≈ 3.33",
    "so x = 3 and 4 + 5 = 9",
    "44 + 19 = 63</think>\n1 + 1 = 2\n2 + 2 = 4",
    "Try: 44+19+35 = (98)",
]
NONE = [
    "",
    "\n\n",
    "</think>\n8 + 2 = 10",
    "I need to reach 98 with 44, 19 and 35.",
    "8 plus 2 is 10",
    "8 + 2",
    "8 + 2 =",
    "8 + 2 = ?",
    "x = 3",
    "10 = 8 + 2",
    "target = 98",
    "a + b = 10",
    "+ = 7",
    "8 +\n2 = 10",
    "=" * 50,
]


@pytest.mark.parametrize("thought", ONE)
def test_one_try(thought: str) -> None:
    assert judge(thought).tries == 1


@pytest.mark.parametrize("thought", NONE)
def test_no_try(thought: str) -> None:
    assert judge(thought).tries == 0


def test_tries_are_counted_by_line() -> None:
    assert (
        judge(
            "8 + 2 = 10 (too high)\n8 - 2 = 6 (too low)\nhm\n8 * 2 = 16 (yes)\n</think>\n<answer>8 * 2</answer>"
        ).tries
        == 3
    )
    assert judge("1 + 1 = 2\r\n1 + 2 = 3\n\x00\ud800 1 + 1 = 2").tries == 3


@pytest.mark.parametrize(
    ("thought", "count"),
    [
        ("", 0),
        ("8 + 2 = 10 (too low)", 0),
        ("Wait, I used the 8 twice.", 1),
        ("wait wait", 2),
        ("I can't wait, can’t wait and cannot wait; wait", 1),
        ("Actually, no. Actually no, and actually nothing", 2),
        ("WAIT! Hmm... Hm.", 3),
        ("the waiter awaits, waiting", 0),
        ("wait_time await", 0),
        ("waité", 0),
        ("Let me try 8 * 2.", 1),
        ("Let\nme  try 8 * 2.", 1),
        ("Let me try again.", 1),
        ("let me try a different approach", 1),
        ("Let's try another approach.", 1),
        ("in a different way", 1),
        ("Let me check: 8 + 2 is 10. Let’s verify. Let me correct that.", 3),
        ("let me double-check, then double check again", 2),
        ("Try again, check again, think again.", 3),
        ("re-evaluate, reevaluating, Reconsider, re-think, rechecked, re-examine", 6),
        ("Let me reconsider.", 1),
        ("Alternatively, 8 * 2. My mistake; I was mistaken, twice by mistakes.", 4),
        ("Wait, let me re-evaluate.", 2),
        # Phrases of any answer, and the verdict on a try.
        ("Let me solve this step by step.", 0),
        ("Let's try different combinations:", 0),
        ("Let me use the 8 first. Let me see.", 0),
        ("That's not 24. This doesn't work. By trial and error.", 0),
        # Only the thought, and all of it when it never ends.
        ("fine</think>\nWait. <answer>wait</answer></think> hmm", 0),
        ("hmm</think>wait", 1),
        ("8 + 2 = 10\r\nWait,\r\nlet me\r\ncheck.\r\n", 2),
        ("wait\x00wait\ud800hmm\N{ZERO WIDTH SPACE}wait", 4),
    ],
)
def test_reflections(thought: str, count: int) -> None:
    assert judge(thought).reflections == count


ENUMERATING = {
    "chains with verdicts": "8 + 2 = 10 - 3 = 7 (too low)\n8 * 2 = 16 - 3 = 13 (too high)\n8 * 3 = 24 / 2 = 12 (yes)\n",
    "a sentence, a list, a conclusion": (
        "The numbers 25, 6 and 4 have to make 76. I will go through the combinations one after the other:\n"
        "- 25 + 6 + 4 = 35 (too low)\n- 25 * 4 - 6 = 94 (too high, so not this one)\n- (25 - 6) * 4 = 76 (this works)\n"
        "So the equation is (25 - 6) * 4 = 76."
    ),
    "numbered": "1. 25 + 6 * 4 = 49\n2. 25 * 6 / 4 = 37.5\n3. (25 - 6) * 4 = 76",
    "LaTeX with brackets on separate lines": (
        "\\[\n25 + 6 \\times 4 = 49\n\\]\n\\[\n25 \\times 4 - 6 = 94 \\quad \\text{too high}\n\\]\n"
        "\\[\n(25 - 6) \\times 4 = 76\n\\]"
    ),
    "blank lines and rules": "---\n25 + 6 = 31\n\n---\n\n25 - 6 = 19\n\n---\n\n19 * 4 = 76\n===\n",
    "Windows line ends": "25 + 6 = 31\r\n\r\n25 - 6 = 19\r\n\r\n19 * 4 = 76\r\n",
    "cut off in a try": "25 + 6 = 31\n25 - 6 = 19\n19 * 4 = 76\n25 +",
}
PARAGRAPH = (
    "First, I look at 25, 6 and 4 and ask how they could make 76. If I take 25 + 6 = 31 and multiply it by 4, I get "
    "124, which is far too high. If I subtract 6 from 25 instead, I get 19, and 19 * 4 = 76, which is what I need.\n"
)
WORDY = {
    "a paragraph": PARAGRAPH,
    "paragraphs with a try in each": PARAGRAPH * 4,
    "each calculation introduced": (
        "First I add the two largest numbers to see how far that goes:\n25 + 6 = 31\n"
        "That is too low, so I multiply by the number that is left:\n31 * 4 = 124\n"
        "Now it is much too high, so I go back and subtract first:\n25 - 6 = 19\n"
        "Multiplying this by the number that is left gives the target:\n19 * 4 = 76\nSo that is the answer."
    ),
    "a bullet list in prose": (
        "- If I add all of the numbers I get 25 + 6 + 4 = 35, which is not what we were asked for\n"
        "- If I multiply the largest by the smallest I get 25 * 4 = 100, and then 6 is not enough\n"
        "- If I subtract before I multiply I get (25 - 6) * 4 = 76, and that is what we wanted\n"
    ),
    "no number at all": "I think about it, and think about it again, and nothing comes of it. " * 3,
}
NEITHER = {
    "nothing": "",
    "blank lines": "\n \r\n\t\n",
    "only tags": "</think>\n<answer>8 + 2</answer>",
    "two tries": "8 + 2 = 10 (too low)\n8 * 2 = 16 (yes)\n",
    "a sentence": "I add 8 and 2, then subtract 3.",
    "the problem said again": "We need to use the numbers 25, 6 and 4 with basic arithmetic operations to get 76.",
    "many tries on one line": "25 + 6 = 31, 25 - 6 = 19, 25 * 4 = 100, 100 - 6 = 94, 19 * 4 = 76",
    "expressions without results": "25 + 6\n25 - 6\n25 * 4\n25 / 4",
    "words and calculations in balance": f"{PARAGRAPH}{PARAGRAPH}{PARAGRAPH}1 + 1 = 2\n1 + 2 = 3\n1 + 3 = 4",
    "the words come after the thought": f"8 + 2 = 10</think>\n{PARAGRAPH}",
}


@pytest.mark.parametrize("kind", ENUMERATING)
def test_enumerating(kind: str) -> None:
    assert judge(ENUMERATING[kind]).style == "enumerating"


@pytest.mark.parametrize("kind", WORDY)
def test_wordy(kind: str) -> None:
    assert judge(WORDY[kind]).style == "wordy"


@pytest.mark.parametrize("kind", NEITHER)
def test_neither(kind: str) -> None:
    assert judge(NEITHER[kind]).style == "neither"


def test_manner_at_its_limits() -> None:
    """Three calculations, thirty words, and more than half of the lines."""
    calculation, word = "8 + 2 = 10\n", "word "
    assert judge(calculation * 2).style == "neither"
    assert judge(calculation * 3).style == "enumerating"
    assert judge(calculation * 3 + "so it is\n" * 2).style == "enumerating"
    assert judge(calculation * 3 + "so it is\n" * 3).style == "neither"
    assert judge(word * 29).style == "neither"
    assert judge(word * 30).style == "wordy"
    assert judge(word * 30 + "\n" + calculation).style == "neither"
    assert judge(word * 30 + "\nso it is\n" + calculation).style == "wordy"
    # Of equally many words and numbers and signs it is a calculation.
    assert judge("a b c d e 8 + 2 = 10\n" * 3).style == "enumerating"
    assert judge("a b c d e f 8 + 2 = 10\n" * 10).style == "wordy"
    # A word with an apostrophe or a hyphen is one word, a LaTeX command none.
    assert judge("let's don't we’ve re-do b 8 + 2 = 10\n" * 3).style == "enumerating"
    assert judge("a b c d e \\quad 8 \\times 2 = 16\n" * 3).style == "enumerating"


LENGTH = 100_000


@pytest.mark.parametrize(
    ("piece", "tries", "reflections", "style"),
    [
        ("=", 0, 0, "neither"),
        ("1 + 1 ", 0, 0, "neither"),
        ("= 1", 0, 0, "neither"),
        ("1 + 1 = 2\n", LENGTH // 10, 0, "enumerating"),
        ("((((", 0, 0, "neither"),
        ("1)))) ", 0, 0, "neither"),
        ("\\", 0, 0, "neither"),
        ("\n", 0, 0, "neither"),
        (" ", 0, 0, "neither"),
        ("</think>", 0, 0, "neither"),
        ("a-", 0, 0, "neither"),
        ("wait", 0, 0, "neither"),
        ("wait\n", 0, LENGTH // 5, "wordy"),
        ("let me ", 0, 0, "wordy"),
        ("let me try a different ", 0, 4347, "wordy"),
        ("re-check", 0, 1, "neither"),
        ("hm", 0, 0, "neither"),
        ("m", 0, 0, "neither"),
        ("\N{ARABIC-INDIC DIGIT ONE} + ", 0, 0, "neither"),
        ("\N{COMBINING ACUTE ACCENT}", 0, 0, "neither"),
        ("\ud800\x00 ", 0, 0, "neither"),
        ("\N{LATIN SMALL LETTER LONG S} ", 0, 0, "wordy"),
    ],
)
def test_hostile_text(piece: str, tries: int, reflections: int, style: str) -> None:
    """A hundred thousand characters of one piece: every figure comes back, and is right."""
    text = piece * (LENGTH // len(piece))
    assert (judge(text).tries, judge(text).reflections, judge(text).style) == (tries, reflections, style)
