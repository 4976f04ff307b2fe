"""`mini-r1 doctor --login`: the whole, the site file, what the nodes must share, the command.

Slurm's programs are stand-ins here (login_node.py).
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

from tests.cluster.login_node import DOWN, SIF, Cluster, is_failure, statuses
from tests.conftest import REPO

Kit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path, monkeypatch)


# --- the whole ---


def test_a_site_in_order_is_0_and_nothing_is_submitted(cluster: Cluster, small_recipe: Callable[..., Path]) -> None:
    report = cluster.report(small_recipe(model_name_or_path="builtin:demo", dataset_id_or_path="generated"))
    assert report.exit_code == 0
    assert set(statuses(report).values()) == {"ok", "skip"}
    assert [name for name, status in statuses(report).items() if status == "skip"] == [
        "time to save", "image", "mounts", "cache"]  # fmt: skip
    assert cluster.asked("sbatch") == ["--test-only slurm/train_4xh100.sh"]  # --version comes before the log
    assert sorted(path.name for path in cluster.kit.iterdir()) == [".venv", "slurm"]


def test_without_a_recipe_only_what_depends_on_it_is_left_out(cluster: Cluster) -> None:
    told = statuses(cluster.report())
    assert [name for name, status in told.items() if status == "skip"] == [
        "time to save", "image", "mounts", "model", "data", "cache", "run directory"]  # fmt: skip
    assert list(told) == list(CHECKS)


def test_a_shell_without_the_site_file_is_told_what_to_do_once(cluster: Cluster) -> None:
    report = cluster.report(MINI_R1_RUNTIME=None)
    assert report.exit_code == 78
    assert [finding.check for finding in report.findings if finding.status == "fail"] == ["site file"]
    assert "cp slurm/site.env.example slurm/site.env" in report.findings[0].fix
    (cluster.kit / "slurm/site.env").write_text("export MINI_R1_RUNTIME=venv\n")
    finding = cluster.found("site file", MINI_R1_RUNTIME=None)
    assert "was not read in this shell" in finding.detail
    assert finding.fix.endswith("source slurm/site.env")
    assert cluster.found("site file").status == "ok"


def test_the_kits_own_example_says_what_this_reads(cluster: Cluster) -> None:
    example = REPO / "slurm" / "site.env.example"
    if not example.is_file():
        pytest.skip("no slurm/site.env.example")
    done = subprocess.run(["bash", "-c", f"set -a; . {shlex.quote(str(example))}; env -0"], capture_output=True)
    read = dict(line.split("=", 1) for line in done.stdout.decode().split("\0") if "=" in line)
    set_here = {name: value for name, value in read.items() if name.startswith(("SBATCH_", "MINI_R1_", "HF_"))}
    assert set_here["MINI_R1_RUNTIME"] == "venv"
    assert cluster.found("site file", **set_here).status == "ok"


# --- the site file ---


def test_windows_line_ends_are_named_and_stop_no_other_check(cluster: Cluster) -> None:
    (cluster.kit / "slurm/site.env").write_bytes(b"export MINI_R1_RUNTIME=venv\r\nexport SBATCH_PARTITION=priv\r\n")
    report = cluster.report(MINI_R1_RUNTIME="venv\r", SBATCH_PARTITION="priv\r")
    assert [finding.check for finding in report.findings if finding.status == "fail"] == ["site file"]
    assert is_failure(report.findings[0], "recipe")
    for words in ("slurm/site.env has Windows line ends", "MINI_R1_RUNTIME, SBATCH_PARTITION in this shell"):
        assert words in report.findings[0].detail
    assert "sed -i 's/\\r$//' slurm/site.env" in report.findings[0].fix
    (cluster.kit / "slurm/site.env").unlink()
    assert is_failure(cluster.found("site file", SBATCH_QOS="high\r"), "recipe")


def test_an_empty_partition_is_what_sbatch_refuses(cluster: Cluster) -> None:
    finding = cluster.found("site file", SBATCH_PARTITION="")
    assert is_failure(finding, "recipe")
    assert "unset SBATCH_PARTITION" in finding.fix
    assert "default" in cluster.found("partition", SBATCH_PARTITION="").detail
    assert cluster.found("site file", SBATCH_ACCOUNT="", SBATCH_RESERVATION="").status == "ok"


def test_a_tilde_within_quotes_is_told(cluster: Cluster) -> None:
    for variable in ("MINI_R1_VENV", "MINI_R1_MOUNTS", "HF_HOME"):
        finding = cluster.found("site file", **{variable: "~/here"})
        assert is_failure(finding, "recipe"), variable
        assert variable in finding.detail


# --- model, data, cache, run directory ---


def cached(home: Path, repository: str, **contents: str) -> None:
    """A repository in the hub's cache, as the hub's library leaves it."""
    folder = home / "hub" / repository
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    for name, text in contents.items():
        file = folder / "snapshots" / ("0" * 40) / name.replace("__", "/").replace("_DOT_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.fixture
def on_hub(small_recipe: Callable[..., Path]) -> Path:
    return small_recipe(
        "hub", model_name_or_path="a/model", dataset_id_or_path="a/rows", tokenizer_name_or_path="a/words"
    )


def test_what_is_not_in_the_cache_is_told_with_prefetch(cluster: Cluster, on_hub: Path) -> None:
    for check in ("model", "data", "cache"):
        finding = cluster.found(check, on_hub, HF_HOME=str(cluster.disk / "hf"))
        assert is_failure(finding, "recipe"), finding
        assert "mini-r1 prefetch RECIPE" in finding.fix
        assert "HF_HUB_OFFLINE=0" in finding.fix
        told = cluster.found(check, on_hub, HF_HOME=str(cluster.disk / "hf"), HF_HUB_OFFLINE="1")
        assert is_failure(told, "recipe")
        assert "HF_HUB_OFFLINE=0" not in told.fix


def test_what_is_whole_in_a_shared_cache_is_ok(cluster: Cluster, on_hub: Path) -> None:
    home = cluster.disk / "hf"
    cached(home, "models--a--model", config_DOT_json="{}", model_DOT_safetensors="")
    cached(home, "datasets--a--rows", data__x_DOT_parquet="")
    cached(home, "models--a--words", tokenizer_config_DOT_json="{}")
    told = statuses(cluster.report(on_hub, HF_HOME=str(home)))
    assert (told["model"], told["data"], told["cache"]) == ("ok", "ok", "ok")
    cluster.mount("ext4", home)
    told = statuses(cluster.report(on_hub, HF_HOME=str(home)))
    assert (told["model"], told["data"], told["cache"]) == ("ok", "ok", "warn")
    cluster.mount("tmpfs", home)
    assert is_failure(cluster.found("cache", on_hub, HF_HOME=str(home)), "recipe")


def test_a_container_sees_the_cache_only_where_it_is_mounted(cluster: Cluster, on_hub: Path, tmp_path: Path) -> None:
    cached(cluster.disk / "hf", "models--a--words", tokenizer_config_DOT_json="{}")
    pyxis = {"MINI_R1_RUNTIME": "pyxis"}
    home = str(cluster.disk / "hf")
    assert cluster.found("cache", on_hub, **pyxis, HF_HOME=home).status == "ok"
    assert cluster.found("cache", on_hub, **pyxis, HF_HUB_OFFLINE="0").status == "ok"  # where it is without HF_HOME
    elsewhere = {"HF_HOME": str(cluster.disk / "other"), "HF_HUB_CACHE": f"{home}/hub"}
    finding = cluster.found("cache", on_hub, **pyxis, **elsewhere)
    assert is_failure(finding, "recipe")
    assert "is not mounted in the container" in finding.detail
    assert cluster.found("cache", on_hub, **pyxis, **elsewhere, MINI_R1_MOUNTS=home).status == "ok"
    assert cluster.found("cache", on_hub, **pyxis, **elsewhere, MINI_R1_MOUNTS=f"{home}:/hf").status == "fail"


def test_a_model_in_a_folder_is_where_the_nodes_and_a_container_see_it(
    cluster: Cluster, small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("")
    recipe = small_recipe(model_name_or_path=str(folder))
    assert cluster.found("model", recipe).status == "ok"
    assert is_failure(cluster.found("model", recipe, MINI_R1_RUNTIME="apptainer"), "recipe")
    assert cluster.found("model", recipe, MINI_R1_RUNTIME="apptainer", MINI_R1_MOUNTS=str(folder)).status == "ok"
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
    assert is_failure(cluster.found("run directory", away, MINI_R1_RUNTIME="pyxis"), "recipe")
    mounted = {"MINI_R1_RUNTIME": "pyxis", "MINI_R1_MOUNTS": f"{tmp_path}:{tmp_path}:ro"}
    finding = cluster.found("run directory", away, **mounted)
    assert is_failure(finding, "recipe")
    assert "is not mounted to be written in the container" in finding.detail
    mounted["MINI_R1_MOUNTS"] = f"{tmp_path}:{tmp_path}:rw"
    assert cluster.found("run directory", away, **mounted).status == "ok"
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "thesis.tex").write_text("")
    assert "is not empty and holds no run" in cluster.found("run directory", away).detail


# --- the command ---


def test_the_command_needs_neither_torch_nor_a_gpu_and_says_so_in_json(
    mini_r1: Kit, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*os.environ]:
        if name.startswith(("SBATCH_", "MINI_R1_", "SLURM_")):
            monkeypatch.delenv(name)
    for name, value in {**cluster.environment, "PATH": f"{cluster.bin}:{os.environ['PATH']}"}.items():
        monkeypatch.setenv(name, value)
    done = mini_r1("doctor", "demo-cpu", "--login", "--json", cwd=cluster.kit)
    told = json.loads(done.stdout)
    assert [finding["check"] for finding in told["findings"]] == list(CHECKS)
    assert done.returncode == told["exit_code"]
    done = mini_r1("doctor", "--login", "--script", "slurm/train_4xh100.sh", cwd=cluster.kit)
    assert "Slurm would take slurm/train_4xh100.sh" in " ".join(done.stdout.replace("│", " ").split())
    code = "import sys, mini_r1.doctor.login_checks; print(*{'torch', 'transformers', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "\n"


def test_the_exit_code_tells_whose_fault_it_is(mini_r1: Kit, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{cluster.bin}:{os.environ['PATH']}")
    monkeypatch.setenv("MINI_R1_RUNTIME", "venv")
    monkeypatch.setenv("SBATCH_PARTITION", "nope")
    assert mini_r1("doctor", "--login", cwd=cluster.kit).returncode == 78
    cluster.program("scontrol", DOWN, code=1)
    monkeypatch.setenv("MINI_R1_RUNTIME", "apptainer")
    cluster.program("apptainer", "apptainer version 1.3.4\n")
    (cluster.kit / "mini-r1.sif").write_bytes(SIF)
    monkeypatch.setenv("MINI_R1_IMAGE", "docker://me/mini-r1")
    script = cluster.script
    script.rename(cluster.kit / "elsewhere.sh")  # else what the kit is on here would count
    assert mini_r1("doctor", "--login", cwd=cluster.kit).returncode == 150


@pytest.mark.parametrize(
    ("options", "said"),
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
def test_options_that_do_not_go_together_are_a_sentence(mini_r1: Kit, options: list[str], said: str) -> None:
    done = mini_r1("doctor", *options)
    assert done.returncode == 78
    assert said in done.stderr


# --- documentation ---


def test_the_documentation_tells_every_check_and_no_other() -> None:
    _, _, page = (REPO / "docs" / "doctor.md").read_text().partition("## On a login node")
    rows = [row.split("|")[1].strip() for row in page.splitlines() if row.startswith("| ")]
    assert [name for row in rows for name in row.split(", ")] == ["Check", "---", *CHECKS]
