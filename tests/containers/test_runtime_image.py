"""The last stage of the image for GPUs, built on a stand-in for its base and for its packages, which are gigabytes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import engine

pytestmark = pytest.mark.real

IMAGE = "mini-r1-under-test:runtime"
PACKAGES = "libibverbs1 ibverbs-providers"


@pytest.fixture(scope="module")
def packages(images: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing in it, in place of the stage `runtime-environment`."""
    if not engine.local_bases():
        pytest.skip("on the real bases `make image` runs the same checks")
    folder = tmp_path_factory.mktemp("runtime-environment")
    (folder / "opt/python").mkdir(parents=True)
    (folder / "opt/venv/bin").mkdir(parents=True)
    (folder / "opt/venv/lib/python3.11/site-packages").mkdir(parents=True)
    (folder / "opt/venv/bin/python").symlink_to("/usr/bin/python3")
    (folder / "opt/venv/pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11\n")
    return folder


def build(packages: Path, context: Path = engine.REPO, nvcc: str = "") -> subprocess.CompletedProcess[str]:
    """Build the target `runtime` without the stage that installs the packages."""
    return engine.docker(
        "build", "--progress=plain", "--target=runtime", f"--tag={IMAGE}", f"--build-arg=NVCC={nvcc}",
        *(f"--build-arg={name}={engine.LOCAL_BASES['PYTHON_BASE']}" for name in ("PYTHON_BASE", "CUDA_BASE")),
        f"--build-context=runtime-environment={packages}", context, timeout=1800,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runtime_image(packages: Path) -> Iterator[str]:
    done = build(packages)
    assert done.returncode == 0, done.stderr[-4000:]
    yield IMAGE
    engine.docker("image", "rm", "--force", IMAGE)


def test_nccl_finds_the_library_of_infiniband_and_its_drivers(runtime_image: str) -> None:
    script = "import ctypes; ctypes.CDLL('libibverbs.so.1').ibv_get_device_list; ctypes.CDLL('libmlx5.so.1')"
    done = engine.docker("run", "--rm", engine.SOMEBODY, "--entrypoint=python", runtime_image, "-c", script)
    assert done.returncode == 0, done.stderr


@pytest.mark.exhaustive
def test_without_that_library_the_image_is_not_built(packages: Path, tmp_path: Path) -> None:
    context = engine.changed_sources(tmp_path)
    dockerfile = (context / "Dockerfile").read_text()
    assert dockerfile.count(PACKAGES) == 1
    (context / "Dockerfile").write_text(dockerfile.replace(PACKAGES, ""))
    done = build(packages, context)
    assert done.returncode != 0
    assert "libibverbs.so.1: cannot open shared object file" in done.stderr


@pytest.mark.exhaustive
def test_without_a_working_nvcc_the_image_is_not_built(packages: Path) -> None:
    done = build(packages, nvcc="hello")  # a package that has none
    assert done.returncode != 0
    assert "/usr/local/cuda/bin/nvcc" in done.stderr
