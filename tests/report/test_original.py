"""A run compared with the published figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from mini_r1.report import original_curve
from mini_r1.report.summary import summarise
from mini_r1.run.health import Health
from mini_r1.run.reader import RunData, read_run
from mini_r1.run.run_dir import RunDir

from tests.report.made_run import make_run


def run_with(rows: list[dict[str, float]], tmp_path: Path, step: int | None = None) -> RunData:
    state = {"step": step} if step is not None else {}
    return RunData(RunDir(tmp_path), "run", rows=rows, state=state)  # type: ignore[arg-type]


def rows(success: float, form: float, steps: int, every: int = 1) -> list[dict[str, float]]:
    names = ("rewards/equation_original", "rewards/format_original")
    return [{"step": s, "loss": 0.0, names[0]: success, names[1]: form} for s in range(every, steps + 1, every)]


def verdicts(run: RunData) -> dict[int, str]:
    return {mark.step: mark.verdict for mark in original_curve.compare(run)}


def test_the_published_figures_name_their_source() -> None:
    published = original_curve.PUBLISHED
    assert "philschmid.de/mini-deepseek-r1" in published["source"]
    assert "training reward at temperature 0.9" in published["what"]
    assert published["success"] == [[100, 0.25], [200, 0.40], [450, 0.50]]


@pytest.mark.parametrize(
    ("success", "form", "found"),
    [
        (0.45, 0.95, {50: "on track", 100: "on track", 200: "on track"}),
        (0.30, 0.95, {50: "on track", 100: "on track", 200: "behind"}),
        (0.10, 0.50, {50: "behind", 100: "behind", 200: "behind"}),
    ],
)
def test_a_run_is_on_track_or_behind(tmp_path: Path, success: float, form: float, found: dict[int, str]) -> None:
    assert verdicts(run_with(rows(success, form, 210), tmp_path)) == found


def test_a_step_that_is_not_reached_is_not_compared(tmp_path: Path) -> None:
    run = run_with(rows(0.45, 0.95, 120), tmp_path)
    assert verdicts(run) == {50: "on track", 100: "on track", 200: "not reached"}
    assert "Step 200 is not reached yet (the original: 40 %)." in [s.sentence for s in original_curve.compare(run)]
    run.health = Health("finished", "is finished")
    assert verdicts(run)[200] == "not reached"
    assert "The run was over before step 200 (the original: 40 %)." in [s.sentence for s in original_curve.compare(run)]


def test_the_mean_around_a_step_is_compared(tmp_path: Path) -> None:
    logged = rows(0.26, 0.95, 110)
    logged[99]["rewards/equation_original"] = 0.2
    assert verdicts(run_with(logged, tmp_path))[100] == "on track"


def test_a_run_that_logs_rarely_is_compared_by_its_nearest_row(tmp_path: Path) -> None:
    assert verdicts(run_with(rows(0.45, 0.95, 240, every=15), tmp_path))[200] == "on track"
    assert verdicts(run_with(rows(0.45, 0.95, 300, every=150), tmp_path))[200] == "not known"


def test_a_run_with_another_model_or_other_problems_is_not_compared(tmp_path: Path) -> None:
    same = read_run(make_run(tmp_path / "same", steps=1).path)
    assert original_curve.why_not_comparable(same) is None
    other = make_run(tmp_path / "other", steps=1, overrides=("model_name_or_path=Qwen/Qwen2.5-0.5B",))
    assert "another model" in (original_curve.why_not_comparable(read_run(other.path)) or "")
    problems = make_run(tmp_path / "mine", steps=1, overrides=("dataset_id_or_path=mine.jsonl",))
    assert "other problems" in (original_curve.why_not_comparable(read_run(problems.path)) or "")
    # A run that can't be compared is not called behind.
    assert [mark.step for mark in summarise(same, None).comparisons] == [50, 100, 200]
    for run in (other, problems):
        assert summarise(read_run(run.path), None).comparisons == []
