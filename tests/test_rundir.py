"""The run directory: complete or not there, never half."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mini_r1.errors import ExitCode, KitError
from mini_r1.run.files import AppendFile, read_jsonl, write_json, write_jsonl, write_text
from mini_r1.run.manifest import seal
from mini_r1.run.reader import read_completions, read_held_out_completions, read_metrics
from mini_r1.run.run_dir import RunDir, find_run, open_run

from tests.power_cut import recorded_syncs


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.recipe_file.write_text("")
    return run


def save(run: RunDir, step: int) -> None:
    scratch = run.checkpoints / f"checkpoint-{step}"
    scratch.mkdir(parents=True)
    (scratch / "model.safetensors").write_text(f"weights {step}")
    seal(scratch, run.checkpoints / f"step-{step}", run_id=run.run_id)


def logged(run: RunDir, begins: int | None, *metrics: dict[str, object]) -> Path:
    """An attempt whose first completion is of the step `begins`, or that came to none, with these rows of metrics."""
    attempt = run.start_attempt()
    with closing(AppendFile(attempt / "completions.jsonl")) as lines:
        lines.write_rows(*({"step": begins + i, "by": attempt.name} for i in range(3 if begins is not None else 0)))
    with closing(AppendFile(attempt / "metrics.jsonl")) as lines:
        lines.write_rows(*metrics)
    return attempt


# --- run.json ---


@pytest.mark.parametrize(
    ("record", "commit"),
    [
        (None, None),
        ({}, None),
        ({"attempts": []}, None),
        ({"attempts": {"-1": {"model": {"revision": "abc"}}}}, None),
        ({"attempts": [{"model": {"revision": "abc"}}]}, "abc"),
        ({"attempts": [{"model": {"revision": "old"}}, {"model": {"revision": "new"}}]}, "new"),
        ({"attempts": [{"model": {"revision": "old"}}, {"model": {"revision": None}}]}, None),
        ({"attempts": [{"model": {"revision": 7}}]}, None),
        ({"attempts": [{"model": "abc"}]}, None),
        ({"attempts": [{}]}, None),
        ({"attempts": ["abc"]}, None),
    ],
)
def test_the_commit_of_the_model_is_the_newest_attempts(run: RunDir, record: object, commit: str | None) -> None:
    if record is not None:
        write_json(run.run_file, record)
    assert run.model_commit() == commit


# --- checkpoints and what a kill leaves ---


def test_the_newest_two_checkpoints_are_kept_by_number_not_by_name(run: RunDir) -> None:
    for step in (9, 10, 100):
        save(run, step)
    run.prune_checkpoints()
    assert [saved.step for saved in run.complete_checkpoints()] == [100, 10]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-10", "step-100"]


def test_a_checkpoint_set_aside_is_kept_and_counts_no_longer(run: RunDir) -> None:
    for step in (3, 6):
        save(run, step)
    aside = run.set_aside(run.complete_checkpoints()[0])
    save(run, 4)
    run.prune_checkpoints()
    with run.claim():
        pass
    assert [saved.step for saved in run.complete_checkpoints()] == [4, 3]
    assert (aside / "model.safetensors").read_text() == "weights 6"
    save(run, 6)
    assert run.set_aside(run.complete_checkpoints()[0]) == aside


def test_leftovers_of_a_kill_are_removed_at_the_next_start(run: RunDir) -> None:
    (run.checkpoints / "checkpoint-4").mkdir(parents=True)
    (run.snapshots / ".step-4").mkdir(parents=True)
    (run.path / ".state.json.4711.tmp").write_text('{"state": "runn')
    save(run, 2)
    with run.claim():
        pass
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-2"]
    assert list(run.snapshots.iterdir()) == []
    assert sorted(p.name for p in run.path.iterdir()) == [".lock", "checkpoints", "recipe.yaml", "snapshots"]


def test_a_kill_while_the_recipe_is_first_written_leaves_a_directory_that_can_be_used(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.start_attempt()
    (run.path / ".recipe.yaml.4711.tmp").write_text("model_na")
    with run.claim():
        assert not list(run.path.glob("*recipe*"))


def test_a_kill_while_the_first_model_is_loaded_leaves_a_directory_that_can_be_used(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.write_state("running", step=0, phase="model")
    with run.claim():
        assert run.read_state()["phase"] == "model"


def test_the_run_id_is_what_run_json_says(run: RunDir) -> None:
    assert run.run_id == ""
    write_json(run.run_file, {"run_id": "4" * 32})
    assert run.run_id == "4" * 32
    run.run_file.write_text('{"run_id": "44')
    assert run.run_id == ""


# --- metrics and completions ---


def test_a_step_is_read_from_the_highest_attempt_that_reached_it(run: RunDir) -> None:
    logged(run, 1, *({"step": step, "by": "1"} for step in (1, 2, 3, 4)))
    logged(run, 3, *({"step": step, "by": "2"} for step in (3, 4)))
    logged(run, 4, *({"step": step, "by": "3"} for step in (4, 5)))
    run.start_attempt()  # killed before its first step: no file at all
    assert [(row["step"], row["by"]) for row in read_metrics(run)] == [(1, "1"), (2, "1"), (3, "2"), (4, "3"), (5, "3")]
    assert [(row["step"], row["by"]) for row in read_completions(run)] == [
        (1, "1"), (2, "1"), (3, "2"), (4, "3"), (5, "3"), (6, "3")
    ]  # fmt: skip


def test_rows_of_one_step_are_merged(run: RunDir) -> None:
    logged(
        run, 1,
        {"step": 0, "eval_success": 0.0},
        {"step": 2, "loss": 0.5, "reward": 1.0},
        {"step": 2, "trouble": {"kl": "KL is 3"}},
        {"step": 2, "eval_success": 0.25},
        {"step": 4, "loss": 0.25},
    )  # fmt: skip
    assert read_metrics(run) == [
        {"step": 0, "eval_success": 0.0},
        {"step": 2, "loss": 0.5, "reward": 1.0, "trouble": {"kl": "KL is 3"}, "eval_success": 0.25},
        {"step": 4, "loss": 0.25},
    ]


def test_an_evaluation_at_the_start_of_an_attempt_is_merged_into_its_step(run: RunDir) -> None:
    """Attempt 2 resumes after step 4, which it evaluates again; attempt 3 was killed before it had trained."""
    logged(run, 1, {"step": 4, "loss": 0.5, "eval_success": 0.1}, {"step": 5, "loss": 9.0}, {"step": 6, "loss": 9.0})
    logged(run, 5, {"step": 4, "eval_success": 0.2}, {"step": 5, "loss": 0.25})
    logged(run, None, {"step": 4, "eval_success": 0.3})
    assert read_metrics(run) == [{"step": 4, "loss": 0.5, "eval_success": 0.3}, {"step": 5, "loss": 0.25}]


def test_rows_of_repeated_steps_are_void(run: RunDir) -> None:
    """Attempt 1 logged each step; attempt 2 resumes after step 3 and logs every fourth: nothing of 4 to 7 counts."""
    logged(run, 1, *({"step": step, "loss": 9.0} for step in range(1, 7)))
    logged(run, 4, {"step": 8, "loss": 0.5})
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 8]


def test_an_attempt_from_the_first_step_voids_all_before_it(run: RunDir) -> None:
    logged(run, 1, {"step": 2, "loss": 9.0}, {"step": 6, "loss": 9.0})
    logged(run, 1, {"step": 1, "loss": 0.5})
    assert read_metrics(run) == [{"step": 1, "loss": 0.5}]


def test_readers_skip_a_line_that_a_kill_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with closing(AppendFile(path)) as lines:
        lines.write_rows({"step": 1}, {"step": 2})
    with path.open("ab") as handle:
        handle.write(b'{"step": 3, "rew')
    assert [row["step"] for row in read_jsonl(path)] == [1, 2]
    assert list(read_jsonl(tmp_path / "missing.jsonl")) == []


def test_any_text_survives_a_jsonl_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    hostile = "\x1b[2J</script>\u2028\u202e\x00\ud800 line\nline\r\n" + "x" * 100_000
    with closing(AppendFile(path)) as lines:
        lines.write_rows({"step": 1, "completion": hostile})
    assert len(path.read_bytes().splitlines()) == 1
    assert next(read_jsonl(path))["completion"] == hostile


def test_an_attempt_never_writes_into_another(run: RunDir) -> None:
    assert [run.start_attempt().name for _ in range(11)] == [str(n) for n in range(1, 12)]


def test_the_answers_to_the_most_held_out_problems_of_a_step_are_read(run: RunDir) -> None:
    run.evaluation.mkdir()
    for name in (
        "step-10-limit-9", "step-10-limit-20", "step-5", "step-5-limit-9", "step-5-0a1b2c3d", "step-5-12345678-limit-3",
    ):  # fmt: skip
        step = int(name.split("-")[1])
        write_jsonl(run.evaluation / f"{name}-completions.jsonl", [{"step": step, "of": name}, {"step": "x"}])
    write_json(run.evaluation / "step-5.json", {"step": 5, "of": "the figures"})
    assert [row["of"] for row in read_held_out_completions(run)] == ["step-5", "step-10-limit-20"]


def test_writing_in_a_strangers_run_follows_no_planted_link(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("mine")
    (tmp_path / f".report.html.{os.getpid()}.tmp").symlink_to(own)
    write_text(tmp_path / "report.html", "page")
    assert own.read_text() == "mine"
    assert (tmp_path / "report.html").read_text() == "page"
    assert not (tmp_path / "report.html").is_symlink()


def test_state_is_replaced_whole(run: RunDir) -> None:
    assert run.read_state() == {}
    run.write_state("running", step=3, phase="rollout")
    assert run.read_state()["phase"] == "rollout"
    run.state_file.write_text('{"state": "runn')
    assert run.read_state() == {}
    write_json(run.state_file, [1])
    assert run.read_state() == {}
    assert [p.name for p in run.path.glob(".*")] == []


def test_a_directory_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(KitError, match="is not empty and holds no run"), RunDir(tmp_path).claim():
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    for path in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(KitError, match="cannot use .* as run directory") as caught, RunDir(path).claim():
            pass
        assert caught.value.exit_code == ExitCode.CONFIG


def test_a_folder_that_cannot_be_written_is_retried() -> None:
    with (
        pytest.raises(KitError, match=r"give this user \(uid \d+\) the right") as caught,
        RunDir(Path("/proc/x")).claim(),
    ):
        pass
    assert caught.value.exit_code == ExitCode.RETRY


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("first", "runs/first"),
        ("runs/first", "runs/first"),
        ("./runs/first", "runs/first"),
        ("sweep/one", "runs/sweep/one"),
        ("here", "here"),  # the path itself comes first, although runs/here exists
        ("gone", "gone"),
        ("../above", "../above"),  # not runs/../above, which exists
        ("x" * 300, "x" * 300),
    ],
)
def test_a_run_is_found_by_its_path_or_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, found: str
) -> None:
    for name in ("runs/first", "runs/sweep/one", "runs/here", "here", "above"):
        (tmp_path / "work" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    assert find_run(given) == Path(found)


@pytest.mark.parametrize(
    ("holds", "is_a_run", "has_begun"),
    [
        ((), False, False),
        (("state.json",), False, True),
        (("attempts/1/x",), False, True),
        (("recipe.yaml",), True, True),
    ],
)
def test_only_a_run_is_opened(tmp_path: Path, holds: tuple[str, ...], is_a_run: bool, has_begun: bool) -> None:
    for name in holds:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for options, opened, lacks in (
        ({}, is_a_run, r"\(no recipe.yaml in it\)"),
        ({"begun": False}, has_begun, r"\(no recipe.yaml, state.json or attempts in it\)"),
    ):
        if opened:
            assert open_run(tmp_path, **options).path == tmp_path
            continue
        with pytest.raises(KitError, match=f"holds no run {lacks}") as caught:
            open_run(tmp_path, **options)
        assert caught.value.exit_code == ExitCode.CONFIG


def test_attempts_are_folders_with_a_number_of_up_to_six_digits(run: RunDir) -> None:
    for name in ("2", "10", "999999", "1000000", "x", "1.old"):
        (run.attempts / name).mkdir(parents=True)
    assert run.attempt_numbers() == [2, 10, 999_999]


def test_a_second_writer_is_refused_and_a_dead_one_leaves_no_lock(run: RunDir) -> None:
    program = (
        "import sys; from pathlib import Path; from mini_r1.run.run_dir import RunDir\n"
        "with RunDir(Path(sys.argv[1])).claim():\n    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(KitError, match="another process is training"), run.claim():
            pass
    finally:
        holder.kill()
        holder.communicate()
    with run.claim():
        pass


def test_a_start_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "new" / "run")
    with pytest.raises(ZeroDivisionError), run.claim():
        raise ZeroDivisionError
    assert not run.path.exists()


def test_a_file_that_was_replaced_is_there_after_a_power_cut(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with recorded_syncs(tmp_path / "folder") as recording:
        for value in ("old", "new"):
            write_text(tmp_path / "folder" / "some.txt", value)
        write_text(tmp_path / "folder" / "other.txt", "not waited for", sync=False)
    recording.cut(len(recording.synced), tmp_path / "left")
    recording.close()
    assert [(path.name, path.read_text()) for path in (tmp_path / "left").iterdir()] == [("some.txt", "new")]


def test_a_file_that_could_not_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk half a file would take the space that the next attempt needs."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "some.json", {"a": 1})
    assert list(tmp_path.iterdir()) == []


def test_jsonl_that_fails_while_it_is_written_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write_jsonl(file, [{"nums": [1, 2], "target": 3}])
    before = file.read_bytes()

    def failing() -> Iterator[dict[str, Any]]:
        yield {"target": 9}
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_jsonl(file, failing())
    assert file.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_scratch_file_that_another_node_makes_meanwhile_is_part_of_a_start(tmp_path: Path) -> None:
    """Nodes examine a new run directory at the same time, and each writes a file there for a moment."""
    run, done = RunDir(tmp_path), threading.Event()
    (tmp_path / "jobs").mkdir()

    def probe() -> None:
        while not done.is_set():
            (tmp_path / ".doctor-n2-7.tmp").touch()
            (tmp_path / ".doctor-n2-7.tmp").unlink()

    other = threading.Thread(target=probe)
    other.start()
    try:
        found = [run.holds_other_files() for _ in range(3000)]
    finally:
        done.set()
        other.join()
    assert not any(found)
    (tmp_path / "mine.txt").touch()
    assert run.holds_other_files()
