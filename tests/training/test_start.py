"""Where the model of a run before its first step is found, and what is said where it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mini_r1.recipe.builtin_models import BUILTIN_MODELS, SCRATCH_MODEL
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.files import write_json
from mini_r1.run.run_dir import RunDir
from mini_r1.training import prepare, warm_start
from mini_r1.training.prepare import starting_point

DEMO = """\
model_name_or_path: builtin:demo
dataset_id_or_path: generated
dataset_rows: 60
max_steps: 2
warm_start: {steps: 7, traces: 64}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setenv("MINI_R1_CACHE", str(tmp_path / "cache"))
    made = RunDir(tmp_path / "run")
    made.path.mkdir()
    made.recipe_file.write_text(DEMO)
    return made


def model_is(run: RunDir, name: str, revision: str | None = None) -> None:
    lines = {"model_name_or_path": name, "model_revision": revision, "dataset_id_or_path": "generated", "max_steps": 2}
    run.recipe_file.write_text(json.dumps({key: value for key, value in lines.items() if value is not None}))


def test_the_demos_warm_start_is_found_in_the_cache(run: RunDir) -> None:
    recipe = load_recipe(run.recipe_file)
    data = prepare.load_task_data(recipe)
    job = warm_start.of_recipe(recipe, data.train)
    missing = starting_point(run)
    assert (missing.source, "is not in the cache" in missing.description) == (None, True)
    assert not warm_start.cache_root().exists()  # nothing was made
    job.directory().mkdir(parents=True)
    write_json(job.directory() / warm_start.MADE, {})
    assert starting_point(run).source == str(job.directory())


def test_a_hub_model_has_the_commit_of_the_last_start(run: RunDir) -> None:
    model_is(run, "owner/name", "main")
    assert (starting_point(run).source, starting_point(run).revision) == ("owner/name", "main")
    attempts = [{"model": {"revision": "old"}}, {"model": {"revision": "0123abc"}}]
    write_json(run.run_file, {"attempts": attempts})
    assert starting_point(run).revision == "0123abc"


@pytest.mark.parametrize("record", ["", "[]", '{"attempts": []}', '{"attempts": [{"model": 3}]}', '{"attempts": {}}'])
def test_without_a_readable_record_the_recipes_revision_is_used(run: RunDir, record: str) -> None:
    model_is(run, "owner/name", "main")
    run.run_file.write_text(record)
    assert starting_point(run).revision == "main"


def test_a_missing_model_directory_is_reported(run: RunDir, tmp_path: Path) -> None:
    model_is(run, str(tmp_path / "model"))
    assert (starting_point(run).source, "is not there any more" in starting_point(run).description) == (None, True)
    (tmp_path / "model").mkdir()
    assert starting_point(run).source == str(tmp_path / "model")
    assert starting_point(run).revision is None


def test_the_settings_of_a_warm_start_decide_its_directory() -> None:
    def of(**values: Any) -> warm_start.WarmStart:
        return warm_start.of_recipe(Recipe(model_name_or_path="builtin:scratch", max_steps=1, **values), ())

    assert of().model == BUILTIN_MODELS[SCRATCH_MODEL]
    asked = {"layers": 3, "hidden_size": 128, "give_up": 0.4, "sums": 0.0, "learning_rate": 1e-4, "batch": 16}
    model = of(warm_start=asked).model
    assert (model.layers, model.hidden_size) == (3, 128)
    assert (model.demonstrator.give_up, model.demonstrator.sums) == (0.4, 0.0)
    assert (model.imitation.learning_rate, model.imitation.batch) == (1e-4, 16)
    changed = [of(warm_start={key: value}).directory() for key, value in asked.items()]
    assert len({of().directory(), of(warm_start={"seed": 1}).directory(), *changed}) == len(asked) + 2
    generator = {"dataset_id_or_path": "generated", "generator": {"max_intermediate": 90}}
    assert of(**generator).model.demonstrator.largest_value == 90
    assert of(**{**generator, "generator": {"max_intermediate": 10**6}}).model.demonstrator.largest_value == 200
