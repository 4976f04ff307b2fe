"""The run directory: complete or not there, never half."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mini_r1.errors import ExitCode, KitError
from mini_r1.manifest import seal, verify
from mini_r1.rundir import JsonLines, RunDir, open_run, read_jsonl, write_json


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.recipe_file.write_text("")
    return run


def save(run: RunDir, step: int, text: str = "weights") -> None:
    scratch = run.checkpoints / f"checkpoint-{step}"
    (scratch / "sub").mkdir(parents=True)
    (scratch / "model.safetensors").write_text(text)
    (scratch / "sub" / "shard").write_text(text * 2)
    seal(scratch, run.checkpoints / f"step-{step}", run_id=run.run_id)


def test_a_checkpoint_counts_only_when_it_was_sealed(run: RunDir) -> None:
    save(run, 2)
    unsealed = run.checkpoints / "step-9"
    unsealed.mkdir()
    (unsealed / "model.safetensors").write_text("half")
    assert [saved.step for saved in run.complete_checkpoints()] == [2]
    (unsealed / "manifest.json").write_text('{"files": {"model.saf')
    assert [saved.step for saved in run.complete_checkpoints()] == [2]


def test_leftovers_of_a_killed_save_are_removed_at_the_next_start(run: RunDir) -> None:
    (run.checkpoints / "checkpoint-4").mkdir(parents=True)
    (run.snapshots / ".step-4").mkdir(parents=True)
    save(run, 2)
    with run.claimed():
        pass
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-2"]
    assert list(run.snapshots.iterdir()) == []


@pytest.mark.parametrize("damage", ["change", "cut", "remove"])
def test_damage_after_sealing_is_found_and_named(run: RunDir, damage: str) -> None:
    save(run, 2)
    (saved,) = run.complete_checkpoints()
    assert verify(saved, run.run_id) is None
    shard = saved.path / "sub" / "shard"
    if damage == "change":
        shard.write_text(shard.read_text().upper())
    elif damage == "cut":
        shard.write_text("w")
    else:
        shard.unlink()
    fault = verify(saved, run.run_id)
    assert fault is not None
    assert "sub/shard" in fault


def test_the_newest_two_checkpoints_are_kept_by_number_not_by_name(run: RunDir) -> None:
    for step in (9, 10, 100):
        save(run, step)
    run.prune_checkpoints()
    assert [saved.step for saved in run.complete_checkpoints()] == [100, 10]


def test_a_step_saved_again_replaces_the_old_one(run: RunDir) -> None:
    save(run, 2, "old")
    save(run, 2, "new")
    (saved,) = run.complete_checkpoints()
    assert (saved.path / "model.safetensors").read_text() == "new"
    assert verify(saved, run.run_id) is None


def test_readers_pass_over_a_line_that_a_kill_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonLines(path) as lines:
        lines.write({"step": 1}, {"step": 2})
    with path.open("ab") as handle:
        handle.write(b'{"step": 3, "rew')
    assert [row["step"] for row in read_jsonl(path)] == [1, 2]
    assert list(read_jsonl(tmp_path / "missing.jsonl")) == []


def test_any_text_survives_a_jsonl_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    hostile = "\x1b[2J</script>\u2028\u202e\x00\ud800 line\nline\r\n" + "x" * 100_000
    with JsonLines(path) as lines:
        lines.write({"step": 1, "completion": hostile})
    assert len(path.read_bytes().splitlines()) == 1
    assert next(read_jsonl(path))["completion"] == hostile


def test_the_highest_attempt_wins_for_each_step(run: RunDir) -> None:
    for rows in ([(1, "a"), (2, "a"), (3, "a"), (4, "a")], [(3, "b"), (4, "b")], [(4, "c"), (5, "c")]):
        attempt = run.start_attempt()
        with JsonLines(attempt / "metrics.jsonl") as lines:
            lines.write(*({"step": step, "by": by} for step, by in rows))
    run.start_attempt()  # an attempt that was killed before its first step has no file at all
    assert [(row["step"], row["by"]) for row in run.metrics()] == [(1, "a"), (2, "a"), (3, "b"), (4, "c"), (5, "c")]


def test_an_attempt_never_writes_into_another(run: RunDir) -> None:
    assert [run.start_attempt().name for _ in range(11)] == [str(n) for n in range(1, 12)]


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
    with pytest.raises(KitError, match="is not empty and holds no run"), RunDir(tmp_path).claimed():
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_in_the_way_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(KitError, match="cannot use .* as run directory"), RunDir(tmp_path / "run").claimed():
        pass


def test_reading_a_run_that_is_not_one(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="holds no run") as caught:
        open_run(tmp_path)
    assert caught.value.exit_code == ExitCode.CONFIG


def test_a_second_writer_is_refused_and_a_dead_one_leaves_no_lock(run: RunDir) -> None:
    program = (
        "import sys; from pathlib import Path; from mini_r1.rundir import RunDir\n"
        "with RunDir(Path(sys.argv[1])).claimed():\n    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(KitError, match="another process is training"), run.claimed():
            pass
    finally:
        holder.kill()
        holder.communicate()
    with run.claimed():
        pass


def test_the_manifest_names_every_file_with_size_and_hash(run: RunDir) -> None:
    save(run, 2, "w")
    files = json.loads((run.checkpoints / "step-2" / "manifest.json").read_text())["files"]
    assert sorted(files) == ["model.safetensors", "sub/shard"]
    assert files["sub/shard"]["size"] == 2


def test_a_start_that_came_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "new" / "run")
    with pytest.raises(ZeroDivisionError), run.claimed():
        raise ZeroDivisionError
    assert not run.path.exists()
