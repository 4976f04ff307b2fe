"""A finished run without its training, and the stand-in of the hub that it is published to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mini_r1.errors import KitError
from mini_r1.hub import publish as publishing
from mini_r1.run.files import write_json
from mini_r1.run.manifest import MANIFEST, seal
from mini_r1.run.run_dir import RunDir

from tests.hub_upload import WritableHub

TOKEN = "hf_plantedPLANTEDplantedPLANTED00"
"""Looks like a token, and must not be found in any output."""
COMMIT = "c" * 40
"""The commit of a base that is on the hub."""

Run = Callable[..., RunDir]
progress: list[str] = []
"""What `publish` reported of its progress in this test."""
waited: list[float] = []
"""The seconds that it would have waited between two attempts."""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    progress.clear()
    waited.clear()
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=waited.append))


def publish(
    run: RunDir, repo: str = "anna/first", wanted: str | None = None, *, public: bool = False
) -> publishing.PublishPlan:
    """Publish without waiting between two attempts."""
    return publishing.publish(run.path, repo, wanted, public=public, report=progress.append)


def refusal(run: RunDir, repo: str = "anna/first", wanted: str | None = None, **options: Any) -> KitError:
    """Return the error that `publish` raises."""
    with pytest.raises(KitError) as caught:
        publish(run, repo, wanted, **options)
    return caught.value


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    """The stand-in, with this process's huggingface_hub pointed at it, and Anna's token in the environment."""
    from huggingface_hub import constants, file_download

    with WritableHub({TOKEN: "anna"}, readers=("hf_reads",)) as serving:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr(constants, "ENDPOINT", serving.address)
        template = serving.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_ENDPOINT", serving.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield serving
        assert serving.leaks == []


@pytest.fixture
def made_run(untrained: Path, tmp_path: Path) -> Run:
    """Write a run directory with snapshots of different weights; keyword arguments are keys of its recipe."""

    def write(steps: tuple[int, ...] = (2, 4, 6), name: str = "first", **recipe: Any) -> RunDir:
        from safetensors.torch import load_file, save_file

        run = RunDir(tmp_path / name)
        run.path.mkdir()
        values = {"model_name_or_path": "builtin:demo", "dataset_id_or_path": "generated", "max_steps": 6, **recipe}
        run.recipe_file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))
        data = {"kind": "generated", "revision": None, "train_rows": 60, "held_out_rows": 40, "split_by": "key"}
        attempt = {"attempt": 1, "versions": {"torch": "2.5.1"}, "devices": ["cpu x 2"], "model": {"revision": COMMIT}}
        write_json(run.run_file, {"run_id": f"id-of-{name}", "data": data, "attempts": [attempt]})
        (run.attempts / "1").mkdir(parents=True)
        rows = [{"step": step, "loss": 0.5, "reward": step / 10} for step in range(1, 7)]
        (run.attempts / "1" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run.attempts / "1" / "completions.jsonl").write_text('{"step": 1, "completion": "of a host"}\n')
        run.tensorboard.mkdir()
        (run.tensorboard / "events.out.tfevents.1").write_bytes(b"events")
        for step in steps:
            scratch = run.snapshots / f".step-{step}"
            shutil.copytree(untrained, scratch)
            tensors = {key: tensor + step / 1000 for key, tensor in load_file(untrained / "model.safetensors").items()}
            save_file(tensors, scratch / "model.safetensors", {"format": "pt"})
            seal(scratch, run.snapshots / f"step-{step}", run_id=run.run_id)
        return run

    return write


def evaluation(run: RunDir, step: int, sampled: float, name: str | None = None, **values: Any) -> None:
    """Write the file that `mini-r1 evaluate` would."""
    run.evaluation.mkdir(exist_ok=True)
    figures = {
        "problems": 40,
        "samples": 4,
        "temperature": 0.9,
        "greedy": 0.5,
        "greedy_ci95": [0.4, 0.6],
        "sampled": sampled,
        "ci95": [sampled - 0.1, sampled + 0.1],
        "provenance": {"source": str(run.path), "snapshot": f"{run.path}/snapshots/step-{step}"},
    }
    write_json(run.evaluation / (name or f"step-{step}.json"), {**figures, **values})


def resave(run: RunDir, step: int, **files: bytes) -> None:
    """Save a snapshot again with other files, with `__` for `.` in their names."""
    final = run.snapshots / f"step-{step}"
    scratch = final.rename(run.snapshots / f".step-{step}")
    (scratch / MANIFEST).unlink()
    for name, body in files.items():
        (scratch / name.replace("__", ".")).write_bytes(body)
    seal(scratch, final, run_id=run.run_id)
