"""What a batch script makes of Slurm's signals, without Slurm; test_survival.py has a real one send them."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.slurm.conftest import Checkout
from tests.slurm.stand_in_slurm import Script

LAUNCHER = """#!{python}
import signal, sys, time
from pathlib import Path
if "import mini_r1" in sys.argv:
    sys.exit()
if "--dry-run" in sys.argv:
    print(Path("runs/stand-in").resolve())
    sys.exit()
Path("started").touch()
while not Path("ends").exists():
    if Path("hears").exists():
        signal.signal(signal.SIGUSR1, lambda *_: sys.exit(143))
    time.sleep(0.05)
sys.exit(143)
"""
"""Stand-in for `mini-r1 launch`: from the file `hears` on a notice ends it, and the file `ends` always does."""


def start(folder: Path, shown: str) -> tuple[Script, Path]:
    """A script whose launcher has started, and the checkout's folder."""
    kit = Checkout(folder)
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(LAUNCHER.format(python=sys.executable))
    python.chmod(0o755)
    kit.site(MINI_R1_RUNTIME="venv", MINI_R1_VENV=str(folder / "venv"))
    script = Script(kit, "slurm/train_1gpu.sh", shown=shown)
    script.wait_for((kit.folder / "started").exists)
    return script, kit.folder


def requeues(script: Script) -> int:
    return script.calls.count("requeue 7")


def test_a_notice_is_forwarded_until_the_launcher_reacts_and_the_job_is_requeued(tmp_path: Path) -> None:
    script, folder = start(tmp_path, "JobState=RUNNING Reason=None")
    script.process.send_signal(signal.SIGUSR1)
    script.wait_for(lambda: "USR1: the time limit is near" in script.log)
    (folder / "hears").touch()
    assert script.wait() == 0, script.log
    assert "requeued after exit code 143" in script.log
    assert requeues(script) == 1


def test_the_run_directory_is_read_in_whole_lines_and_progress_as_it_is_written(tmp_path: Path) -> None:
    script, folder = start(tmp_path, "JobState=RUNNING Reason=None")
    (folder / "ends").touch()
    script.wait()
    steps = [call for call in script.calls if call.startswith("srun --nodes")]
    assert ["--unbuffered" in step for step in steps if "--print-run-dir" in step] == [False]
    assert ["--unbuffered" in step for step in steps if "--dry-run" not in step] == [True]


def test_at_the_time_limit_a_job_is_requeued_before_its_step_has_ended(tmp_path: Path) -> None:
    script, folder = start(tmp_path, "JobState=COMPLETING Reason=TimeLimit")
    script.process.terminate()
    script.wait_for(lambda: "requeued at the time limit" in script.log)
    (folder / "ends").touch()
    assert script.wait() == 143, script.log
    assert requeues(script) == 1


@pytest.mark.parametrize("reason", ["None", "Preempted"])
def test_a_job_that_slurm_ends_is_left_to_slurm(tmp_path: Path, reason: str) -> None:
    script, folder = start(tmp_path, f"JobState=COMPLETING Reason={reason}")
    script.process.terminate()
    (folder / "ends").touch()
    assert script.wait() == 143, script.log
    assert "Slurm ends this job: if it was preempted, Slurm restarts it; if it was cancelled, " in script.log
    assert requeues(script) == 0
