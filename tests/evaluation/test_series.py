"""`mini-r1 evaluate RUN`: every snapshot and the untrained model, and what is not done a second time."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_r1.errors import KitError
from mini_r1.evaluation import measuring
from mini_r1.evaluation.evaluate_run import Series, evaluate_run_or_model
from mini_r1.evaluation.results_table import print_series
from mini_r1.generation.model import StartingPoint
from mini_r1.run.manifest import seal
from mini_r1.run.run_dir import RunDir
from rich.console import Console

from tests.evaluation.conftest import evaluate_one

UNKNOWN = StartingPoint(None, None, "it is not known")

Evaluate = Callable[..., tuple[Series, str]]


@pytest.fixture
def start(model_directory: Path) -> StartingPoint:
    return StartingPoint(str(model_directory), None, "the tests' model")


@pytest.fixture
def evaluate(run: RunDir, start: StartingPoint) -> Evaluate:
    """Evaluate the run; what came of it, and what was said."""

    def call(
        samples: int | None = 1, limit: int | None = 2, start: StartingPoint = start, **options: Any
    ) -> tuple[Series, str]:
        said = io.StringIO()
        console = Console(file=said, width=300, force_terminal=False)
        found = evaluate_run_or_model(
            str(run.path), samples=samples, limit=limit, every=True, start=start, console=console, **options
        )
        return found, said.getvalue()

    return call


def test_the_untrained_model_then_the_newest_snapshot_then_the_others(run: RunDir, evaluate: Evaluate) -> None:
    series, said = evaluate()
    assert said.splitlines() == [
        "step 0 (1 of 3): completions 4/4",
        "step 10 (2 of 3): completions 4/4",
        "step 5 (3 of 3): completions 4/4",
    ]
    assert [result["provenance"]["step"] for result in series.evaluations] == [0, 5, 10]
    assert (series.measured, series.already_there, series.errors, series.untrained) == ([0, 5, 10], [], {}, None)
    for result in series.evaluations:
        assert json.loads(Path(result["provenance"]["written_to"]).read_text()) == result
    figures = series.evaluations[0]
    assert "untrained" not in figures["baselines"]
    for result in series.evaluations[1:]:
        untrained = result["baselines"]["untrained"]
        assert untrained["pass_at_k"] == figures["pass_at_k"]
        assert untrained["tries"] == figures["tries"]
    shown = series.to_json()
    assert shown["provenance"]["step"] == 10  # the newest result is on top
    assert len(json.loads(json.dumps(shown))["series"]["evaluations"]) == 3


def test_a_second_call_measures_nothing_and_reports_it(
    run: RunDir, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = evaluate()
    files = {path: path.stat().st_mtime_ns for path in run.evaluation.iterdir()}

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(measuring, "measure", never)
    second, said = evaluate()
    assert "measured already with the same settings: steps 0, 5, 10; nothing to do (--again measures again)" in said
    assert (second.measured, second.already_there) == ([], [0, 5, 10])
    assert second.evaluations == first.evaluations
    assert {path: path.stat().st_mtime_ns for path in run.evaluation.iterdir()} == files
    with pytest.raises(AssertionError, match="measured again"):
        evaluate(again=True)


def test_only_what_is_missing_is_measured(run: RunDir, evaluate: Evaluate) -> None:
    evaluate()
    (run.evaluation / "step-5-limit-2.json").unlink()
    series, said = evaluate()
    assert series.measured == [5]
    assert "measured already with the same settings: steps 0, 10; 1 to do" in said
    assert "step 5 (1 of 1)" in said


def test_a_call_that_was_stopped_resumes(run: RunDir, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = measuring.measure
    calls = 0

    def stopped_at_the_second(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return measure(*args, **options)

    monkeypatch.setattr(measuring, "measure", stopped_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate()
    assert {path.name for path in run.evaluation.iterdir()} == {
        "step-0-limit-2.json",
        "step-0-limit-2-completions.jsonl",
    }
    series, _ = evaluate()
    assert (series.already_there, series.measured) == ([0], [5, 10])


def test_other_settings_are_measured_again_and_reported(evaluate: Evaluate) -> None:
    evaluate()
    series, said = evaluate(samples=2)
    assert series.measured == [0, 5, 10]
    assert "step-10-limit-2.json was measured with other settings (samples): measuring again" in said
    assert series.evaluations[-1]["baselines"]["untrained"]["pass_at_k"].keys() == {"1", "2"}


def test_without_a_number_of_samples_it_is_that_of_before(run: RunDir, evaluate: Evaluate) -> None:
    """Else a plain `evaluate` would replace by 4 samples what took hours with 64."""
    evaluate(samples=3)
    (run.evaluation / "step-5-limit-2.json").unlink()
    series, _ = evaluate(samples=None)
    assert (series.measured, [result["samples"] for result in series.evaluations]) == ([5], [3, 3, 3])
    assert evaluate_one(str(run.path), limit=2, step=5)["samples"] == 3
    assert evaluate_one(str(run.path), limit=1, step=5)["samples"] == 4  # another set of problems: the default


def test_a_snapshot_that_was_saved_again_is_measured_again(
    run: RunDir, evaluate: Evaluate, model_directory: Path
) -> None:
    """As after a resume from an older checkpoint."""
    evaluate()
    scratch = run.snapshots / ".step-5"
    shutil.copytree(model_directory, scratch)
    (scratch / "note.txt").write_text("another one")
    seal(scratch, run.snapshots / "step-5", run_id=run.run_id)
    series, said = evaluate()
    assert series.measured == [5]
    assert "(weights)" in said


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 20_000, '{"provenance": 3}', '{"provenance": {"seed": 3}}'])
def test_a_result_that_is_broken_or_older_is_made_again(run: RunDir, evaluate: Evaluate, text: str) -> None:
    evaluate()
    (run.evaluation / "step-5-limit-2.json").write_text(text)
    series, _ = evaluate()
    assert series.measured == [5]
    assert series.evaluations[1]["problems"] == 2


def test_an_untrained_model_that_is_not_known_is_reported(evaluate: Evaluate) -> None:
    series, _ = evaluate(start=UNKNOWN)
    assert ([r["provenance"]["step"] for r in series.evaluations], series.untrained) == ([5, 10], "it is not known")
    assert set(series.evaluations[-1]["baselines"]) == {"random_solver", "signed_sums"}
    out = io.StringIO()
    print_series(series, Console(file=out, width=80))
    assert "untrained model: not measured: it is not known" in out.getvalue()


def test_an_untrained_model_that_cannot_be_loaded_does_not_stop_the_rest(evaluate: Evaluate, tmp_path: Path) -> None:
    gone = StartingPoint(str(tmp_path / "gone"), None, "gone")
    series, said = evaluate(start=gone)
    assert (series.measured, series.errors) == ([5, 10], {})
    assert series.untrained is not None
    assert "cannot load the" in series.untrained
    assert "step 0 is left out" in said


def test_a_damaged_snapshot_is_left_out_and_reported(run: RunDir, evaluate: Evaluate) -> None:
    weights = run.snapshots / "step-10" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    series, said = evaluate()
    assert (series.measured, list(series.errors)) == ([0, 5], [10])
    assert "step 10 is left out: the snapshot" in said
    shutil.rmtree(run.snapshots / "step-5")
    shutil.rmtree(run.evaluation)
    with pytest.raises(KitError, match="is damaged"):
        evaluate(start=UNKNOWN)


def test_one_snapshot_is_compared_with_the_untrained_model_that_was_measured_before(
    run: RunDir, evaluate: Evaluate, start: StartingPoint
) -> None:
    before = evaluate_one(str(run.path), samples=1, limit=2, step=0, start=start)
    assert (before["provenance"]["step"], before["provenance"]["snapshot"]) == (0, None)
    newest = evaluate_one(str(run.path), samples=1, limit=2, start=start)
    assert newest["baselines"]["untrained"]["sampled"] == before["sampled"]
    with pytest.raises(KitError, match="it is not known"):
        evaluate_one(str(run.path), samples=1, limit=2, step=0, start=UNKNOWN)


def test_the_table_fits_80_columns(evaluate: Evaluate) -> None:
    series, _ = evaluate(samples=2)
    out = io.StringIO()
    print_series(series, Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    row = next(line.split() for line in lines if line.strip().startswith("untrained "))
    assert len(row) == 9
    assert "…" not in out.getvalue()
    assert "O/E: right answers divided by those expected" in out.getvalue()
    rows = [line.split() for line in lines if line.split()[1:2] in (["try"], ["tries"]) and "│" not in line]
    assert [words[0] for words in rows] == ["1", "2", "4", "8", "16", "32", "64", "all"]


def test_on_a_narrow_terminal_no_figure_is_cut(evaluate: Evaluate) -> None:
    series, _ = evaluate(samples=2)
    out = io.StringIO()
    print_series(series, Console(file=out, width=56))
    head = out.getvalue().split("┏")[0]
    assert "…" not in head
    assert head.split("pass@2")[1].split()[0] == "tries"
