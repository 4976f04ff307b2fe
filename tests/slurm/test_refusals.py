"""What no job should try again: the log says what is wrong, the job ends with 78, once, and no run was begun."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.slurm.cluster import SYSTEM_PATH, Job, Slurm
from tests.slurm.conftest import Kit, a_program

pytestmark = pytest.mark.real
VENV = {"MINI_R1_RUNTIME": "venv", "MINI_R1_VENV": str(REPO / ".venv")}
ONE, FOUR, TWO_NODES = "slurm/train_1gpu.sh", "slurm/train_4xh100.sh", "slurm/train_2x8h100.sh"
THREE = ("lora-cpu", "--gpus", "3")
"""One more than a job has that got two: the launcher says how many its task sees."""
MODULES = [Path("/etc/profile.d") / f"{name}.sh" for name in ("lmod", "z00_lmod", "modules")]
"""Where load_modules looks for the command."""


@dataclass(frozen=True)
class Case:
    """A job that is refused.

    Attributes:
        says: in its log.
        arguments: of sbatch.
        site: what site.env exports; None: there is no such file.
        lines: site.env's last.
        exports: the shell that submits.
        prepare: what else is done to the checkout.
        needs: why the case cannot be tried here, if it cannot.
    """

    says: str
    arguments: tuple[str, ...] = (ONE,)
    site: dict[str, str] | None = field(default_factory=lambda: VENV)
    lines: str = ""
    exports: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[Kit], object] = lambda kit: None
    needs: str = ""


def with_windows_lines(name: str) -> Callable[[Kit], object]:
    def convert(kit: Kit) -> None:
        path = kit.folder / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))

    return convert


def a_python_without_the_kit(kit: Kit) -> None:
    (kit.folder / "bare" / "bin").mkdir(parents=True)
    (kit.folder / "bare" / "bin" / "python").symlink_to(Path(sys.executable).resolve())


def a_prolog_that_hides_gpus(kit: Kit) -> None:
    """Slurm takes from a task prolog's output what it begins with `export`."""
    a_program(kit.folder.parent / "prolog", "echo export CUDA_VISIBLE_DEVICES=0")
    kit.site(**VENV, SLURM_TASK_PROLOG=str(kit.folder.parent / "prolog"))


def a_venv_that_one_node_sees(kit: Kit) -> None:
    a_program(kit.slurm.folder / "disk-of-n1" / "venv" / "bin" / "python", f"exec '{sys.executable}' \"$@\"")
    kit.site(MINI_R1_RUNTIME="venv", MINI_R1_VENV=str(kit.slurm.disk / "venv"))


CASES = {
    # What Slurm gives and how
    "no GPU": Case("no GPU was allocated: sbatch --gpus-per-node=N", ("--gpus-per-node=0", ONE)),
    "four tasks": Case(
        "Slurm would start 4 tasks on a node: leave out --ntasks", ("--ntasks-per-node=4", "--gpus-per-task=1", FOUR)
    ),
    "a GPU a task, left over from the shell that submits": Case(
        "--gpus-per-task=1 hides the other GPUs of the node from its one task, which needs all 4", (FOUR,),
        exports={"SLURM_GPUS_PER_TASK": "1"},
    ),
    "GPUs are bound": Case("--gpu-bind=map_gpu:0 hides GPUs", ("--gpu-bind=map_gpu:0", FOUR)),
    # A recipe that would train on one as well.
    "a task sees fewer": Case(
        "sees only GPU 0 of the 4 that the job has there", (FOUR, "lora-cpu"), prepare=a_prolog_that_hides_gpus
    ),
    "another number, as --gres": Case("--gpus 3: only 2 given", ("--gres=gpu:2", FOUR, *THREE)),
    "another number, with a type": Case("--gpus 3: only 2 given", ("--gpus-per-node=h100:2", FOUR, *THREE)),
    "no binding": Case("--gpus 3: only 2 given", ("--gpus-per-node=2", "--gpu-bind=none", FOUR, *THREE)),
    # site.env
    "no site.env": Case("no runtime chosen: cp slurm/site.env.example slurm/site.env", site=None),
    "nothing exported and no runtime in site.env": Case(
        "no runtime chosen", ("--export=NONE", ONE), site={}, exports={"MINI_R1_RUNTIME": "venv"}
    ),
    "unknown runtime": Case(
        "MINI_R1_RUNTIME=docker: must be venv, apptainer or pyxis", site={"MINI_R1_RUNTIME": "docker"}
    ),
    "bound that is no number": Case(
        "MINI_R1_MAX_FAILURES=few: must be a whole number", site={**VENV, "MINI_R1_MAX_FAILURES": "few"}
    ),
    "site.env from Windows": Case(
        "site.env has Windows line ends (CRLF)", prepare=with_windows_lines("slurm/site.env")
    ),
    "site.env is no shell": Case("site.env cannot be read as shell", lines="if true; then\n"),
    # Modules; the first is a stand-in for the command
    "a module that does not load": Case(
        "module load cuda/99 failed", lines="export MINI_R1_MODULES=cuda/99\nmodule() { echo none >&2; return 1; }\n"
    ),
    "no modules here": Case(
        "this node has no 'module' command", site={**VENV, "MINI_R1_MODULES": "cuda"},
        needs="this machine has modules" if any(path.exists() for path in MODULES) else "",
    ),
    # Runtimes
    "no venv": Case("no Python with the kit at /nowhere/bin/python", site={**VENV, "MINI_R1_VENV": "/nowhere"}),
    "a venv without the kit": Case(
        "bare/bin/python: MINI_R1_VENV in", site={**VENV, "MINI_R1_VENV": "bare"}, prepare=a_python_without_the_kit
    ),
    "a venv that one node of two sees": Case(
        "the kit does not start in the runtime venv on every node", ("--gpus-per-node=1", TWO_NODES),
        prepare=a_venv_that_one_node_sees,
    ),
    "no apptainer": Case(
        "no apptainer on n", site={"MINI_R1_RUNTIME": "apptainer"},
        needs="this machine has apptainer" if shutil.which("apptainer", path=SYSTEM_PATH) else "",
    ),
    "no pyxis": Case(
        "this Slurm has no pyxis (srun does not know --container-image)", site={"MINI_R1_RUNTIME": "pyxis"}
    ),
    # Recipes and options
    "unknown key": Case("learning_rat", (ONE, "lora-cpu", "--set", "learning_rat=1")),
    "unknown recipe": Case("no-such-recipe", (ONE, "no-such-recipe")),
    # Sweeps
    "a sweep without an array": Case(
        "no array: sbatch --array=0-3", ("--wrap=bash slurm/sweep.sh", "--output=%x-%j.log")
    ),
    "no table": Case("no table at my.txt that can be read from", ("--array=0", "slurm/sweep.sh", "my.txt")),
    "a row beyond the table": Case("no row 9 in ", ("--array=9", "slurm/sweep.sh")),
    "a row that would leave its folder": Case(
        "'../up' names a run directory: letters, digits, . _ - only", ("--array=0", "slurm/sweep.sh", "my.txt"),
        prepare=lambda kit: (kit.folder / "my.txt").write_text("../up beta=0\n"),
    ),
    "a table from Windows": Case(
        "sweep.txt has Windows line ends (CRLF)", ("--array=0", "slurm/sweep.sh"),
        prepare=with_windows_lines("slurm/sweep.txt"),
    ),
    # Evaluation
    "evaluate nothing": Case("which run? sbatch slurm/evaluate.sh runs/mini-r1-3b", ("slurm/evaluate.sh",)),
    "evaluate an option": Case("which run?", ("slurm/evaluate.sh", "--samples", "8")),
    "evaluate no run": Case("no run directory runs/gone from ", ("slurm/evaluate.sh", "runs/gone")),
}  # fmt: skip


@pytest.fixture(scope="module")
def kit(make_kit: Callable[[str, Path], Kit], untrained: Path) -> Kit:
    kit = make_kit("refusals", REPO / ".venv")
    kit.write_recipe("small", model_name_or_path=str(untrained), max_steps=1)
    site = kit.folder / "slurm" / "site.env"
    site.write_text(site.read_text() + "[ -d /nowhere ] && export MINI_R1_RUNS=/nowhere\n")
    if sys.version_info >= (3, 11):  # the first with PYTHONSAFEPATH
        (kit.folder / "random.py").write_text("raise ImportError('this is not the library')\n")
    return kit


@pytest.fixture(scope="module")
def refused(make_kit: Callable[[str, Path], Kit]) -> dict[str, tuple[Kit, Job]]:
    """A job of each case, in a checkout of its own; they run side by side."""
    jobs = {}
    for number, (name, case) in enumerate(CASES.items()):
        kit = make_kit(f"refusal{number}", REPO / ".venv")
        site = kit.folder / "slurm" / "site.env"
        if case.site is None:
            site.unlink()
        else:
            kit.site(**case.site)
            site.write_text(site.read_text() + case.lines)
        case.prepare(kit)
        rows = tuple(int(word.removeprefix("--array=")) for word in case.arguments if word.startswith("--array="))
        (job,) = kit.submit_array(*case.arguments, rows=rows, **case.exports)
        jobs[name] = (kit, job)
    return jobs


@pytest.fixture(scope="module")
def longer(kit: Kit, slurm: Slurm, refused: object) -> dict[str, Job]:
    """Jobs that pass the checks of the first moment, behind the others in the queue."""
    small = "small.yaml"
    return {
        "exports nothing": kit.submit("--export=NONE", ONE, small),
        "two nodes": kit.submit("--gpus-per-node=1", TWO_NODES, small, "--run-dir", str(slurm.disk / "apart")),
        "moves": kit.submit(
            "--nodelist=n1", ONE, small, "--run-dir", str(slurm.disk / "moves"), "--set", "max_steps=100000"
        ),
    }


@pytest.mark.usefixtures("longer")  # so that they begin meanwhile
@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_once_and_begins_no_run(refused: dict[str, tuple[Kit, Job]], name: str) -> None:
    if CASES[name].needs:
        pytest.skip(CASES[name].needs)
    kit, job = refused[name]
    assert job.wait() == "FAILED", str(job)
    assert job.exit_code == 78, str(job)
    assert job.restarts == 0, str(job)
    assert CASES[name].says in job.said, str(job)
    assert "attempt over: exit code 78" in job.said
    assert not (kit.folder / "runs").exists()


def test_sbatch_itself_refuses_a_gpu_a_task_and_a_script_from_windows(kit: Kit, slurm: Slurm) -> None:
    done = slurm.try_to_run("sbatch", "--gpus-per-task=1", FOUR, cwd=kit.folder)
    assert done.returncode != 0
    assert "--gpus-per-task" in done.stderr
    with_windows_lines(FOUR)(kit)
    done = slurm.try_to_run("sbatch", FOUR, cwd=kit.folder)
    assert done.returncode != 0
    assert "DOS line breaks" in done.stderr


def test_a_script_without_sbatch_says_how_to_submit_it(kit: Kit, slurm: Slurm) -> None:
    done = slurm.try_to_run("bash", ONE, cwd=kit.folder)
    assert done.returncode == 78, done
    assert f"cd KIT && sbatch {ONE}" in done.stderr


def test_a_job_from_another_folder_needs_the_name_of_the_kit(kit: Kit, slurm: Slurm, tmp_path: Path) -> None:
    def submit(**exports: str) -> Job:
        line = ("sbatch", "--parsable", kit.folder / ONE, kit.folder / "small.yaml")
        number = slurm.run(*line, cwd=tmp_path, **exports).strip()
        return Job(slurm, number, tmp_path / f"mini-r1-{number}.log")

    nameless, named = submit(), submit(MINI_R1_HOME=str(kit.folder))
    assert nameless.wait() == "FAILED"
    assert (nameless.exit_code, nameless.restarts) == (78, 0)
    assert f"no kit in '{tmp_path}': submit from the kit's folder" in nameless.said
    named.wait_for(lambda: "training on 1 GPU(s)" in named.said)
    assert (tmp_path / "runs" / "small").is_dir()
    slurm.run("scancel", named.number)


def test_a_requeued_job_is_refused_on_a_node_that_does_not_see_its_run(longer: dict[str, Job], slurm: Slurm) -> None:
    job = longer["moves"]
    job.wait_for(lambda: "training on" in job.said)
    slurm.run("scontrol", "requeuehold", job.number)
    slurm.run("scontrol", "update", f"jobid={job.number}", "reqnodelist=n2")
    slurm.run("scontrol", "release", job.number)
    assert job.wait() == "FAILED", str(job)
    assert (job.exit_code, job.restarts) == (78, 1), str(job)
    assert f"an earlier attempt of this job has written to {slurm.disk}/moves, and n2 does not see it" in job.said
    assert not (slurm.folder / "disk-of-n2" / "moves").exists()


def test_a_run_that_one_of_two_nodes_sees_is_refused(longer: dict[str, Job], slurm: Slurm) -> None:
    job = longer["two nodes"]
    assert job.wait() == "FAILED", str(job)
    assert (job.exit_code, job.restarts) == (78, 0), str(job)
    assert f"node 1 cannot see what node 0 writes to {slurm.disk}/apart" in job.said
    assert "step 1/1" not in job.said


def test_a_job_that_is_exported_nothing_trains_with_what_site_env_says(longer: dict[str, Job], kit: Kit) -> None:
    job = longer["exports nothing"]
    assert job.wait() == "COMPLETED", str(job)
    assert kit.run("small").read_state()["state"] == "finished"
