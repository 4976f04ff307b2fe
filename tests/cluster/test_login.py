"""`mini-r1 doctor --login`: the report, the site file, what jobs run in, what the nodes must share, the command.

Slurm's programs are stand-ins (login_node.py); images have the first bytes of real ones.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_r1.doctor.login_checks import CHECKS

from tests.cluster.login_node import DOWN, SIF, SQUASHFS, Cluster, is_failure, statuses
from tests.conftest import REPO

Kit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path, monkeypatch)


# --- the report ---


def test_a_site_in_order_exits_0_and_nothing_is_submitted(cluster: Cluster, small_recipe: Callable[..., Path]) -> None:
    report = cluster.report(small_recipe(model_name_or_path="builtin:demo", dataset_id_or_path="generated"))
    assert report.exit_code == 0
    found = statuses(report)
    assert found.pop("time to save") == "skip"
    assert set(found.values()) == {"ok"}
    assert cluster.asked("sbatch") == ["--test-only slurm/train_4xh100.sh"]
    assert len(cluster.asked("sinfo")) == 1
    assert sorted(path.name for path in cluster.kit.iterdir()) == [".venv", "slurm"]


def test_without_a_recipe_only_what_depends_on_it_is_skipped(cluster: Cluster) -> None:
    found = statuses(cluster.report())
    assert [name for name, status in found.items() if status == "skip"] == [
        "time to save", "model", "data", "run directory"]  # fmt: skip
    assert list(found) == list(CHECKS)


def test_a_shell_without_the_site_file_gets_one_failure_with_what_to_do(cluster: Cluster) -> None:
    report = cluster.report(MINI_R1_RUNTIME=None)
    assert report.exit_code == 78
    assert [finding.check for finding in report.findings if finding.status == "fail"] == ["site file"]
    assert "cp slurm/site.env.example slurm/site.env" in report.findings[0].fix
    (cluster.kit / "slurm/site.env").write_text("export MINI_R1_RUNTIME=venv\n")
    finding = cluster.found("site file", MINI_R1_RUNTIME=None)
    assert "was not read in this shell" in finding.detail
    assert "`source slurm/site.env`" in finding.fix
    assert cluster.found("site file").status == "ok"


def test_the_kits_example_of_a_site_file_passes(cluster: Cluster) -> None:
    example = REPO / "slurm" / "site.env.example"
    if not example.is_file():
        pytest.skip("no slurm/site.env.example")
    done = subprocess.run(["bash", "-c", f"set -a; . {shlex.quote(str(example))}; env -0"], capture_output=True)
    read = dict(line.split("=", 1) for line in done.stdout.decode().split("\0") if "=" in line)
    set_here = {name: value for name, value in read.items() if name.startswith(("SBATCH_", "MINI_R1_", "HF_"))}
    assert set_here["MINI_R1_RUNTIME"] == "venv"
    assert cluster.found("site file", **set_here).status == "ok"


# --- the site file ---


def test_windows_line_ends_are_reported_once(cluster: Cluster) -> None:
    (cluster.kit / "slurm/site.env").write_bytes(b"export MINI_R1_RUNTIME=venv\r\nexport SBATCH_PARTITION=priv\r\n")
    report = cluster.report(MINI_R1_RUNTIME="venv\r", SBATCH_PARTITION="priv\r")
    assert [finding.check for finding in report.findings if finding.status == "fail"] == ["site file"]
    assert is_failure(report.findings[0], "recipe")
    for part in ("slurm/site.env has Windows line ends", "MINI_R1_RUNTIME, SBATCH_PARTITION in this shell"):
        assert part in report.findings[0].detail
    assert "sed -i 's/\\r$//' slurm/site.env" in report.findings[0].fix
    (cluster.kit / "slurm/site.env").unlink()
    assert is_failure(cluster.found("site file", SBATCH_QOS="high\r"), "recipe")


def test_an_empty_partition_is_what_sbatch_refuses(cluster: Cluster) -> None:
    finding = cluster.found("site file", SBATCH_PARTITION="")
    assert is_failure(finding, "recipe")
    assert "unset SBATCH_PARTITION" in finding.fix
    assert cluster.found("partition", SBATCH_PARTITION="").detail.startswith("gpu is up")
    assert cluster.found("site file", SBATCH_ACCOUNT="", SBATCH_RESERVATION="").status == "ok"


@pytest.mark.parametrize("variable", ["MINI_R1_VENV", "MINI_R1_MOUNTS", "HF_HOME"])
def test_a_tilde_within_quotes_is_reported(cluster: Cluster, variable: str) -> None:
    finding = cluster.found("site file", **{variable: "~/here"})
    assert is_failure(finding, "recipe")
    assert variable in finding.detail


def test_an_unknown_runtime_is_refused(cluster: Cluster) -> None:
    finding = cluster.found("site file", MINI_R1_RUNTIME="aptainer")
    assert is_failure(finding, "recipe")
    assert "did you mean 'apptainer'" in finding.detail
    assert cluster.found("image", MINI_R1_RUNTIME="aptainer").status == "skip"


# --- what jobs run in ---


def test_a_virtual_environment_has_an_interpreter(cluster: Cluster) -> None:
    assert cluster.found("image").detail == f"virtual environment {cluster.kit}/.venv (nfs4)"
    finding = cluster.found("image", MINI_R1_VENV="/nowhere")
    assert is_failure(finding, "recipe")
    assert "no interpreter at /nowhere/bin/python" in finding.detail
    python = cluster.kit / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/opt/python3.11/bin/python3")
    assert "it links to /opt/python3.11/bin/python3, which is not here" in cluster.found("image").detail


@pytest.mark.parametrize(
    ("kind", "status"),
    [("nfs4", "ok"), ("lustre", "ok"), ("fuse.ceph", "ok"), ("wekafs", "ok"), ("ext4", "warn"), ("xfs", "warn"),
     ("tmpfs", "fail"), ("overlay", "fail"), ("fuse.squashfuse", "fail")],
)  # fmt: skip
def test_environment_image_and_runs_must_be_on_a_shared_filesystem(cluster: Cluster, kind: str, status: str) -> None:
    (cluster.kit / "mini-r1.sif").write_bytes(SIF)
    cluster.mount(kind)
    image = {"MINI_R1_RUNTIME": "apptainer", "MINI_R1_IMAGE": "mini-r1.sif"}
    for check, extra in (("image", {}), ("image", image), ("run directory", {"MINI_R1_RUNS": str(cluster.disk / "r")})):
        finding = cluster.found(check, **extra)
        assert finding.status == status, finding
        assert finding.cause == ("recipe" if status == "fail" else None)
        assert kind in finding.detail


@pytest.mark.parametrize(
    ("runtime", "name", "content", "status", "part"),
    [
        ("apptainer", "mini-r1.sif", SIF, "ok", "image mini-r1.sif (nfs4)"),
        ("apptainer", "./mini-r1.sif", SIF, "ok", "nfs4"),
        ("apptainer", "mini-r1.sif", SQUASHFS, "fail", "is an image for pyxis, and MINI_R1_RUNTIME is apptainer"),
        ("apptainer", "mini-r1.sif", b"", "fail", "is neither a SIF file nor a squashfs image"),
        ("apptainer", "mini-r1.sif", b"<html>404</html>", "fail", "is neither a SIF file nor a squashfs image"),
        ("apptainer", "mini-r1.sif", None, "fail", "No such file or directory"),
        ("apptainer", "docker://me/mini-r1:1", None, "warn", "every job pulls docker://me/mini-r1:1"),
        ("pyxis", "./mini-r1.sqsh", SQUASHFS, "ok", "nfs4"),
        ("pyxis", "./mini-r1.sqsh", SIF, "fail", "is an image for apptainer"),
        ("pyxis", "./mini-r1.sqsh", None, "fail", "No such file or directory"),
        ("pyxis", "mini-r1.sqsh", SQUASHFS, "ok", "nfs4"),
        ("pyxis", "mini-r1", None, "fail", "No such file or directory"),
        ("pyxis", "ghcr.io#me/mini-r1:1", None, "warn", "every job pulls ghcr.io#me/mini-r1:1"),
        ("pyxis", "me/mini-r1:1", None, "warn", "every job pulls me/mini-r1:1"),
        ("pyxis", "ghcr.io/me/mini-r1:1", None, "fail", "no # separates registry and name"),
        ("pyxis", "", None, "fail", "pyxis needs MINI_R1_IMAGE"),
    ],
)
def test_an_image(cluster: Cluster, runtime: str, name: str, content: bytes | None, status: str, part: str) -> None:
    if content is not None:
        (cluster.kit / name).write_bytes(content)
    finding = cluster.found("image", MINI_R1_RUNTIME=runtime, MINI_R1_IMAGE=name)
    assert (finding.status, finding.cause) == (status, "recipe" if status == "fail" else None), finding
    assert part in finding.detail


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


def test_apptainer_takes_a_folder_as_well(cluster: Cluster) -> None:
    (cluster.kit / "box").mkdir()
    assert cluster.found("image", MINI_R1_RUNTIME="apptainer", MINI_R1_IMAGE="./box").status == "ok"
    assert is_failure(cluster.found("image", MINI_R1_RUNTIME="pyxis", MINI_R1_IMAGE="./box"), "recipe")


# --- model, data, run directory ---


def cached(home: Path, repository: str, **contents: str) -> None:
    """Write a repository into the hub's cache, as the hub's library leaves it."""
    folder = home / "hub" / repository
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    for name, text in contents.items():
        file = folder / "snapshots" / ("0" * 40) / name.replace("__", "/").replace("_DOT_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.fixture
def on_hub(small_recipe: Callable[..., Path]) -> Path:
    return small_recipe("hub", model_name_or_path="a/model", dataset_id_or_path="a/rows")


@pytest.mark.parametrize("check", ["model", "data"])
def test_what_is_not_in_the_cache_gets_the_prefetch_command(cluster: Cluster, on_hub: Path, check: str) -> None:
    finding = cluster.found(check, on_hub, HF_HOME=str(cluster.disk / "hf"))
    assert is_failure(finding, "recipe"), finding
    assert "mini-r1 prefetch RECIPE" in finding.fix
    assert "HF_HUB_OFFLINE=0" in finding.fix
    assert "for this check" in finding.detail
    chosen = cluster.found(check, on_hub, HF_HOME=str(cluster.disk / "hf"), HF_HUB_OFFLINE="1")
    assert is_failure(chosen, "recipe")
    assert "HF_HUB_OFFLINE=0" not in chosen.fix
    assert "for this check" not in chosen.detail


def test_what_is_whole_in_a_shared_cache_is_ok(cluster: Cluster, on_hub: Path) -> None:
    home = cluster.disk / "hf"
    cached(home, "models--a--model", config_DOT_json="{}", model_DOT_safetensors="")
    cached(home, "datasets--a--rows", data__x_DOT_parquet="")
    for kind, status in (("nfs4", "ok"), ("ext4", "warn"), ("tmpfs", "fail")):
        cluster.mount(kind, home)
        found = statuses(cluster.report(on_hub, HF_HOME=str(home)))
        assert (found["model"], found["data"]) == (status, status)
    assert is_failure(cluster.found("model", on_hub, HF_HOME=str(home)), "recipe")


def test_a_model_in_a_folder_is_where_the_nodes_see_it(
    cluster: Cluster, small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("")
    recipe = small_recipe(model_name_or_path=str(folder))
    assert cluster.found("model", recipe).status == "ok"
    cluster.mount("tmpfs", folder)
    assert is_failure(cluster.found("model", recipe), "recipe")


def test_the_run_directory_is_where_the_scripts_put_it(
    cluster: Cluster, small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = small_recipe("mine")
    assert "runs/mine (nfs4)" in cluster.found("run directory", recipe).detail
    runs = {"MINI_R1_RUNS": str(tmp_path / "scratch")}
    assert f"{tmp_path}/scratch/mine" in cluster.found("run directory", recipe, **runs).detail
    assert cluster.found("run directory", **runs).status == "ok"
    away = small_recipe("away", output_dir=str(tmp_path / "away"))
    assert cluster.found("run directory", away).status == "ok"
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "thesis.tex").write_text("")
    assert "is not empty and holds no run" in cluster.found("run directory", away).detail


# --- the command ---


def test_the_command_needs_neither_torch_nor_a_gpu_and_prints_json(
    mini_r1: Kit, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*os.environ]:
        if name.startswith(("SBATCH_", "MINI_R1_", "SLURM_")):
            monkeypatch.delenv(name)
    for name, value in {**cluster.environment, "PATH": f"{cluster.bin}:{os.environ['PATH']}"}.items():
        monkeypatch.setenv(name, value)
    done = mini_r1("doctor", "demo-cpu", "--login", "--json", cwd=cluster.kit)
    report = json.loads(done.stdout)
    assert [finding["check"] for finding in report["findings"]] == list(CHECKS)
    assert done.returncode == report["exit_code"]
    done = mini_r1("doctor", "--login", "--script", "slurm/train_4xh100.sh", cwd=cluster.kit)
    assert "Slurm would accept slurm/train_4xh100.sh" in " ".join(done.stdout.replace("│", " ").split())
    code = "import sys, mini_r1.doctor.login_checks; print(*{'torch', 'transformers', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "\n"


def test_the_exit_code_depends_on_the_cause(mini_r1: Kit, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{cluster.bin}:{os.environ['PATH']}")
    monkeypatch.setenv("MINI_R1_RUNTIME", "apptainer")
    monkeypatch.setenv("MINI_R1_IMAGE", "docker://me/mini-r1")  # a file would depend on this machine's filesystem
    monkeypatch.setenv("SBATCH_PARTITION", "nope")
    assert mini_r1("doctor", "--login", cwd=cluster.kit).returncode == 78
    cluster.program("sinfo", err=DOWN, code=1)
    assert mini_r1("doctor", "--login", cwd=cluster.kit).returncode == 150


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--login", "--smoke"], "--login looks at no device"),
        (["--login", "--gpus", "4"], "--login looks at no device"),
        (["--login", "--gpu-memory", "80"], "--login looks at no device"),
        (["--login", "--deepspeed", "zero3"], "--login looks at no device"),
        (["--script", "x.sh"], "--script needs --login"),
        (["--login", "--set", "seed=1"], "--set changes a recipe"),
        (["auto", "--login"], "auto chooses by the devices"),
        (["nowhere.yaml", "--login"], "no such recipe"),
    ],
)
def test_options_that_do_not_go_together_are_refused(mini_r1: Kit, options: list[str], part: str) -> None:
    done = mini_r1("doctor", *options)
    assert done.returncode == 78
    assert part in done.stderr


# --- documentation ---


def test_the_documentation_names_every_check_and_no_other() -> None:
    _, _, page = (REPO / "docs" / "doctor.md").read_text().partition("## On a login node")
    rows = [row.split("|")[1].strip() for row in page.splitlines() if row.startswith("| ")]
    assert [name for row in rows for name in row.split(", ")] == ["Check", "---", *CHECKS]
