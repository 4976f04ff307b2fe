"""How far the measures of style agree with a reader: 72 completions, labelled by hand before any was measured.

A label is what a reader sees: whether the thought mainly enumerates tries or reasons in prose, and whether it
stops, doubts or takes another approach. The measures may be changed by what they get wrong in the half that is
`open`; the half that is `held` is for the figures that docs/metrics.md states. Reader and author are one person.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Sequence
from typing import Any

import pytest
from mini_r1.tasks.countdown import rewards
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.rewards import Verdict

from tests.conftest import ASSETS, REPO, rows

LABELS = rows(ASSETS / "style_labels.jsonl")
STATED = re.compile(
    r"^\| (?P<measure>style|reflects) \| (?P<open>\d+) % \((?P<open_kappa>[\d.]+)\) \| "
    r"(?P<held>\d+) % \((?P<held_kappa>[\d.]+)\) \|$",
    re.MULTILINE,
)


def judge(text: str) -> Verdict:
    return rewards.judge(text, Problem((8, 2), 10))


def half(name: str) -> list[dict[str, Any]]:
    return [row for row in LABELS if row["half"] == name]


def measured(measure: str, completion: str) -> Hashable:
    return judge(completion).style if measure == "style" else judge(completion).reflections > 0


def kappa(left: Sequence[Hashable], right: Sequence[Hashable]) -> float:
    """Cohen's (1960): agreement beyond what chance gives two raters with these shares."""
    seen = sum(a == b for a, b in zip(left, right, strict=True)) / len(left)
    chance = sum(left.count(value) * right.count(value) for value in {*left, *right}) / len(left) ** 2
    return (seen - chance) / (1 - chance)


def test_kappa_is_cohens() -> None:
    """20 yes-yes, 15 no-no, 5 yes-no and 10 no-yes: 0.7 seen, 0.5 by chance."""
    left = [True] * 25 + [False] * 25
    right = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert kappa(left, right) == pytest.approx(0.4)
    assert kappa(left, left) == 1


def test_the_labels_are_as_documented() -> None:
    assert len(LABELS) == 72
    assert {name: len(half(name)) for name in ("open", "held")} == {"open": 36, "held": 36}
    for name in ("open", "held"):
        for style in ("enumerating", "wordy", "neither"):
            assert sum(row["style"] == style for row in half(name)) >= 9
        assert sum(row["reflects"] for row in half(name)) >= 9
    assert len({json.dumps(row["completion"]) for row in LABELS}) == len(LABELS)


@pytest.mark.parametrize("measure", ["style", "reflects"])
def test_agreement_is_what_the_page_states(measure: str) -> None:
    page = (REPO / "docs" / "metrics.md").read_text()
    (stated,) = [match for match in STATED.finditer(page) if match["measure"] == measure]
    for name in ("open", "held"):
        labels = [row[measure] for row in half(name)]
        found = [measured(measure, row["completion"]) for row in half(name)]
        agreement = sum(a == b for a, b in zip(labels, found, strict=True)) / len(labels)
        assert stated[name] == f"{100 * agreement:.0f}"
        assert stated[f"{name}_kappa"] == f"{kappa(labels, found):.2f}"


def test_tries_within_one_of_the_readers_count() -> None:
    """The reader counts attempts; a chain that takes a line for each operation counts as several here."""
    close = [abs(judge(row["completion"]).tries - row["tries"]) <= 1 for row in half("held")]
    assert f"{sum(close)} of {len(close)}" in (REPO / "docs" / "metrics.md").read_text()
