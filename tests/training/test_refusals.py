"""What training refuses, each in a sentence, with exit code 78 and nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_r1.commands import train
from mini_r1.errors import ExitCode, KitError
from transformers import AutoTokenizer

Recipe = Callable[..., Path]


def refusal(recipe: Path, run_dir: Path) -> str:
    """What `mini-r1 train` says to this recipe; in this process, because each new one imports torch for seconds."""
    with pytest.raises(KitError) as caught:
        train(str(recipe), [], run_dir)
    assert caught.value.exit_code == ExitCode.CONFIG
    return caught.value.message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_name_or_path": "/no/such/model"}, "cannot load the model from /no/such/model"),
        ({"model_name_or_path": "nobody/nothing"}, "cannot load the model nobody/nothing"),
        ({"dataset_id_or_path": "/no/such/rows.jsonl"}, "/no/such/rows.jsonl"),
        ({"dataset_id_or_path": "nobody/nothing"}, "nobody/nothing"),
        ({"max_prompt_length": 20}, "max_prompt_length is 20: raise it to at least"),
        ({"use_vllm": True}, "use_vllm: generation by vLLM is not in this version"),
        ({"push_to_hub": True}, "push_to_hub: pushing to the hub is not in this version"),
        ({"report_to": ["comet_ml"]}, "report_to: comet_ml is not installed here"),
        ({"fp16": True}, "fp16 needs a GPU"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_refused(small_recipe: Recipe, tmp_path: Path, changes: dict[str, object], said: str) -> None:
    assert said in refusal(small_recipe(**changes), tmp_path / "run")


def test_a_model_without_a_chat_template(small_recipe: Recipe, untrained: Path, tmp_path: Path) -> None:
    model = tmp_path / "bare"
    model.mkdir()
    for file in untrained.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    settings = json.loads((model / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    assert AutoTokenizer.from_pretrained(model).chat_template is None
    assert "has no chat template" in refusal(small_recipe(model_name_or_path=str(model)), tmp_path / "run")


def test_a_directory_with_other_files_in_it_is_left_alone(small_recipe: Recipe, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me")
    assert "is not empty and holds no run" in refusal(small_recipe(), mine)
    assert [p.name for p in mine.iterdir()] == ["notes.txt"]


def test_data_that_changed_since_the_run_began(small_recipe: Recipe, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    lines = [json.dumps({"nums": [n, n + 1, n + 2], "target": 3 * n + 3}) + "\n" for n in range(1, 20)]
    data.write_text("".join(lines))
    recipe = small_recipe(dataset_id_or_path=str(data), max_steps=2)
    assert train(str(recipe), [], tmp_path / "run") == ExitCode.FINISHED
    (tmp_path / "run" / "state.json").unlink()  # as after a kill in the last moment
    data.write_text("".join(lines[::-1]))
    assert "has changed since the run began" in refusal(recipe, tmp_path / "run")
