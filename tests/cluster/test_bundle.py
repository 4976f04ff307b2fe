"""A support bundle holds what explains a run, and no secrets, weights or files from outside the run."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_r1.cli.command_tools import file_errors
from mini_r1.doctor import bundle as bundling
from mini_r1.doctor.bundle import bundle
from mini_r1.errors import KitError
from mini_r1.run.run_dir import RunDir

SECRET = "pineapple-upside-down"
HF = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run directory with a token in every kind of file."""
    run = RunDir(tmp_path / "first")
    attempt = run.attempts / "1"
    attempt.mkdir(parents=True)
    run.recipe_file.write_text("seed: 3\n")
    run.run_file.write_text(json.dumps({"attempts": [{"command": ["mini-r1", "train", "--hub-token", SECRET]}]}))
    run.state_file.write_text(json.dumps({"state": "failed", "reason": f"401 for {HF}"}))
    (attempt / "rank-0.log").write_text(f"logged in with {SECRET}\n")
    (attempt / "rank-1.out").write_text(f"Authorization: Bearer {SECRET}\n")
    (attempt / "rank-1.stack").write_text("Thread 0x1 (most recent call first)\n")
    (attempt / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (attempt / "completions.jsonl").write_text("".join(f'{{"completion": "text {n}"}}\n' for n in range(5)))
    for kind in (run.checkpoints, run.snapshots):
        (kind / "step-2").mkdir(parents=True)
        (kind / "step-2/manifest.json").write_text('{"files": {}}')
        (kind / "step-2/model.safetensors").write_bytes(b"WEIGHTS" * 1000)
    return run


def contents(archive: Path) -> dict[str, str]:
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        assert all(member.isfile() for member in members)
        assert [m.name for m in members] == sorted(m.name for m in members)
        return {m.name.partition("/")[2]: tar.extractfile(m).read().decode() for m in members}  # type: ignore[union-attr]


def make(run: RunDir, out: Path, completions: int = 0) -> dict[str, str]:
    made = bundle(run, out, completions=completions, environment={"HF_TOKEN": SECRET, "SLURM_JOB_ID": "7"})
    found = contents(out)
    assert list(made) == list(found)
    return found


def test_what_explains_a_run_is_in_it(run: RunDir, tmp_path: Path) -> None:
    found = make(run, tmp_path / "b.tar.gz")
    assert set(found) == {
        "recipe.yaml", "run.json", "state.json", "attempts/1/rank-0.log", "attempts/1/rank-1.out",
        "attempts/1/rank-1.stack", "attempts/1/metrics.jsonl", "checkpoints/step-2/manifest.json",
        "snapshots/step-2/manifest.json", "versions.json", "environment.json", "doctor.json",
    }  # fmt: skip
    assert found["attempts/1/rank-1.stack"].startswith("Thread 0x1")
    assert json.loads(found["versions.json"])["packages"]["trl"] == "0.14.0"
    assert json.loads(found["environment.json"]) == {"HF_TOKEN": "[redacted]", "SLURM_JOB_ID": "7"}
    assert {finding["check"] for finding in json.loads(found["doctor.json"])["findings"]} >= {"disk", "shared memory"}


def test_no_secret_and_no_weight_is_in_it(run: RunDir, tmp_path: Path) -> None:
    found = make(run, tmp_path / "b.tar.gz", completions=5)
    assert len(found) == 13
    for name, text in found.items():
        assert SECRET not in text, name
        assert HF not in text, name
        assert "WEIGHTS" not in text, name


def test_a_secret_in_the_command_is_redacted_and_run_json_still_parses(run: RunDir, tmp_path: Path) -> None:
    bundle(run, tmp_path / "b.tar.gz", completions=0, environment={})  # the token's variable is gone by now
    command = json.loads(contents(tmp_path / "b.tar.gz")["run.json"])["attempts"][0]["command"]
    assert command == ["mini-r1", "train", "--hub-token", "[redacted]"]


def test_the_models_text_comes_only_when_asked_for(run: RunDir, tmp_path: Path) -> None:
    assert "attempts/1/completions.jsonl" not in make(run, tmp_path / "a.tar.gz")
    found = make(run, tmp_path / "b.tar.gz", completions=2)
    assert found["attempts/1/completions.jsonl"] == '{"completion": "text 3"}\n{"completion": "text 4"}\n'


def test_no_link_is_followed_and_no_pipe_is_waited_for(run: RunDir, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "9").mkdir(parents=True)
    for name in ("private.log", "9/rank-0.log"):
        (outside / name).write_text("OUTSIDE")
    (run.attempts / "1/rank-9.log").symlink_to(outside / "private.log")
    (run.attempts / "2").symlink_to(outside / "9")
    (run.snapshots / "step-4").symlink_to(outside)
    os.mkfifo(run.attempts / "1/rank-8.log")
    run.state_file.unlink()
    run.state_file.symlink_to(outside / "private.log")
    found = make(run, tmp_path / "b.tar.gz")
    assert not any("OUTSIDE" in text for text in found.values())
    assert not {"state.json", "attempts/1/rank-9.log", "attempts/1/rank-8.log", "attempts/2/rank-0.log"} & set(found)


def test_the_end_of_a_long_log_is_kept_in_whole_lines(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundling, "TAIL", 1_000)
    log = run.attempts / "1/rank-0.log"
    log.write_text("".join(f"line {n}\n" for n in range(1_000)))
    first, second, *rest = make(run, tmp_path / "b.tar.gz")["attempts/1/rank-0.log"].splitlines()
    assert rest[-1] == "line 999"
    assert second.startswith("line ")
    kept = sum(len(line) + 1 for line in [second, *rest])
    assert first == f"[the first {log.stat().st_size - kept:,} bytes are left out]"


def test_a_secret_that_the_cut_goes_through_does_not_survive_in_half(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundling, "TAIL", 10_000)
    (run.attempts / "1/rank-0.log").write_text("x" * 5_000 + SECRET + "y" * (10_000 - len(SECRET) // 2))
    text = make(run, tmp_path / "b.tar.gz")["attempts/1/rank-0.log"]
    assert SECRET[-8:] not in text


def test_the_same_contents_make_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"b/x": b"1", "b/y": b"2"}
    digests = []
    for name, now in (("one.tar.gz", 1e9), ("two.tar.gz", 2e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        bundling._write(tmp_path / name, files)
        digests.append(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_a_failed_write_keeps_the_old_archive_and_leaves_nothing_else(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "b.tar.gz"
    out.parent.mkdir()
    out.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KitError, match="No space left") as caught, file_errors():
        bundling._write(out, {"b/x": b"1"})
    assert caught.value.exit_code == 150
    assert [path.name for path in out.parent.iterdir()] == ["b.tar.gz"]
    assert out.read_text() == "old"


Kit = Callable[..., subprocess.CompletedProcess[str]]


def test_the_command_lists_what_is_in_it_and_its_size(mini_r1: Kit, run: RunDir, tmp_path: Path) -> None:
    done = mini_r1("bundle", run.path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "first-bundle.tar.gz").is_file()
    assert "attempts/1/rank-1.stack" in done.stdout
    facts = json.loads(mini_r1("bundle", run.path, "--out", tmp_path / "x.tar.gz", "--json").stdout)
    assert facts["bytes"] == (tmp_path / "x.tar.gz").stat().st_size


def test_a_launch_that_never_trained_can_be_bundled_too(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    (run.attempts / "1").mkdir(parents=True)
    (run.attempts / "1/rank-0.out").write_text("no such model\n")
    assert make(run, tmp_path / "b.tar.gz")["attempts/1/rank-0.out"] == "no such model\n"


@pytest.mark.parametrize("out", ["x.tar.gz", "."])
def test_what_is_no_run_or_no_file_is_refused(mini_r1: Kit, run: RunDir, tmp_path: Path, out: str) -> None:
    source = tmp_path if out == "x.tar.gz" else run.path
    done = mini_r1("bundle", source, "--out", out, cwd=tmp_path)
    assert done.returncode == 78
    assert "holds no run" in done.stderr if source == tmp_path else "is a directory" in done.stderr
    assert not (tmp_path / "x.tar.gz").exists()
