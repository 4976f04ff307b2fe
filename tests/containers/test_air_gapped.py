"""Fetched once into the cache's volume, then trained on without any network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ASSETS, rows
from tests.containers import engine
from tests.hub import Hub, Repo, files_of

pytestmark = pytest.mark.real

MODEL_COMMIT, DATA_COMMIT = "a" * 40, "b" * 40
TOKEN = "hf_" + 5 * "fetched"


def test_prefetch_into_a_volume_is_enough_for_a_run(
    cpu_image: str, runs: str, untrained: Path, small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    table = tmp_path / "table.parquet"
    pq.write_table(pa.Table.from_pylist(rows(ASSETS / "countdown_rows.jsonl")), table)
    repositories = (
        Repo("nobody/tiny", files_of(untrained), MODEL_COMMIT, token=TOKEN),
        Repo("nobody/rows", {"data/train-00000-of-00001.parquet": table.read_bytes()}, DATA_COMMIT, is_data=True),
    )
    recipe = small_recipe(model_name_or_path="nobody/tiny", dataset_id_or_path="nobody/rows", max_steps=1)
    recipe.chmod(0o644)
    recipe.parent.chmod(0o755)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o644)

    with engine.volume() as cache:
        given = (f"--volume={recipe}:/workspace/small.yaml:ro", *engine.CONFINED, engine.SOMEBODY)
        with Hub(*repositories) as hub:
            # The host's network, because the stand-in listens on loopback; the run below has none at all.
            fetched = engine.docker(
                "run", "--rm", "--network=host", *given, f"--volume={cache}:/cache", f"--env=HF_ENDPOINT={hub.address}",
                f"--volume={token}:/run/secrets/hf_token:ro", "--env=HF_TOKEN_PATH=/run/secrets/hf_token",
                cpu_image, "prefetch", "small.yaml", "--json",
            )  # fmt: skip
        assert fetched.returncode == 0, fetched.stderr
        record = json.loads(fetched.stdout)
        commits = {part["kind"]: part["commit"] for part in record["parts"]}
        assert (commits["model"], commits["data"]) == (MODEL_COMMIT, DATA_COMMIT)
        assert TOKEN not in fetched.stdout + fetched.stderr

        # Read-only, as in the pods of k8s/.
        mounts = (f"--volume={cache}:/cache:ro", f"--volume={runs}:/workspace/runs")
        offline = ("--network=none", "--env=HF_HUB_OFFLINE=1", *given, *mounts)
        trained = engine.docker("run", "--rm", *offline, cpu_image, "launch", "small.yaml")
        assert trained.returncode == 0, trained.stderr
        measured = engine.docker("run", "--rm", *offline, cpu_image, "evaluate", "runs/small", "--limit", "2", "--json")
        assert measured.returncode == 0, measured.stderr
        planted = engine.docker(
            "run", "--rm", *offline, "--entrypoint=grep", cpu_image, "-rlF", TOKEN, "/cache", "runs"
        )
        assert planted.returncode == 1, planted.stdout
    shown = engine.out(
        "run", "--rm", f"--volume={runs}:/runs:ro", "--entrypoint=cat", cpu_image, "/runs/small/run.json"
    )
    assert json.loads(shown)["data"]["revision"] == DATA_COMMIT
    assert json.loads(shown)["attempts"][0]["model"]["revision"] == MODEL_COMMIT
