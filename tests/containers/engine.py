"""The container engine of this machine, for tests: images, containers that are as confined as a cluster's, compose.

MINI_R1_BASE=local builds on the stand-ins of .ci/local-base, where no image registry can be reached; else on the
Dockerfile's own bases.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).parents[2]
LOCAL_BASES = {
    "PYTHON_BASE": "localhost/mini-r1-base:python",
    "CUDA_BASE": "localhost/mini-r1-base:cuda",
    "TORCH_CPU_INDEX": "",
}
CONFINED = (
    "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges",
    "--tmpfs=/tmp:mode=1777", "--tmpfs=/home/mini-r1:mode=1777,exec",
)  # fmt: skip
"""What a hardened cluster demands of a container, and what compose asks for too."""
CACHE = "mini-r1-under-test-cache"
"""A volume for the whole session: the demo's models of a test's size are made once."""
SOMEBODY = "--user=12345:23456"
"""A user and a group that no image knows."""


def why_none() -> str | None:
    """Why no image can be built here; None if one can."""
    if shutil.which("docker") is None:
        return "no container engine: docker is not on PATH: `.ci/install-engine` (Debian 12, root)"
    for needed in (["docker", "version"], ["docker", "buildx", "version"], ["docker", "compose", "version"]):
        done = subprocess.run(needed, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            return f"no container engine: `{' '.join(needed)}`: {said}"
    return None


def local_bases() -> bool:
    """Whether images are built on stand-ins for their bases."""
    return os.environ.get("MINI_R1_BASE") == "local"


def docker(*arguments: str | Path, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess[str]:
    """`docker ARGUMENTS` to its end."""
    command = ["docker", *map(str, arguments)]
    return subprocess.run(
        command, cwd=REPO, env={**os.environ, **environment}, capture_output=True, text=True, timeout=timeout
    )  # fmt: skip


def out(*arguments: str | Path) -> str:
    """The output of a docker command that must work."""
    done = docker(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def build(target: str, tag: str, context: Path = REPO, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build one target of the Dockerfile."""
    arguments = [f"--build-arg={key}={value}" for key, value in LOCAL_BASES.items()] if local_bases() else []
    return docker(
        "build", "--progress=plain", f"--target={target}", f"--tag={tag}", *arguments, context,
        timeout=1800, **environment,
    )  # fmt: skip


def changed_sources(folder: Path) -> Path:
    """A copy of the checkout, to change and to build from, without what is large and no build needs."""
    ignored = shutil.ignore_patterns(".git", ".venv*", "build", "runs", "__pycache__", ".*_cache", ".hypothesis")
    return Path(shutil.copytree(REPO, folder / "context", ignore=ignored))


def make_local_bases() -> None:
    """The stand-ins, where they are asked for."""
    if local_bases():
        subprocess.run([REPO / ".ci" / "local-base"], check=True, timeout=600)


def layers(image: str) -> list[str]:
    """Digests of an image's layers, from the lowest."""
    return out("image", "inspect", "--format={{range .RootFS.Layers}}{{println .}}{{end}}", image).split()


@contextmanager
def volume(*options: str) -> Iterator[str]:
    """Create a volume that lasts as long as the `with`."""
    name = f"mini-r1-test-{uuid.uuid4().hex[:8]}"
    out("volume", "create", *options, name)
    try:
        yield name
    finally:
        docker("volume", "rm", "--force", name)


@contextmanager
def container(*arguments: str | Path) -> Iterator[str]:
    """One that runs in the background, and is gone with the `with`, however it ended."""
    name = f"mini-r1-test-{uuid.uuid4().hex[:8]}"
    out("run", "--detach", f"--name={name}", *arguments)
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


_WAIT_FOR_STEP = """
import json, pathlib, sys, time
state = pathlib.Path("runs/demo-cpu/state.json")
while not state.exists() or json.loads(state.read_text()).get("step", 0) < int(sys.argv[1]):
    time.sleep(0.1)
"""


def wait_for_step(name: str, step: int, seconds: int = 300) -> None:
    """Wait until the demo's run in a container has reached a step. One process in the container polls.

    Raises:
        AssertionError: the container has exited, or it takes longer.
    """
    done = docker("exec", name, "timeout", str(seconds), "python", "-c", _WAIT_FOR_STEP, str(step))
    log = docker("logs", name).stderr
    assert done.returncode == 0, f"no step {step} within {seconds} s: {done.stderr}\n{log}"


def wait_for_end(name: str) -> int:
    """Wait for a container to exit, and return its exit code."""
    return int(out("wait", name))
