"""A HOME that can't be written: caches go to a private folder of the temporary directory, and one line says so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_r1.errors import KitError
from mini_r1.machine import writable_home
from mini_r1.machine.writable_home import CACHES, move_caches

from tests.small_disk import small_disk

Kit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(writable_home.tempfile, "tempdir", str(folder))
    return folder


def test_a_home_that_can_be_written_stays(tmp_path: Path, temporary: Path) -> None:
    assert move_caches({"HOME": str(tmp_path)}) == ({}, "")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("home", ["/proc/nowhere", "/nonexistent", "/proc", "a file", ""])
def test_caches_leave_a_home_that_cannot_be_written(tmp_path: Path, temporary: Path, home: str) -> None:
    if home == "a file":
        (tmp_path / "file").touch()
        home = str(tmp_path / "file")
    if not home:
        home = "/nonexistent/below"
    changes, text = move_caches({"HOME": home})
    folder = temporary / f"mini-r1-home-{os.getuid()}"
    assert set(changes) == set(CACHES)
    assert all(Path(place).is_relative_to(folder) for place in changes.values())
    assert folder.stat().st_mode & 0o777 == 0o700
    assert text == f"HOME ({home}) can't be written, so libraries have their caches in {folder}"
    assert move_caches({"HOME": home, **changes}) == ({}, "")  # a worker of this process says nothing more


def test_a_read_only_filesystem_with_models_is_still_read(tmp_path: Path, temporary: Path) -> None:
    with small_disk(tmp_path / "home", "1m") as home:
        (home / ".cache/huggingface/hub").mkdir(parents=True)
        (home / ".cache/huggingface/token").write_text("secret")
        subprocess.run(["mount", "-o", "remount,ro", str(home)], check=True)
        changes, _ = move_caches({"HOME": str(home)})
        assert changes["HF_HUB_CACHE"] == str(home / ".cache/huggingface/hub")
        assert changes["HF_TOKEN_PATH"] == str(home / ".cache/huggingface/token")
        assert changes["XDG_CACHE_HOME"] == str(temporary / f"mini-r1-home-{os.getuid()}/.cache")


def test_a_place_outside_of_home_stays(temporary: Path) -> None:
    given = {"HOME": "/proc/x", "XDG_CACHE_HOME": "/cache", "TRITON_CACHE_DIR": "/proc/x/t", "MPLCONFIGDIR": "~/m"}
    changes, _ = move_caches(given)
    assert "XDG_CACHE_HOME" not in changes
    assert {"TRITON_CACHE_DIR", "MPLCONFIGDIR"} <= set(changes)


@pytest.mark.parametrize("stranger", ["link", "open", "file"])
def test_a_folder_that_somebody_else_prepared_is_not_used(tmp_path: Path, temporary: Path, stranger: str) -> None:
    place = temporary / f"mini-r1-home-{os.getuid()}"
    if stranger == "link":
        place.symlink_to(tmp_path)
    elif stranger == "open":
        place.mkdir()
        place.chmod(0o777)
    else:
        place.touch()
    changes, _ = move_caches({"HOME": "/proc/nowhere"})
    folder = Path(changes["MPLCONFIGDIR"]).parent
    assert folder != place
    assert folder.stat().st_mode & 0o777 == 0o700


def test_without_a_temporary_directory_the_command_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writable_home.tempfile, "tempdir", "/proc/nowhere")
    with pytest.raises(KitError, match="set HOME or TMPDIR") as refused:
        move_caches({"HOME": "/proc/nowhere"})
    assert refused.value.exit_code == 150


# --- the commands ---


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed is installed on Linux only")
def test_train_with_deepspeed_evaluate_and_report_without_a_home(
    mini_r1: Kit, small_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("MINI_R1_ACCELERATOR", "cpu")
    for name in CACHES:
        monkeypatch.delenv(name, raising=False)
    run = tmp_path / "run"
    commands = [
        ("launch", small_recipe(max_steps=1, save_steps=1), "--run-dir", run, "--gpus", "1", "--deepspeed", "zero2"),
        ("evaluate", run, "--limit", "1", "--samples", "1"),
        ("report", run),
    ]
    for command in commands:
        done = mini_r1(*command)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("HOME (/proc/nowhere) can't be written, so libraries have their caches in") == 1
        assert "Traceback" not in done.stderr
        assert "nowhere" not in done.stderr.replace("HOME (/proc/nowhere)", "")
