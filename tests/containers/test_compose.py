"""docker-compose.yml: what it promises, as text where that is enough, and brought up for real with the CPU profile."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.containers import engine
from tests.containers.test_image import SMALL

FILE = engine.REPO / "docker-compose.yml"
FROM_THE_DOCKERFILE = {"CUDA_BASE", "PYTHON_BASE", "NVCC", "PYTHON_PREFERENCE"}
"""Named in .env.example together, and explained in the Dockerfile."""


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services, with anchors and merges resolved and no variable replaced."""
    loaded = yaml.safe_load(FILE.read_text())
    assert isinstance(loaded, dict)
    return dict(loaded["services"])


# ---- as text ---------------------------------------------------------------------------------------------------------


def test_every_service_has_a_profile_so_that_the_cpu_profile_starts_no_other(services: dict[str, Any]) -> None:
    assert {name: service["profiles"] for name, service in services.items()} == {
        "gpu-check": ["gpu"], "train": ["gpu"], "tensorboard": ["gpu"], "demo": ["cpu"], "tensorboard-cpu": ["cpu"],
    }  # fmt: skip
    assert "COMPOSE_PROFILES=gpu" in (engine.REPO / ".env").read_text().splitlines()


def test_every_service_is_confined_and_none_is_restarted(services: dict[str, Any]) -> None:
    assert services
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "no", name
        assert "privileged" not in service, name
        assert not service.get("init"), f"{name}: tini is in the image already"


def test_training_may_save_before_it_is_killed_and_is_watched(services: dict[str, Any]) -> None:
    for name in ("train", "demo"):
        assert services[name]["stop_grace_period"].endswith("m"), name
        assert "health" in services[name]["healthcheck"]["test"], name
    assert services["train"]["deploy"]["resources"]["reservations"]["devices"][0]["count"] == "all"


def test_tensorboard_binds_to_localhost_and_cannot_write_runs(services: dict[str, Any]) -> None:
    for name in ("tensorboard", "tensorboard-cpu"):
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])
        assert all(volume.endswith(":ro") for volume in services[name]["volumes"])
        assert "secrets" not in services[name]


def test_every_setting_is_explained_with_its_default() -> None:
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", FILE.read_text()))
    explained = (engine.REPO / ".env.example").read_text()
    assert len(defaults) > 8
    for name, default in defaults.items():
        assert f"#{name}={default}\n" in explained, name
    passed_on = re.findall(r"^ {4,6}([A-Z_]+):$", FILE.read_text(), re.MULTILINE)
    assert {"HF_TOKEN", "FLASH_ATTN"} <= set(passed_on)
    for name in passed_on:
        assert re.search(rf"\b{name}\b", explained), name
    known = {*defaults, *passed_on, *FROM_THE_DOCKERFILE}
    assert set(re.findall(r"^#([A-Z_]+)=", explained, re.MULTILINE)) <= known


@pytest.mark.real
@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_compose_accepts_the_file(profile: str) -> None:
    if shutil.which("docker") is None or engine.docker("compose", "version").returncode != 0:
        pytest.skip("no docker compose here")
    done = engine.docker("compose", f"--profile={profile}", "config", "--quiet")  # asks no engine
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.mark.parametrize(
    ("files", "code", "words"),
    [
        ({"version": "Linux version 6.8"}, 78, "docker compose --profile cpu up"),
        ({"version": "Linux version 5.15.167.4-microsoft-standard-WSL2"}, 0, "WSL"),
        ({"version": "Linux version 6.8", "driver/nvidia/version": "NVRM 550.54"}, 0, "NVIDIA Container Toolkit"),
    ],
)
def test_a_missing_gpu_is_explained(files: dict[str, str], code: int, words: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    script = engine.REPO / "docker" / "gpu-check.sh"
    done = subprocess.run(["sh", script, tmp_path], capture_output=True, text=True)
    assert done.returncode == code
    assert words in done.stdout + done.stderr


# ---- for real --------------------------------------------------------------------------------------------------------


class Compose:
    """A separate project, with the images under test and settings of the test."""

    def __init__(self, project: str, override: Path, **settings: str) -> None:
        self._command = ["docker", "compose", "-p", project, "-f", FILE, "-f", override]
        self.settings = settings

    def __call__(self, *arguments: str, profile: str = "cpu", timeout: float = 600) -> subprocess.CompletedProcess[str]:
        command = [str(part) for part in (*self._command, f"--profile={profile}", *arguments)]
        # The user's own settings, such as MINI_R1_CACHE, are not the test's.
        without_settings = {name: value for name, value in os.environ.items() if not name.startswith("MINI_R1_")}
        return subprocess.run(
            command,
            cwd=engine.REPO,
            env={**without_settings, **self.settings},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def ok(self, *arguments: str) -> str:
        """The output of a command that must work."""
        done = self(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def container(self, service: str) -> str:
        """The container of a service."""
        return self.ok("ps", "--all", "--quiet", service).strip()

    def inspect(self, service: str, template: str) -> str:
        """One thing that the engine knows of a service's container."""
        return engine.out("inspect", f"--format={template}", self.container(service))

    def logs(self) -> str:
        """What all of them said."""
        return self("logs", "--no-color").stdout


@pytest.fixture
def compose(cpu_image: str, free_port: int, tmp_path: Path) -> Iterator[Compose]:
    """The project with a demo of a test's size; removed with its volumes."""
    override = tmp_path / "small.yml"
    command = ["demo", *SMALL, "--set", "max_steps=40", "--set", "save_steps=40", "--set", "logging_steps=1"]
    override.write_text(yaml.safe_dump({"services": {"demo": {"command": command}}}))
    # The image for GPUs cannot be built in a test: the CPU image is its stand-in where no GPU is asked for.
    settings = {"MINI_R1_CPU_IMAGE": cpu_image, "MINI_R1_IMAGE": cpu_image, "TENSORBOARD_PORT": str(free_port)}
    made = Compose("mini-r1-under-test", override, **settings)
    try:
        yield made
    finally:
        made("--profile=gpu", "down", "--volumes", "--timeout=10")  # both profiles


@pytest.fixture
def free_port() -> int:
    """Return a free TCP port."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.real
def test_the_demo_starts_appears_in_tensorboard_saves_and_resumes(
    compose: Compose, free_port: int, tmp_path: Path
) -> None:
    compose.ok("up", "--detach", "--no-build")
    engine.wait_for_step(compose.container("demo"), 2)
    # Still there when TensorBoard, which reads every 15 s, has seen it. `pause` fails on a busy machine at times.
    compose.ok("exec", "demo", "sh", "-c", "kill -STOP -1")
    assert compose.ok("exec", "demo", "mini-r1", "health", "runs").startswith("runs/demo-cpu runs")
    compose.ok("up", "--detach", "--no-build", "--no-deps", "--wait", "--wait-timeout=300", "tensorboard-cpu")
    _until(lambda: "demo-cpu" in _ask(free_port, "runs"), "TensorBoard has the run", compose)
    _until(lambda: "rewards/reward" in _ask(free_port, "plugin/scalars/tags"), "and its curve", compose)

    compose.ok("exec", "demo", "sh", "-c", "kill -CONT -1")
    compose.ok("stop")
    assert compose.inspect("demo", "{{.State.ExitCode}}") == "143", compose.logs()
    assert "saved: the same command resumes there" in compose.logs()
    kept = compose.ok("run", "--rm", "--no-deps", "--entrypoint=sh", "demo", "-c", "ls runs/demo-cpu/checkpoints")
    assert re.search(r"^step-\d+$", kept, re.MULTILINE), kept

    planned = compose.ok("run", "--rm", "demo", "plan", "mini-r1-3b", "--json")
    assert json.loads(planned)["devices_from"]
    assert "no NVIDIA driver" in compose.ok("run", "--rm", "demo", "doctor")

    compose.ok("up", "--detach", "--no-build")
    assert engine.wait_for_end(compose.container("demo")) == 0, compose.logs()
    assert "resuming after step" in compose.logs()
    measured = compose.ok("run", "--rm", "demo", "evaluate", "runs/demo-cpu", "--limit", "4", "--json")
    assert json.loads(measured)["problems"] == 4
    compose.ok("run", "--rm", "demo", "report", "runs/demo-cpu")
    compose.ok("cp", "demo:/workspace/runs/demo-cpu/report.html", str(tmp_path / "report.html"))
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.real
def test_without_a_gpu_up_reports_it_and_starts_nothing(compose: Compose) -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has an NVIDIA driver")
    done = compose("up", "--no-build", profile="gpu")
    assert done.returncode == 1
    assert "docker compose --profile cpu up" in done.stdout + done.stderr
    states = compose("ps", "--all", "--format={{.Service}} {{.State}} {{.ExitCode}}", profile="gpu").stdout.splitlines()
    assert sorted(states) == ["gpu-check exited 78", "tensorboard created 0", "train created 0"]


@pytest.mark.real
def test_only_the_kit_sees_a_token_in_a_file(compose: Compose, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("hf_fromAfile")
    secret.chmod(0o644)
    compose.settings["HF_TOKEN_FILE"] = str(secret)
    script = "import huggingface_hub; print(huggingface_hub.get_token())"
    shown = compose.ok("run", "--rm", "--no-deps", "--entrypoint=python", "demo", "-c", script)
    assert shown.strip() == "hf_fromAfile"
    assert "hf_fromAfile" not in compose.ok("config")
    compose.settings["HF_TOKEN_FILE"] = "/dev/null"
    shown = compose.ok("run", "--rm", "--no-deps", "--entrypoint=python", "demo", "-c", script)
    assert shown.strip() == "None"


# ---- helpers ---------------------------------------------------------------------------------------------------------


def _ask(port: int, what: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/{what}", timeout=10) as reply:
            return str(reply.read().decode())
    except OSError:
        return ""


def _until(condition: Callable[[], bool], what: str, compose: Compose, seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s\n{compose.logs()}"
        time.sleep(1)
