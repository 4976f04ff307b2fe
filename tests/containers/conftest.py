"""The images under test, built once; gone at the end, but for the layers that the engine caches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.containers import engine

TEST_IMAGE, CPU_IMAGE = "mini-r1-under-test:test", "mini-r1-under-test:cpu"
PLANTED = "hf_" + 5 * "PLANTED"
"""In the environment of every build, and in files next to the sources. In two parts, as images hold this file."""


@pytest.fixture(scope="session")
def images() -> Iterator[None]:
    """An engine that can build, with its bases."""
    reason = engine.why_none()
    if reason:
        pytest.skip(reason)
    engine.make_local_bases()
    yield
    engine.docker("image", "rm", "--force", TEST_IMAGE, CPU_IMAGE)
    engine.docker("volume", "rm", "--force", engine.CACHE)


def _built(target: str, tag: str) -> str:
    done = engine.build(target, tag, HF_TOKEN=PLANTED, HUGGING_FACE_HUB_TOKEN=PLANTED, WANDB_API_KEY=PLANTED)
    assert done.returncode == 0, done.stderr[-4000:]
    return tag


@pytest.fixture(scope="session")
def test_image(images: None) -> str:
    """The target `test`."""
    return _built("test", TEST_IMAGE)


@pytest.fixture(scope="session")
def cpu_image(images: None) -> str:
    """The target `cpu`."""
    return _built("cpu", CPU_IMAGE)


@pytest.fixture
def runs(cpu_image: str) -> Iterator[str]:
    """A fresh volume for run directories: its rights are the image's."""
    with engine.volume() as name:
        yield name
