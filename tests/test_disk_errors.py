"""Errors of a disk as a sentence with exit code 150, and other errors as they are."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
from mini_r1.disk_errors import disk_error, disk_errors, hidden_disk_error, named
from mini_r1.errors import ExitCode, KitError
from mini_r1.run.files import write_json
from mini_r1.run.run_dir import RunDir

from tests.conftest import command
from tests.small_disk import fill, small_disk


def os_error(number: int, path: Path | None = None) -> OSError:
    return OSError(number, os.strerror(number), str(path)) if path else OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("number", "todo"),
    [
        (errno.ENOSPC, "Free space on that disk"),
        (errno.EDQUOT, "Free space on that disk"),
        (errno.EROFS, "Make that filesystem writable"),
        (errno.EIO, "Check that disk and its mount"),
        (errno.ESTALE, "Check that disk and its mount"),
    ],
)
def test_a_disk_s_error_is_a_retry_wherever_the_file_is(tmp_path: Path, number: int, todo: str) -> None:
    described = disk_error(os_error(number, tmp_path / "file"), then="it resumes from step 2")
    assert described is not None
    assert described.exit_code == ExitCode.RETRY
    assert f"{tmp_path}/file: {os.strerror(number)} (its disk has " in described.message
    assert described.message.endswith(f". {todo}, then run the same command again: it resumes from step 2.")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ENOTCONN])
def test_a_path_that_is_wrong_is_a_disk_s_error_only_inside_the_folder(tmp_path: Path, number: int) -> None:
    assert disk_error(os_error(number, tmp_path / "file")) is None
    assert disk_error(os_error(number, tmp_path / "file"), tmp_path / "run") is None
    assert disk_error(os_error(number), tmp_path) is None
    inside = disk_error(os_error(number, tmp_path / "file"), tmp_path)
    assert inside is not None
    assert f"cannot use {tmp_path}/file: " in inside.message
    gone = disk_error(os_error(errno.ENOENT, tmp_path / "run" / "file"), tmp_path / "run")
    assert gone is not None
    assert f"{tmp_path}/run is gone: it was renamed, removed or unmounted" in gone.message


def test_a_defect_is_no_disk_s_error(tmp_path: Path) -> None:
    for number in (errno.EINVAL, errno.EBADF, errno.ECONNREFUSED):
        assert disk_error(os_error(number, tmp_path), tmp_path) is None
    with pytest.raises(OSError, match="Invalid argument"), disk_errors(tmp_path, str):
        raise os_error(errno.EINVAL)
    assert hidden_disk_error(ValueError("no such key"), tmp_path) is None
    assert hidden_disk_error(RuntimeError("size mismatch"), tmp_path) is None


def test_a_failed_write_gets_the_name_of_its_file(tmp_path: Path) -> None:
    expected = f"cannot write {tmp_path}/file: No space"
    with pytest.raises(KitError, match=expected), disk_errors(tmp_path, str), named(tmp_path / "file"):
        raise os_error(errno.ENOSPC)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (Exception("No space left on device (os error 28)"), errno.ENOSPC),  # tokenizers
        (Exception('Error while serializing: IoError(Os { code: 30, kind: ReadOnlyFilesystem, message: "x" })'), 30),
        (RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 384 vs 342"), errno.EIO),
        (RuntimeError("Parent directory /run does not exist."), errno.EIO),
        (os_error(errno.EDQUOT), errno.EDQUOT),
    ],
)
def test_the_error_behind_a_library_s_own_is_found(tmp_path: Path, error: Exception, number: int) -> None:
    found = hidden_disk_error(error, tmp_path)
    assert found is not None
    assert (found.errno, found.filename) == (number, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_small_file_shows_what_torch_s_message_lacks(tmp_path: Path) -> None:
    error = RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 384 vs 342")
    with small_disk(tmp_path / "disk", "4m") as disk:
        fill(disk, 1 << 19)
        found = hidden_disk_error(error, disk)
        assert found is not None
        assert found.errno == errno.ENOSPC
        assert [path.name for path in disk.iterdir()] == ["filler"]
    found = hidden_disk_error(error, tmp_path / "none")
    assert found is not None
    assert found.errno == errno.ENOENT


def test_a_disk_without_inodes_is_named(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m,nr_inodes=3") as disk:
        (disk / "file").touch()
        (disk / "other").touch()
        with pytest.raises(OSError, match="No space") as caught:
            (disk / "third").touch()
        described = disk_error(caught.value)
        assert described is not None
        assert "left, and no inodes)" in described.message


def test_the_last_state_fits_on_a_full_disk_and_never_raises(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        run = RunDir(disk)
        run.write_state("running", step=3, phase="rollout", filling="x" * 900)
        fill(disk, 0)
        with pytest.raises(OSError, match=f"No space left on device: '{run.state_file}'"):
            run.write_state("running", step=4)
        assert run.write_last_state("failed", step=3, exit_code=150, reason="full")
        state = run.read_state()
        assert (state["state"], state["reason"]) == ("failed", "full")
        assert sorted(path.name for path in disk.iterdir()) == ["filler", "state.json"]
    assert not RunDir(tmp_path / "none").write_last_state("failed")
    assert not (tmp_path / "none").exists()


# --- the command line ---


def test_standard_output_and_error_on_a_full_disk(tmp_path: Path) -> None:
    """/dev/full takes no byte. Lost results are a failure, lost progress lines are not."""
    with open("/dev/full", "w") as full:
        done = subprocess.run([*command(), "version"], stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 150
        assert done.stderr.startswith("error: cannot write a file: No space left on device")
        assert done.stderr.count("\n") == 1
        done = subprocess.run([*command(), "no-such-command"], stdout=full, stderr=full)
        assert done.returncode == 78
        done = subprocess.run(
            [*command(), "data", "generate", "--rows", "2", "--out", str(tmp_path / "rows.jsonl")], stderr=full
        )
        assert done.returncode == 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2


def test_a_reader_that_is_gone_is_no_disk_s_error() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run([*command(), "version"], stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, "")


def test_problems_that_do_not_fit_on_the_disk_are_worth_a_retry(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        fill(disk, 0)
        done = subprocess.run(
            [*command(), "data", "generate", "--rows", "200", "--out", str(disk / "rows.jsonl")],
            capture_output=True,
            text=True,
        )
    assert done.returncode == 150
    assert "No space left on device (its disk has 0.0 KiB left)" in done.stderr
    assert "Traceback" not in done.stderr


def test_write_json_names_its_file_and_not_the_scratch_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"'{tmp_path}/none/some.json'"):
        write_json(tmp_path / "none" / "some.json", {})
