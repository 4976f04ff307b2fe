"""`mini-r1 doctor --login` and what jobs run in: virtual environment, apptainer, pyxis, image, mounts.

Slurm's programs, apptainer and most interpreters are stand-ins here (login_node.py); images have the first bytes of
real ones.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from mini_r1 import __version__

from tests.cluster.login_node import PYXIS_HELP, SIF, SQUASHFS, SRUN_HELP, Cluster, is_failure, stand_in


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path, monkeypatch)


# --- the runtime ---


def test_a_runtime_that_there_is_not(cluster: Cluster) -> None:
    finding = cluster.found("runtime", MINI_R1_RUNTIME="aptainer")
    assert is_failure(finding, "recipe")
    assert "did you mean 'apptainer'" in finding.detail


@pytest.mark.parametrize(
    ("out", "err", "code", "status", "said"),
    [
        (f"{__version__}\n", "", 0, "ok", "which every node must have"),
        ("9.9.9\n", "", 0, "warn", f"jobs run version 9.9.9 from .venv, and this is {__version__}"),
        ("", ".venv/bin/python: No module named mini_r1\n", 1, "fail", "No module named mini_r1"),
    ],
)
def test_a_virtual_environment(cluster: Cluster, out: str, err: str, code: int, status: str, said: str) -> None:
    python = stand_in(cluster.kit / ".venv/bin/python", out, err, code)
    finding = cluster.found("runtime")
    assert (finding.status, finding.cause) == (status, "recipe" if status == "fail" else None)
    assert said in finding.detail
    assert Path(f"{python}.asked").read_text().startswith("-m mini_r1 version\n")


def test_a_virtual_environment_that_is_not_there_or_lost_its_interpreter(cluster: Cluster) -> None:
    finding = cluster.found("runtime", MINI_R1_VENV="/nowhere")
    assert is_failure(finding, "recipe")
    assert "no interpreter at /nowhere/bin/python" in finding.detail
    python = cluster.kit / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/opt/python3.11/bin/python3")
    assert "it points to /opt/python3.11/bin/python3, which is not here" in cluster.found("runtime").detail


def test_the_core_alone_cannot_train(cluster: Cluster) -> None:
    python = cluster.kit / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] && echo {__version__}\n')  # -c asks for torch, and fails
    finding = cluster.found("runtime")
    assert is_failure(finding, "recipe")
    assert "without torch" in finding.detail


def test_an_interpreter_that_needs_a_module_is_no_failure_where_modules_are_named(cluster: Cluster) -> None:
    words = "python: error while loading shared libraries: libpython3.11.so.1.0: cannot open shared object file\n"
    stand_in(cluster.kit / ".venv/bin/python", err=words, code=127)
    assert cluster.found("runtime").status == "fail"
    finding = cluster.found("runtime", MINI_R1_MODULES="python/3.11")
    assert finding.status == "warn"
    assert "module load python/3.11" in finding.fix


def test_this_very_environment_is_one(cluster: Cluster) -> None:
    if sys.prefix == sys.base_prefix:
        pytest.skip("the tests do not run in a virtual environment")
    cluster.mount("nfs4", Path(sys.prefix))
    finding = cluster.found("runtime", MINI_R1_VENV=sys.prefix)
    if importlib.util.find_spec("torch") is None:
        assert "without torch" in finding.detail
    else:
        assert finding.status == "ok", finding
        assert f"version {__version__}, with {os.path.realpath(sys.executable)}" in finding.detail


@pytest.mark.parametrize(
    ("kind", "status"),
    [("nfs4", "ok"), ("lustre", "ok"), ("fuse.ceph", "ok"), ("wekafs", "ok"), ("ext4", "warn"), ("xfs", "warn"),
     ("tmpfs", "fail"), ("overlay", "fail"), ("fuse.squashfuse", "fail")],
)  # fmt: skip
def test_where_the_kit_its_environment_and_the_runs_are(cluster: Cluster, kind: str, status: str) -> None:
    cluster.mount(kind)
    for check, extra in (("runtime", {}), ("run directory", {"MINI_R1_RUNS": str(cluster.disk / "runs")})):
        finding = cluster.found(check, **extra)
        assert finding.status == status, finding
        assert finding.cause == ("recipe" if status == "fail" else None)
        assert kind in finding.detail


def test_apptainer_and_its_modules(cluster: Cluster) -> None:
    assert is_failure(cluster.found("runtime", MINI_R1_RUNTIME="apptainer"), "recipe")
    assert cluster.found("runtime", MINI_R1_RUNTIME="apptainer", MINI_R1_MODULES="apptainer").status == "warn"
    cluster.program("singularity", "singularity-ce version 4.1.0\n")
    assert "singularity-ce version 4.1.0" in cluster.found("runtime", MINI_R1_RUNTIME="apptainer").detail
    cluster.program("apptainer", "apptainer version 1.3.4\n")
    assert "apptainer version 1.3.4" in cluster.found("runtime", MINI_R1_RUNTIME="apptainer").detail


def test_a_slurm_without_pyxis_has_two_other_runtimes(cluster: Cluster) -> None:
    finding = cluster.found("runtime", MINI_R1_RUNTIME="pyxis")
    assert is_failure(finding, "recipe")
    assert "pyxis is not installed in this Slurm" in finding.detail
    assert "apptainer or venv" in finding.fix
    cluster.program("srun", SRUN_HELP + PYXIS_HELP)
    assert cluster.found("runtime", MINI_R1_RUNTIME="pyxis").status == "ok"


# --- the image ---


@pytest.mark.parametrize(
    ("runtime", "name", "content", "status", "said"),
    [
        ("apptainer", "mini-r1.sif", SIF, "ok", "image of 0.0 KiB mini-r1.sif (nfs4)"),
        ("apptainer", "./mini-r1.sif", SIF, "ok", "nfs4"),
        ("apptainer", "mini-r1.sif", SQUASHFS, "fail", "is of pyxis's kind, and MINI_R1_RUNTIME is apptainer"),
        ("apptainer", "mini-r1.sif", b"", "fail", "is empty"),
        ("apptainer", "mini-r1.sif", b"<html>404</html>", "fail", "is neither a SIF file nor a squashfs image"),
        ("apptainer", "mini-r1.sif", None, "fail", "No such file or directory"),
        ("apptainer", "docker://me/mini-r1:1", None, "warn", "every job pulls docker://me/mini-r1:1"),
        ("pyxis", "./mini-r1.sqsh", SQUASHFS, "ok", "nfs4"),
        ("pyxis", "./mini-r1.sqsh", SIF, "fail", "is of apptainer's kind"),
        ("pyxis", "./mini-r1.sqsh", None, "fail", "No such file or directory"),
        ("pyxis", "mini-r1.sqsh", SQUASHFS, "ok", "nfs4"),
        ("pyxis", "mini-r1", None, "fail", "No such file or directory"),
        ("pyxis", "ghcr.io#me/mini-r1:1", None, "warn", "every job pulls ghcr.io#me/mini-r1:1"),
        ("pyxis", "me/mini-r1:1", None, "warn", "every job pulls me/mini-r1:1"),
        ("pyxis", "ghcr.io/me/mini-r1:1", None, "fail", "no # parts registry and name"),
        ("pyxis", "", None, "fail", "pyxis needs MINI_R1_IMAGE"),
    ],
)
def test_an_image(cluster: Cluster, runtime: str, name: str, content: bytes | None, status: str, said: str) -> None:
    if content is not None:
        (cluster.kit / name).write_bytes(content)
    finding = cluster.found("image", MINI_R1_RUNTIME=runtime, MINI_R1_IMAGE=name)
    assert (finding.status, finding.cause) == (status, "recipe" if status == "fail" else None), finding
    assert said in finding.detail


def test_a_name_in_a_registry_gets_the_command_that_makes_a_file_of_it(cluster: Cluster) -> None:
    fixes = {
        ("apptainer", "docker://ghcr.io/me/mini-r1:1"): "apptainer build mini-r1.sif docker://ghcr.io/me/mini-r1:1",
        ("pyxis", "ghcr.io#me/mini-r1:1"): "enroot import -o mini-r1.sqsh 'docker://ghcr.io#me/mini-r1:1'",
        ("pyxis", "docker://ghcr.io#me/mini-r1:1"): "enroot import -o mini-r1.sqsh 'docker://ghcr.io#me/mini-r1:1'",
    }
    for (runtime, name), fix in fixes.items():
        assert fix in cluster.found("image", MINI_R1_RUNTIME=runtime, MINI_R1_IMAGE=name).fix
    better = cluster.found("image", MINI_R1_RUNTIME="pyxis", MINI_R1_IMAGE="ghcr.io/me/mini-r1:1").fix
    assert better == "MINI_R1_IMAGE=ghcr.io#me/mini-r1:1"


def test_a_sandbox_is_apptainers(cluster: Cluster) -> None:
    (cluster.kit / "box").mkdir()
    box = {"MINI_R1_IMAGE": "./box"}
    assert "without a container's root" in cluster.found("image", MINI_R1_RUNTIME="apptainer", **box).detail
    (cluster.kit / "box/usr").mkdir()
    assert cluster.found("image", MINI_R1_RUNTIME="apptainer", **box).status == "ok"
    assert is_failure(cluster.found("image", MINI_R1_RUNTIME="pyxis", **box), "recipe")


def test_an_image_in_memory_is_not_on_the_nodes(cluster: Cluster) -> None:
    (cluster.kit / "mini-r1.sif").write_bytes(SIF)
    cluster.mount("tmpfs")
    finding = cluster.found("image", MINI_R1_RUNTIME="apptainer", MINI_R1_IMAGE="mini-r1.sif")
    assert is_failure(finding, "recipe")


# --- mounts ---


@pytest.mark.parametrize(
    ("mounts", "status", "said"),
    [
        ("{disk}", "ok", ""),
        ("{disk} {disk}:/data {disk}:/data:ro", "ok", ""),
        ("{disk}/nowhere", "fail", "there is no {disk}/nowhere here"),
        ("{disk} {disk}/a,b", "fail", "neither a comma nor a colon"),
        ("{disk}:/a:b:ro", "fail", "neither a comma nor a colon"),
        ("{disk}:ro", "fail", "is no full path"),
        ("scratch", "fail", "is no full path"),
    ],
)
@pytest.mark.parametrize("runtime", ["apptainer", "pyxis"])
def test_mounts(cluster: Cluster, runtime: str, mounts: str, status: str, said: str) -> None:
    given = mounts.format(disk=cluster.disk)
    finding = cluster.found("mounts", MINI_R1_RUNTIME=runtime, MINI_R1_MOUNTS=given)
    assert (finding.status, finding.cause) == (status, "recipe" if status == "fail" else None)
    assert said.format(disk=cluster.disk) in finding.detail
    assert cluster.found("mounts", MINI_R1_MOUNTS=given).status == "skip"


@pytest.mark.parametrize("variable", ["HF_HOME", "MINI_R1_RUNS", "TMPDIR"])
@pytest.mark.parametrize(("sign", "name"), [(",", "comma"), (":", "colon"), (" ", "space")])
def test_what_the_scripts_mount_has_no_sign_that_parts_mounts(
    cluster: Cluster, variable: str, sign: str, name: str
) -> None:
    path = f"{cluster.disk}/a{sign}b"
    finding = cluster.found("mounts", MINI_R1_RUNTIME="pyxis", **{variable: path})
    assert is_failure(finding, "recipe")
    assert f"{variable} {path} has a {name}" in finding.detail
    apptainer = cluster.found("mounts", MINI_R1_RUNTIME="apptainer", **{variable: path})
    assert apptainer.status == ("ok" if sign == " " else "fail")
