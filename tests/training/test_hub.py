"""Model and data by hub id, with the real hub clients against a stand-in of the hub's HTTP interface."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ASSETS, command, rows
from tests.hub import Hub, Repo, files_of

MODEL_COMMIT, DATA_COMMIT = "a" * 40, "b" * 40
TABLE = "data/train-00000-of-00001.parquet"


@pytest.fixture
def hub(untrained: Path) -> Iterator[str]:
    """Return the address of a stand-in that serves the model someone/tiny and the data set someone/rows."""
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(ASSETS / "countdown_rows.jsonl")), table)
    model = Repo("someone/tiny", files_of(untrained), MODEL_COMMIT)
    data = Repo("someone/rows", {TABLE: table.getvalue(), "README.md": b"#"}, DATA_COMMIT, is_data=True)
    with Hub(model, data) as serving:
        yield serving.address


def test_revisions_are_resolved_recorded_and_found_offline(
    hub: str, small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = small_recipe(
        model_name_or_path="someone/tiny", dataset_id_or_path="someone/rows", max_steps=1, dataset_revision="main"
    )
    online = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_planted"}

    def train(run: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command(), "train", str(recipe), "--run-dir", str(tmp_path / run)],
            env={**os.environ, **online, **environment}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    first = train("first")
    assert first.returncode == 0, first.stderr
    record = json.loads((tmp_path / "first" / "run.json").read_text())
    assert record["data"]["revision"] == DATA_COMMIT
    assert record["attempts"][0]["model"]["revision"] == MODEL_COMMIT
    texts = [p.read_bytes() for p in (tmp_path / "first").rglob("*") if p.is_file()]
    assert not any(b"hf_planted" in text for text in texts)

    offline = train("second", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.returncode == 0, offline.stderr
    assert json.loads((tmp_path / "second" / "run.json").read_text())["data"] == record["data"]
