"""The images `test` and `cpu`, really built and run under a hardened cluster's constraints."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import engine
from tests.containers.conftest import PLANTED

pytestmark = pytest.mark.real

SMALL = tuple(
    part
    for setting in (
        "warm_start.traces=256", "warm_start.steps=4", "warm_start.min_accuracy=0", "dataset_rows=200",
        "per_device_train_batch_size=2", "gradient_accumulation_steps=1", "warmup_steps=0", "max_completion_length=24",
    )
    for part in ("--set", setting)
)  # fmt: skip
"""The demo's recipe at a size for tests: nothing is learned, everything is called."""
CACHE = f"--volume={engine.CACHE}:/cache"
AS_SOMEBODY = ("--network=none", engine.SOMEBODY, *engine.CONFINED)


# ---- test --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chosen",
    [
        ("-k 'rewards or expression or parsed or roles'", 300),
        pytest.param(("", 1500), marks=pytest.mark.exhaustive),  # .github/workflows/ci.yml runs them too
    ],
    ids=["rewards and roles", "all"],
)
def test_the_small_images_own_tests_pass_in_it_without_a_network(test_image: str, chosen: tuple[str, int]) -> None:
    done = engine.docker("run", "--rm", *AS_SOMEBODY, f"--env=PYTEST_ADDOPTS={chosen[0]}", test_image)
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout[-300:]
    assert int(passed.group(1)) > chosen[1]


def test_the_small_image_has_no_torch_and_is_below_500_mb(test_image: str) -> None:
    done = engine.docker("run", "--rm", "--entrypoint=python", test_image, "-c", "import torch")
    assert "ModuleNotFoundError" in done.stderr
    assert int(engine.out("image", "inspect", "--format={{.Size}}", test_image)) < 500e6


@pytest.fixture(scope="module")
def changed(test_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The target `test` built again from a changed source, with tokens next to it: image, and output of the build."""
    context = engine.changed_sources(tmp_path_factory.mktemp("changed"))
    with (context / "app" / "mini_r1" / "errors.py").open("a") as file:
        file.write("# changed\n")
    for name in (".env", "secrets/hf_token", "runs/note.txt", "token.txt", "app/mini_r1/__pycache__/x.pyc"):
        file_with_token = context / name
        file_with_token.parent.mkdir(parents=True, exist_ok=True)
        file_with_token.write_text(f"HF_TOKEN={PLANTED}\n")
    image = "mini-r1-under-test:changed"
    try:
        done = engine.build("test", image, context, HF_TOKEN=PLANTED)
        assert done.returncode == 0, done.stderr[-2000:]
        yield image, done.stdout + done.stderr
    finally:
        engine.docker("image", "rm", "--force", image)


def test_a_change_of_the_source_leaves_the_environments_layer_as_it_is(
    test_image: str, changed: tuple[str, str]
) -> None:
    before, after = engine.layers(test_image), engine.layers(changed[0])
    assert before != after
    environment = next(i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new)
    assert len(before) - environment <= 2  # the source and the tests; the environment is below them


# ---- cpu: confinement ------------------------------------------------------------------------------------------------


def test_the_image_runs_as_an_unprivileged_user_and_has_labels(cpu_image: str) -> None:
    config = json.loads(engine.out("image", "inspect", "--format={{json .Config}}", cpu_image))
    assert config["User"] == "1000:0"
    assert config["Entrypoint"] == ["/usr/bin/tini", "--", "mini-r1"]
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels["licenses"] == "Apache-2.0"
    assert {"title", "description", "revision"} <= set(labels)


@pytest.mark.parametrize("user", ["1000:0", "12345:23456", "4242:0"])
def test_any_user_has_a_name_and_can_write_where_the_kit_writes_and_nowhere_else(cpu_image: str, user: str) -> None:
    script = """
import getpass, os, pathlib
assert os.getuid() != 0 and getpass.getuser() == "mini-r1"
variables = ("HOME", "HF_HOME", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT", "MPLCONFIGDIR")
for place in [*map(os.environ.get, variables), "runs/x", "/tmp/x"]:
    pathlib.Path(place).mkdir(parents=True, exist_ok=True)
    pathlib.Path(place, "file").write_text("x")
for place in ("/opt/venv", "/workspace", "/usr/local/bin"):
    try:
        pathlib.Path(place, "file").write_text("x")
    except OSError:
        continue
    raise SystemExit(f"{place} can be written")
"""
    mounts = ("--volume=/cache", "--volume=/workspace/runs")
    done = engine.docker(
        "run", "--rm", f"--user={user}", *engine.CONFINED, *mounts, "--entrypoint=python", cpu_image, "-c", script
    )
    assert done.returncode == 0, done.stderr


def test_without_a_command_the_image_prints_help(cpu_image: str) -> None:
    done = engine.docker("run", "--rm", *engine.CONFINED, cpu_image)
    assert done.returncode == 0
    assert "launch" in done.stdout


# ---- cpu: the path ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def launched(cpu_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """One step of the demo with a revision and with tokens: what it printed, and the volume with its run."""
    secret = tmp_path_factory.mktemp("secret") / "hf_token"
    secret.write_text(PLANTED)
    secret.chmod(0o644)
    with engine.volume() as runs:
        options = (
            f"--volume={runs}:/workspace/runs", CACHE, f"--env=WANDB_API_KEY={PLANTED}", f"--env=HF_TOKEN={PLANTED}",
            f"--volume={secret}:/run/secrets/hf_token:ro", "--env=HF_TOKEN_PATH=/run/secrets/hf_token",
            "--env=MINI_R1_REVISION=abc123",
        )  # fmt: skip
        done = engine.docker(
            "run", "--rm", *AS_SOMEBODY, *options, cpu_image,
            "launch", "demo-cpu", *SMALL, "--set", "max_steps=1",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        yield done.stdout + done.stderr, runs


def test_a_run_in_it_is_measured_and_shown_and_plans_are_made(cpu_image: str, launched: tuple[str, str]) -> None:
    mounts = (f"--volume={launched[1]}:/workspace/runs", CACHE)

    def kit(*arguments: str) -> subprocess.CompletedProcess[str]:
        return engine.docker("run", "--rm", *AS_SOMEBODY, *mounts, cpu_image, *arguments)

    assert kit("health", "runs").returncode == 0
    measured = kit("evaluate", "runs/demo-cpu", "--limit", "4", "--json")
    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)["problems"] == 4
    shown = kit("report", "runs/demo-cpu", "--markdown", "runs/pictures", "--json")
    assert shown.returncode == 0, shown.stderr
    assert "Matplotlib" not in shown.stderr  # it complains where it cannot keep its list of fonts
    report = json.loads(shown.stdout)
    assert report["runs"][0]["held_out"]["problems"] == 4
    assert report["samples"] > 0
    assert any(name.endswith(".svg") for name in report["markdown"])
    assert "step 1 | " in kit("samples", "runs/demo-cpu", "--limit", "1").stdout
    assert json.loads(kit("runs", "--json").stdout)[0]["state"] == "finished"
    plan = kit("plan", "mini-r1-3b", "--json")
    assert plan.returncode == 0, plan.stderr
    assert kit("plan", "mini-r1-3b", "--gpus", "1", "--gpu-memory", "8").returncode == 78


@pytest.mark.exhaustive  # smaller in test_compose.py and test_pods.py
def test_the_quick_demo_runs_in_it_at_its_own_size(cpu_image: str) -> None:
    writable = ("--tmpfs=/cache", "--tmpfs=/workspace/runs")
    done = engine.docker("run", "--rm", *AS_SOMEBODY, *writable, cpu_image, "demo", "--quick")
    assert done.returncode == 0, done.stderr
    assert "success, sampled" in done.stdout


def test_a_run_records_the_revision_that_its_image_was_made_from(cpu_image: str, launched: tuple[str, str]) -> None:
    _, runs = launched
    run = f"--volume={runs}:/runs:ro"
    shown = engine.out("run", "--rm", run, "--entrypoint=cat", cpu_image, "/runs/demo-cpu/run.json")
    assert json.loads(shown)["attempts"][0]["code_revision"] == "abc123"


@pytest.mark.exhaustive  # the same with compose and in a pod, in test_compose.py and test_pods.py
def test_docker_stop_saves_and_the_next_start_resumes(cpu_image: str, runs: str) -> None:
    arguments = (
        "--network=none", *engine.CONFINED, f"--volume={runs}:/workspace/runs", CACHE, cpu_image,
        "train", "demo-cpu", *SMALL, "--set", "max_steps=40", "--set", "save_steps=40",
    )  # fmt: skip
    with engine.container(*arguments) as name:
        engine.wait_for_step(name, 2)
        engine.out("stop", "--time=120", name)
        assert engine.out("inspect", "--format={{.State.ExitCode}}", name) == "143", engine.docker("logs", name).stderr
    done = engine.docker("run", "--rm", *arguments)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resuming after step [2-9]", done.stderr), done.stderr


# ---- cpu: bad input --------------------------------------------------------------------------------------------------


def test_a_full_disk_is_an_error_of_the_node(cpu_image: str) -> None:
    tmpfs = ("--driver=local", "--opt=type=tmpfs", "--opt=device=tmpfs", "--opt=o=size=600k,mode=1777")
    with engine.volume(*tmpfs) as small:
        done = engine.docker(
            "run", "--rm", *engine.CONFINED, f"--volume={small}:/workspace/runs", CACHE, cpu_image,
            "train", "demo-cpu", *SMALL, "--set", "max_steps=2",
        )  # fmt: skip
    assert done.returncode == 150, done.stderr
    assert "Free space on that disk" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unwritable_folder_of_the_host_is_reported(cpu_image: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir(mode=0o755)
    for command in (["train", "demo-cpu", *SMALL], ["launch", "demo-cpu", *SMALL]):
        mounts = (f"--volume={folder}:/workspace/runs", CACHE)
        done = engine.docker("run", "--rm", engine.SOMEBODY, *engine.CONFINED, *mounts, cpu_image, *command)
        assert done.returncode == 150, done.stderr
        assert "runs/demo-cpu" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_missing_gpu_is_reported_with_the_option_for_a_container(cpu_image: str) -> None:
    done = engine.docker("run", "--rm", *engine.CONFINED, cpu_image, "launch", "mini-r1-1.5b")
    assert done.returncode == 78
    assert "--gpus all" in done.stderr


def test_a_containers_default_shared_memory_is_measured_and_enough_on_a_cpu(cpu_image: str) -> None:
    done = engine.docker(
        "run", "--rm", "--network=none", *engine.CONFINED, "--env=MINI_R1_ACCELERATOR=cpu", cpu_image,
        "doctor", "mini-r1-1.5b", "--gpus", "4", "--json",
    )  # fmt: skip
    found = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    # NCCL alone needs more: weights go to vLLM through anonymous memory.
    assert found["shared memory"]["status"] == "ok"
    assert "of 0.06 GiB free" in found["shared memory"]["detail"]


def test_a_push_without_a_token_is_reported(cpu_image: str) -> None:
    done = engine.docker(
        "run", "--rm", *engine.CONFINED, cpu_image, "doctor", "demo-cpu", "--set", "push_to_hub=true", "--json"
    )
    assert done.returncode == 78
    found = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert "HF_TOKEN" in found["hub token"]["detail"]


# ---- secrets ---------------------------------------------------------------------------------------------------------


def test_a_planted_token_is_in_no_layer_and_not_in_the_history(changed: tuple[str, str]) -> None:
    image, said = changed
    assert PLANTED not in said
    assert PLANTED not in engine.out("history", "--no-trunc", image)
    names, found = _in_layers(image, PLANTED.encode())
    assert not found
    assert "src/app/mini_r1/errors.py" in names  # layers were really read


def test_a_token_is_not_in_the_log_nor_in_the_run_directory(cpu_image: str, launched: tuple[str, str]) -> None:
    said, runs = launched
    assert PLANTED not in said
    search = f"--volume={runs}:/runs:ro"
    found = engine.docker("run", "--rm", search, "--entrypoint=grep", cpu_image, "-rlaF", PLANTED, "/runs")
    assert found.returncode == 1, found.stdout  # grep's word for nothing
    there = engine.out("run", "--rm", search, "--entrypoint=grep", cpu_image, "-rlaF", "demo", "/runs")
    assert "recipe.yaml" in there


# ---- helpers ---------------------------------------------------------------------------------------------------------


def _in_layers(image: str, needle: bytes) -> tuple[set[str], list[str]]:
    """All names in an image's layers, and those whose content has the needle."""
    names: set[str] = set()
    found: list[str] = []
    saving = subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE)
    with tarfile.open(fileobj=saving.stdout, mode="r|") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None:
                continue
            data = content.read()
            if needle in data:
                found.append(member.name)
            for name, body in _members(data):
                names.add(name)
                if needle in body:
                    found.append(name)
    saving.wait()
    return names, found


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as layer:
            for member in layer:
                content = layer.extractfile(member) if member.isfile() else None
                yield member.name, content.read() if content else b""
    except tarfile.ReadError:
        return  # not a layer: the manifest, the configuration
