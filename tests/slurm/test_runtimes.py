"""The runtimes that are containers, with the project's own scripts on a real Slurm; the containers are stand-ins.

tests/slurm/stand_in_container.py has Apptainer and pyxis by name. A job sees there what the scripts have mounted, so a
run that finishes has been given its kit, its model, its cache and its run directory.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_r1.run.run_dir import RunDir

from tests.conftest import REPO
from tests.slurm.cluster import SYSTEM_PATH, Job
from tests.slurm.conftest import Checkout, Kit, a_program, selected
from tests.slurm.stand_in_slurm import Script

STAND_IN = Path(__file__).with_name("stand_in_container.py")
ONE = "slurm/train_1gpu.sh"


class Containers:
    """A checkout whose jobs run in a stand-in for a container.

    Args:
        kit: the checkout; for pyxis its folder loses the space that it has in its name.
        runtime: apptainer or pyxis.
        model: what is mounted as /models/untrained, read-only.
    """

    def __init__(self, kit: Checkout, runtime: str, model: Path) -> None:
        self.kit, self.runtime = kit, runtime
        space = " " if runtime == "apptainer" else "-"
        kit.folder = kit.folder.rename(kit.folder.with_name(f"my{space}kit"))
        self.folder = kit.folder.parent
        self.image = self.folder / f"an{space}image.sif"
        self.image.touch()
        self.runs, self.cache = self.folder / f"all{space}runs", self.folder / f"hub{space}cache"
        self.record = self.folder / "record.jsonl"
        programs = self.folder / "programs"
        verb = {"apptainer": "apptainer", "pyxis": "srun"}[runtime]
        a_program(programs / verb, f"exec '{sys.executable}' '{STAND_IN}' {verb} \"$@\"")
        of_image = self.folder / "image-bin"
        a_program(of_image / "mini-r1", f'echo "HF_HOME here: $HF_HOME" >&2; exec \'{REPO}/.venv/bin/mini-r1\' "$@"')
        self.settings = {
            "MINI_R1_RUNTIME": runtime, "MINI_R1_IMAGE": str(self.image), "PATH": f"{programs}:{SYSTEM_PATH}",
            "MINI_R1_RUNS": str(self.runs), "HF_HOME": str(self.cache),
            "MINI_R1_MOUNTS": f"{model}:/models/untrained:ro {self.folder}/data",
            "STAND_IN_RECORD": str(self.record), "STAND_IN_IMAGE_BIN": str(of_image),
            "STAND_IN_SRUN": shutil.which("srun", path=SYSTEM_PATH) or "",
        }  # fmt: skip
        (self.folder / "data").mkdir()
        self.mounts = [f"{model}:/models/untrained:ro", *(
            f"{path}:{path}" for path in (self.folder / "data", kit.folder, self.cache, self.runs)
        )]  # fmt: skip
        kit.write_recipe("small", model_name_or_path="/models/untrained", max_steps=1)

    def site(self, **changes: str) -> None:
        """Write the site file, with other values for these."""
        self.kit.site(**{**self.settings, **changes})

    def asked(self) -> list[dict[str, Any]]:
        """What the stand-in was asked for."""
        return [json.loads(line) for line in self.record.read_text().splitlines()]


RUNTIMES = ("apptainer", "pyxis")


@pytest.fixture(scope="module")
def submit(make_kit: Callable[[str, Path], Kit], untrained: Path) -> Callable[..., tuple[Containers, Job]]:
    """Submit a job in a separate checkout; words and values may name its folder, {}."""

    def submit(runtime: str, *arguments: str, **site: str) -> tuple[Containers, Job]:
        kit = make_kit(runtime, REPO / ".venv")
        container = Containers(kit, runtime, untrained)
        container.site(**{name: value.replace("{}", str(container.folder)) for name, value in site.items()})
        return container, kit.submit(*(word.replace("{}", str(container.folder)) for word in arguments))

    return submit


REFUSED: dict[str, tuple[str, tuple[str, ...], dict[str, str]]] = {
    # What the log says, what `sbatch` is given, what site.env says; {} is the checkout's parent.
    "no image": ("cannot read the image /nowhere.sif", (ONE,), {"MINI_R1_IMAGE": "/nowhere.sif"}),
    "image not named": ("needs MINI_R1_IMAGE", (ONE,), {"MINI_R1_IMAGE": ""}),
    "comma": ("{}/a,b: a path with a comma or a colon cannot be mounted", (ONE,), {"HF_HOME": "{}/a,b"}),
    "colon": ("{}/a:b: a path with a comma or a colon cannot be mounted", (ONE,), {"MINI_R1_RUNS": "{}/a:b"}),
    "no mount": ("cannot mount /nowhere: it does not exist", (ONE,), {"MINI_R1_MOUNTS": "/nowhere:/data:ro"}),
    "no cache": ("cannot mount /proc/hub: it does not exist", (ONE,), {"HF_HOME": "/proc/hub"}),
    "run elsewhere": (
        "the run directory /var/tmp/mini-r1-elsewhere is not mounted into the container: name a folder above it",
        (ONE, "lora-cpu", "--run-dir", "/var/tmp/mini-r1-elsewhere"), {},
    ),
    "run on a mount that is read-only": (
        "the run directory {}/data/run is not mounted into the container",
        (ONE, "lora-cpu", "--run-dir", "{}/data/run"), {"MINI_R1_MOUNTS": "{}/data:{}/data:ro"},
    ),
    "evaluate elsewhere": (
        "the run directory /usr is not mounted into the container", ("slurm/evaluate.sh", "/usr"), {}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(
    submit: Callable[..., tuple[Containers, Job]], request: pytest.FixtureRequest
) -> dict[str, tuple[Containers, Job]]:
    """A run of one step in each whose test is in this run."""
    return {runtime: submit(runtime, ONE, "small.yaml") for (runtime,) in selected(request, "trains_in")}


ON_SLURM = ("no image", "run elsewhere")
"""Before and after the first step of a job."""

# Stand-ins for the tests without Slurm: a container in which `mini-r1 launch --dry-run` gives back its --run-dir.
ANSWER = 'while [ $# -gt 0 ]; do [ "$1" != --run-dir ] || echo "$2"; shift; done'
WITH_PYXIS = 'while [ "${1#--}" != "$1" ]; do [ "$1" != --help ] || echo --container-image; shift; done; "$@"'


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_paths_outside_a_container_are_refused_before_training(tmp_path: Path, runtime: str, name: str) -> None:
    says, arguments, changes = REFUSED[name]
    (tmp_path / "model").mkdir()
    container = Containers(Checkout(tmp_path), runtime, tmp_path / "model")
    programs = tmp_path / "no-slurm"
    for program, text in {"apptainer": ANSWER, "mini-r1": ANSWER, "srun": WITH_PYXIS}.items():
        a_program(programs / program, text)
    changes = {name: value.replace("{}", str(tmp_path)) for name, value in changes.items()}
    container.site(**{**changes, "PATH": f"{programs}:{tmp_path}/slurm-programs:{SYSTEM_PATH}"})
    script = Script(container.kit, *(word.replace("{}", str(tmp_path)) for word in arguments))
    assert script.wait() == 78, script.log
    assert says.replace("{}", str(tmp_path)) in script.log
    assert "training on" not in script.log
    assert not any("requeue" in call for call in script.calls)


@pytest.fixture(scope="module")
def refused(
    submit: Callable[..., tuple[Containers, Job]], trained: object, request: pytest.FixtureRequest
) -> dict[tuple[str, str], tuple[Containers, Job]]:
    """A job of each whose test is in this run; they run side by side."""
    jobs = {}
    for runtime, name in selected(request, "runtime", "on_slurm"):
        _, arguments, site = REFUSED[name]
        jobs[runtime, name] = submit(runtime, *arguments, **site)
    return jobs


@pytest.mark.real
@pytest.mark.parametrize(
    "on_slurm",
    [pytest.param(name, marks=() if name in ON_SLURM else pytest.mark.exhaustive) for name in REFUSED],
)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_paths_outside_a_container_end_the_job(
    refused: dict[tuple[str, str], tuple[Containers, Job]], runtime: str, on_slurm: str
) -> None:
    container, job = refused[runtime, on_slurm]
    assert job.wait() == "FAILED", str(job)
    assert (job.exit_code, job.restarts) == (78, 0), str(job)
    assert REFUSED[on_slurm][0].replace("{}", str(container.folder)) in job.said, str(job)
    assert "training on" not in job.said


@pytest.mark.real
@pytest.mark.parametrize("trains_in", ["apptainer", pytest.param("pyxis", marks=pytest.mark.exhaustive)])
def test_a_run_in_a_container_finishes_where_the_node_keeps_it(
    trained: dict[str, tuple[Containers, Job]], trains_in: str
) -> None:
    container, job = trained[trains_in]
    assert job.wait() == "COMPLETED", str(job)
    run = RunDir(container.runs / "small")
    assert run.read_state()["state"] == "finished"
    assert (run.path / "slurm" / "attempts.tsv").exists()
    assert f"HF_HOME here: {container.cache}" in job.said  # and not the image's own
    dry, real = container.asked()
    assert "--dry-run" in dry["command"]
    assert "--dry-run" not in real["command"]
    for asked in (dry, real):
        assert asked["program"] == trains_in
        assert asked["image"] == str(container.image)
        assert asked["workdir"] == str(container.kit.folder)
        assert asked["mounts"] == container.mounts
        # --nv asks for GPUs: the CPU has none.
        assert asked["flags"] == {"apptainer": ["--no-home"], "pyxis": ["--no-container-mount-home"]}[trains_in]


# ---- the functions of slurm/lib.sh, without a cluster ----------------------------------------------------------------


def in_shell(folder: Path, script: str, **variables: str) -> list[str]:
    """What lib.sh's functions print for each other, line by line; what they say to the log is left out."""
    sourced = f". '{REPO}/slurm/lib.sh'; trap - EXIT; log() {{ echo \"$*\" >&2; }}"
    done = subprocess.run(
        ["bash", "-c", f"{sourced}\n{script}"], capture_output=True, text=True, cwd=folder, timeout=60,
        env={
            "PATH": f"{folder}/programs:{SYSTEM_PATH}", "HOME": str(folder / "home"), "kit": str(REPO),
            "SLURM_SUBMIT_DIR": str(folder), **variables,
        },
    )  # fmt: skip
    assert done.returncode == 0, done
    return done.stdout.splitlines()


def pairs(*paths: Path) -> list[str]:
    return [f"{path}:{path}" for path in paths]


def test_apptainer_brings_the_gpus_unless_the_work_runs_on_the_cpu(tmp_path: Path) -> None:
    a_program(tmp_path / "programs" / "singularity", "")  # its older name
    (tmp_path / "image.sif").touch()
    ask = "check_runtime && printf '%s\\n' \"${kit_command[@]}\""
    site = {"MINI_R1_RUNTIME": "apptainer", "MINI_R1_IMAGE": "image.sif"}
    cache = tmp_path / "home" / ".cache" / "huggingface"
    line = [
        f"{tmp_path}/programs/singularity", "exec", "--no-home", "--bind", ",".join(pairs(REPO, tmp_path, cache)),
        "--pwd", str(tmp_path),
    ]  # fmt: skip
    image = [f"{tmp_path}/image.sif", "mini-r1"]
    assert in_shell(tmp_path, ask, **site) == [*line, "--nv", *image]
    assert in_shell(tmp_path, ask, **site, MINI_R1_ACCELERATOR="cpu") == [*line, *image]


def test_pyxis_gets_the_absolute_path_of_an_image_and_the_jobs_cache(tmp_path: Path) -> None:
    # Output after the line that is searched for must not matter.
    a_program(tmp_path / "programs" / "srun", "echo --container-image; yes srun | head -n 100000")
    (tmp_path / "image.sqsh").touch()
    ask = 'check_runtime && printf \'%s\\n\' "${container[@]}" "${kit_command[@]}"'
    site = {"MINI_R1_RUNTIME": "pyxis", "MINI_R1_IMAGE": "image.sqsh", "HF_HOME": "hub"}
    assert in_shell(tmp_path, ask, **site) == [
        f"--container-image={tmp_path}/image.sqsh",
        f"--container-mounts={','.join(pairs(REPO, tmp_path, tmp_path / 'hub'))}",
        f"--container-workdir={tmp_path}", "--no-container-mount-home", "env", "HF_HOME=hub", "mini-r1",
    ]  # fmt: skip


def test_the_kits_mounts_cover_the_users_and_none_is_repeated(tmp_path: Path) -> None:
    for name in ("data", "data/runs", "models"):
        (tmp_path / name).mkdir()
    (word,) = in_shell(
        tmp_path, "mount_option", MINI_R1_RUNTIME="apptainer", HF_HOME=str(tmp_path), TMPDIR=str(tmp_path / "disk"),
        MINI_R1_RUNS="data/runs",
        MINI_R1_MOUNTS=f"\n {tmp_path}/data:{tmp_path}/data:ro\t{tmp_path}/models:/m {tmp_path} ",
    )  # fmt: skip
    assert word.split(",") == [
        f"{tmp_path}/data:{tmp_path}/data:ro", f"{tmp_path}/models:/m",
        *pairs(tmp_path, REPO, tmp_path / "data" / "runs", tmp_path / "disk"),
    ]  # fmt: skip
    assert (tmp_path / "disk").is_dir()


def test_pyxis_cannot_mount_a_path_with_a_space(tmp_path: Path) -> None:
    ask, site = "mount_option 2>&1 || echo refused", {"HF_HOME": str(tmp_path / "hub cache")}
    (word,) = in_shell(tmp_path, ask, **site, MINI_R1_RUNTIME="apptainer")
    assert word.split(",") == pairs(REPO, tmp_path, tmp_path / "hub cache")
    said = in_shell(tmp_path, ask, **site, MINI_R1_RUNTIME="pyxis")
    assert said == [f"error: {tmp_path}/hub cache: pyxis cannot mount a path with a space", "refused"]


def test_a_star_in_the_mounts_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    said = in_shell(tmp_path, "mounts", HF_HOME="", MINI_R1_MOUNTS="/no*/where *")
    assert [line.split("\t")[0] for line in said[:2]] == ["/no*/where", "*"]


@pytest.mark.parametrize(
    ("path", "mounted"),
    [
        ("{}/submit/runs/a", True), ("{}/submit", True), ("{}/submit-2/runs", False), ("{}/rw/run", True),
        ("{}/ro/run", False), ("{}/renamed/run", False), ("/inside/run", False), ("{}/hub", True),
    ],
)  # fmt: skip
def test_a_run_is_kept_where_the_container_writes_to_the_node_under_the_same_name(
    tmp_path: Path, path: str, mounted: bool
) -> None:
    (tmp_path / "submit").mkdir()
    said = in_shell(
        tmp_path, f"{{ (check_mounted '{path.replace('{}', str(tmp_path))}') && echo yes || echo no; }}",
        MINI_R1_RUNTIME="pyxis", SLURM_SUBMIT_DIR=str(tmp_path / "submit"), HF_HOME=str(tmp_path / "hub"),
        MINI_R1_MOUNTS=f"{tmp_path}/rw/ {tmp_path}/ro:{tmp_path}/ro:ro {tmp_path}/renamed:/inside",
    )  # fmt: skip
    assert said == ["yes" if mounted else "no"]


@pytest.mark.parametrize(
    ("image", "remote"),
    [
        ("docker://ghcr.io/a/b:1", True), ("ghcr.io#a/b:1", True), ("a/b:1", True), ("/a:b.sif", False),
        ("./a#b.sqsh", False), ("image.sif", False), ("images/image.sif", False),
    ],
)  # fmt: skip
def test_an_image_is_a_file_or_in_a_registry(tmp_path: Path, image: str, remote: bool) -> None:
    assert in_shell(tmp_path, f"{{ is_uri '{image}' && echo yes || echo no; }}") == ["yes" if remote else "no"]
