"""A real cluster for all tests of this folder, and a checkout of the batch scripts to submit from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mini_r1.run.run_dir import RunDir

from tests.conftest import ASSETS, REPO
from tests.slurm.cluster import Job, Slurm, a_cluster, why_none


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """The cluster; skips where there can be none."""
    reason = why_none()
    if reason is not None:
        pytest.skip(reason)
    with a_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


class Checkout:
    """The project's slurm/ folder with a site file, below a folder whose name has a space and more than ASCII.

    Args:
        folder: where it is made.
        venv: the environment that jobs run in.
    """

    def __init__(self, folder: Path, venv: Path = REPO / ".venv") -> None:
        self.folder = folder / "my k\u00eft"
        shutil.copytree(REPO / "slurm", self.folder / "slurm", ignore=shutil.ignore_patterns("site.env"))
        self.site(MINI_R1_RUNTIME="venv", MINI_R1_VENV=str(venv))

    def site(self, **variables: str) -> None:
        """Write slurm/site.env; the work of fake GPUs runs on the CPU."""
        always = {"MINI_R1_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        lines = [f"export {name}='{value}'\n" for name, value in {**always, **variables}.items()]
        (self.folder / "slurm" / "site.env").write_text("".join(lines))

    def run(self, name: str) -> RunDir:
        """A run directory in the checkout."""
        return RunDir(self.folder / "runs" / name)

    def write_recipe(self, name: str, **values: Any) -> Path:
        """A recipe in the checkout: some cheap steps on real rows."""
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps({**CHEAP, **values}))  # JSON is YAML
        return path


class Kit(Checkout):
    """A checkout to submit from.

    Args:
        folder: where it is made.
        cluster: that its jobs go to.
        venv: the environment that jobs run in.
    """

    def __init__(self, folder: Path, cluster: Slurm, venv: Path) -> None:
        super().__init__(folder, venv)
        self.slurm = cluster

    def submit(self, *arguments: str | Path, **environment: str) -> Job:
        """`sbatch ARGUMENTS` in the checkout."""
        (job,) = self.submit_array(*arguments, rows=(), **environment)
        return job

    def submit_array(self, *arguments: str | Path, rows: tuple[int, ...], **environment: str) -> list[Job]:
        """`sbatch ARGUMENTS` of an array with these tasks; without any, of one job."""
        said = self.slurm.run("sbatch", "--parsable", *arguments, cwd=self.folder, **environment)
        number = said.strip()
        if not rows:
            return [Job(self.slurm, number, self._log(number))]
        return [Job(self.slurm, f"{number}_{row}", self._log(f"{number}_{row}")) for row in rows]

    def _log(self, number: str) -> Path:
        """As the scripts' --output names it, once the job has said anything."""
        found = self.slurm.run("scontrol", "show", "job", number.partition("_")[0], "--oneliner")
        name = next(word.partition("=")[2] for word in found.split() if word.startswith("JobName="))
        return self.folder / f"{name}-{number}.log"


def selected(request: pytest.FixtureRequest, *parameters: str) -> list[tuple[Any, ...]]:
    """The values of test parameters of this file that are in this run, each combination once, in their order."""
    calls = [
        item.callspec.params
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    return list(dict.fromkeys(tuple(call[name] for name in parameters) for call in calls if {*parameters} <= {*call}))


def a_program(path: Path, text: str) -> None:
    """A shell script that can be executed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


CHEAP = {
    "dataset_id_or_path": str(ASSETS / "countdown_rows.jsonl"), "test_fraction": 0.25, "max_steps": 30,
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_generations": 4, "max_prompt_length": 64,
    "max_completion_length": 24, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "beta": 0.01,
    "temperature": 1.0, "save_steps": 1000, "seed": 3,
    # An untrained model is never right: random rewards make the groups differ.
    "rewards": {"format": 1.0, "equation": 1.0, "random": 1.0},
}  # fmt: skip


@pytest.fixture
def kit(slurm: Slurm, tmp_path: Path) -> Kit:
    """A checkout of this test's own."""
    return Kit(tmp_path, slurm, REPO / ".venv")


@pytest.fixture(scope="session")
def make_kit(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Kit]:
    """Checkouts that several tests share."""
    return lambda name, venv: Kit(tmp_path_factory.mktemp(name), slurm, venv)
