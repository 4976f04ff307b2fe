"""The choice of the best snapshot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mini_r1.errors import KitError
from mini_r1.hub import card_figures
from mini_r1.run.reader import list_held_out_results
from mini_r1.run.run_dir import RunDir

from tests.publishing.conftest import evaluation

STEPS = [6, 4, 2]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Make a run with metrics only."""
    run = RunDir(tmp_path / "run")
    (run.attempts / "1").mkdir(parents=True)
    return run


def curve(run: RunDir, **success: Any) -> None:
    rows = [{"step": int(step[1:]), "eval_success": value, "eval_problems": 20} for step, value in success.items()]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.attempts / "1" / "metrics.jsonl").write_text(text)
    (run.attempts / "1" / "completions.jsonl").write_text('{"step": 1}\n')


def test_the_highest_evaluation_is_the_best(run: RunDir) -> None:
    evaluation(run, 2, 0.3)
    evaluation(run, 4, 0.6)
    evaluation(run, 6, 0.5)
    curve(run, s2=0.9, s4=0.1)
    best = card_figures.best(run, STEPS)
    assert best is not None
    assert (best.step, best.figure("sampled"), best.file) == (4, 0.6, "step-4.json")


def test_a_success_of_zero_is_not_the_best(run: RunDir) -> None:
    evaluation(run, 2, 0.0)
    evaluation(run, 4, 0.3)
    assert card_figures.chosen_step(run, "BEST", STEPS) == 4


def test_the_earlier_of_two_equal_ones_is_the_best(run: RunDir) -> None:
    evaluation(run, 6, 0.5)
    evaluation(run, 4, 0.5)
    assert card_figures.chosen_step(run, "BEST", STEPS) == 4


def test_other_problems_and_deleted_snapshots_are_ignored(run: RunDir) -> None:
    evaluation(run, 6, 0.9, "step-6-1a2b3c4d.json")
    evaluation(run, 6, 0.9, "step-6-limit-10.json")
    evaluation(run, 8, 0.9)
    evaluation(run, 2, 0.1)
    assert card_figures.chosen_step(run, "BEST", STEPS) == 2


@pytest.mark.parametrize(
    ("files", "steps", "chosen"),
    [
        (("step-2-limit-100", "step-4-limit-100"), STEPS, ("step-4-limit-100.json", 100)),
        (("step-2-limit-100", "step-4-limit-20"), STEPS, ("step-2-limit-100.json", 100)),  # not on the same problems
        (("step-2", "step-4-limit-100"), STEPS, ("step-2.json", None)),
        (("step-2", "step-4-limit-100"), [4], ("step-4-limit-100.json", 100)),
        (("step-2-1a2b3c4d-limit-100", "step-4-1a2b3c4d"), STEPS, None),  # other problems
    ],
)
def test_figures_of_some_problems_are_used_if_there_are_none_of_all(
    run: RunDir, files: tuple[str, ...], steps: list[int], chosen: tuple[str, int | None] | None
) -> None:
    for file in files:
        evaluation(run, int(file[5]), int(file[5]) / 10, f"{file}.json")
    best = card_figures.best(run, steps)
    assert (best and (best.file, best.limit)) == chosen


def test_the_order_of_the_files_does_not_matter(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation(run, 6, 0.9, "step-6-limit-10.json")
    evaluation(run, 6, 0.8, "step-6-limit-20.json")
    evaluation(run, 2, 0.1)
    files = sorted(list_held_out_results(run), key=lambda found: found[1] is None)
    for order in (files, files[::-1]):
        monkeypatch.setattr(card_figures, "list_held_out_results", lambda run, order=order: iter(order))
        assert [(each.step, each.limit) for each in card_figures.evaluations(run)] == [(2, None), (6, 20), (6, 10)]


def test_without_evaluations_the_runs_own_curve_decides(run: RunDir) -> None:
    curve(run, s2=0.2, s4=0.4, s5=0.8, s6=None)
    best = card_figures.best(run, STEPS)
    assert best is not None
    assert (best.step, best.file, best.problems) == (4, card_figures.CURVE, 20)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '{"sampled": "0.5"}', '{"sampled": NaN}', "\x00\xff",
        '{"sampled": 1' + "0" * 400 + "}", "[" * 100_000,
    ],
)  # fmt: skip
def test_a_broken_evaluation_is_ignored(run: RunDir, text: str) -> None:
    run.evaluation.mkdir()
    (run.evaluation / "step-6.json").write_text(text)
    assert card_figures.best(run, STEPS) is None
    evaluation(run, 2, 0.1)
    assert card_figures.chosen_step(run, "BEST", STEPS) == 2


def test_evaluations_are_in_the_order_of_their_steps(run: RunDir) -> None:
    for step in (10, 2, 9):
        evaluation(run, step, step / 100)
    found = card_figures.evaluations(run)
    assert [figure.step for figure in found] == [2, 9, 10]
    assert found[0].values["sampled"] == 0.02


@pytest.mark.parametrize(("problems", "count"), [(40, 40), (40.0, 40), (None, 0), ("40", 0)])
def test_the_number_of_problems_is_optional(run: RunDir, problems: object, count: int) -> None:
    evaluation(run, 2, 0.5, problems=problems)
    curve(run, s4=0.5)
    (own,) = card_figures.evaluations(run)
    assert own.problems == count
    assert type(own.problems) is int


def test_the_count_and_the_values_of_a_curve_are_optional(run: RunDir) -> None:
    rows = [{"step": 1, "eval_success": 0.1}, {"step": 2, "eval_problems": 7}, {"step": 3, "eval_success": "0.3"}]
    (run.attempts / "1" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(each.step, each.values, each.problems) for each in card_figures.curve(run)] == [(1, {"sampled": 0.1}, 0)]


def test_the_figure_of_one_step(run: RunDir) -> None:
    evaluation(run, 2, 0.3)
    evaluation(run, 4, 0.6)
    curve(run, s2=0.9, s6=0.1)
    found = [card_figures.best(run, [step]) for step in (2, 4, 6, 8)]
    assert [each and (each.figure("sampled"), each.file) for each in found] == [
        (0.3, "step-2.json"), (0.6, "step-4.json"), (0.1, card_figures.CURVE), None,
    ]  # fmt: skip


def test_the_curve_decides_if_only_other_steps_were_evaluated(run: RunDir) -> None:
    evaluation(run, 8, 0.9)
    curve(run, s2=0.2, s4=0.1)
    assert [each.file for each in card_figures.measured(run, STEPS)] == [card_figures.CURVE] * 2
    assert card_figures.measured(run, [3]) == []


@pytest.mark.parametrize(("wanted", "step"), [("best", 2), ("BEST", 2), ("4", 4), ("06", 6)])
def test_an_existing_snapshot_can_be_chosen(run: RunDir, wanted: str, step: int) -> None:
    evaluation(run, 2, 0.5)
    assert card_figures.chosen_step(run, wanted, STEPS) == step


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("BEST", "has no held-out success to choose the best snapshot by"),
        ("newest" * 20, "--snapshot takes BEST or a step, not '" + ("newest" * 20)[:40] + "'"),
        ("-2", "--snapshot takes BEST or a step, not '-2'"),
        ("5", "has no complete snapshot of step 5; there are: 2, 4, 6"),
        ("8", "the snapshot of step 8 of"),
    ],
)
def test_a_snapshot_that_cannot_be_chosen_is_refused(run: RunDir, wanted: str, message: str) -> None:
    (run.snapshots / "step-8").mkdir(parents=True)
    with pytest.raises(KitError) as refused:
        card_figures.chosen_step(run, wanted, STEPS)
    assert message in refused.value.message
    assert refused.value.exit_code == 78


def test_an_incomplete_copy_of_a_complete_step_is_ignored(run: RunDir) -> None:
    (run.snapshots / "step-4").mkdir(parents=True)
    assert card_figures.chosen_step(run, "4", STEPS) == 4
