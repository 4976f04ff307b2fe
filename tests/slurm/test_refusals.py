"""What no job should try again: the log says what is wrong, the script ends with 78, and no run was begun.

Here without Slurm (stand_in_slurm.py); test_refusals_on_slurm.py submits the same cases to a real one.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.slurm.conftest import Checkout, a_program
from tests.slurm.refusals import CASES, ONE
from tests.slurm.stand_in_slurm import Script


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.only_on_slurm])
def test_bad_input_is_refused_and_begins_no_run(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    if case.needs:
        pytest.skip(case.needs)
    kit = Checkout(tmp_path)
    case.write(kit)
    script = Script(kit, *case.script, gpus=case.gpus, environment={**case.exports, **case.given})
    assert script.wait() == 78, script.log
    assert case.says in script.log
    assert "attempt over: exit code 78" in script.log
    assert not any("requeue" in call for call in script.calls)
    assert not (kit.folder / "runs").exists()


@pytest.mark.parametrize("code", [126, 127, 255])
def test_a_kit_that_does_not_start_on_a_node_is_refused(tmp_path: Path, code: int) -> None:
    kit = Checkout(tmp_path)
    # It starts where the batch shell looks, and ends so as the step: no such file, no right to run it, srun's own.
    a_program(tmp_path / "venv" / "bin" / "python", f'[ "$2" = "import mini_r1" ] || exit {code}')
    kit.site(MINI_R1_RUNTIME="venv", MINI_R1_VENV=str(tmp_path / "venv"))
    script = Script(kit, ONE)
    assert script.wait() == 78, script.log
    assert "the kit does not start in the runtime venv on every node" in script.log
    assert not any("requeue" in call for call in script.calls)


@pytest.mark.parametrize("code", [137, 150])
def test_a_check_that_ends_before_the_run_directory_is_known_is_not_retried(tmp_path: Path, code: int) -> None:
    """It could not be counted: the launcher itself reports an error of the node, which it counts."""
    kit = Checkout(tmp_path)
    a_program(tmp_path / "venv" / "bin" / "python", f'[ "$2" = "import mini_r1" ] || exit {code}')
    kit.site(MINI_R1_RUNTIME="venv", MINI_R1_VENV=str(tmp_path / "venv"))
    script = Script(kit, ONE)
    assert script.wait() == 78, script.log
    assert f"the check ended with exit code {code} before the run directory was known" in script.log
    assert not any("requeue" in call for call in script.calls)


def test_a_script_without_sbatch_says_how_to_submit_it(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", ONE], cwd=Checkout(tmp_path).folder, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 78, done
    assert f"cd KIT && sbatch {ONE}" in done.stderr
