"""What training refuses, each in a sentence, with exit code 78 and nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_r1.cli.training_commands import train
from mini_r1.errors import ExitCode, KitError
from mini_r1.run.files import read_jsonl, write_json
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.task_data import TaskData

from tests.conftest import disk_full_at

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
        ({"model_name_or_path": "someone/nothing"}, "cannot load the model someone/nothing"),
        ({"dataset_id_or_path": "/no/such/rows.jsonl"}, "/no/such/rows.jsonl"),
        ({"dataset_id_or_path": "someone/nothing"}, "someone/nothing"),
        ({"max_prompt_length": 20}, "max_prompt_length is 20: raise it to at least"),
        ({"use_vllm": True}, "use_vllm: true, and `mini-r1 launch` assigns vLLM's device, on one GPU too"),
        ({"push_to_hub": True}, "push_to_hub is true, and there is no token for the hub: set HF_TOKEN"),
        ({"report_to": ["comet_ml"]}, "comet_ml: comet-ml is not installed: `uv pip install"),
        ({"fp16": True}, "fp16 needs a GPU"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_refused(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], said: str
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert said in refusal(small_recipe(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pushing_without_a_network_is_refused(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = refusal(small_recipe(push_to_hub=True), tmp_path / "run")
    assert (
        "push_to_hub is true, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: unset it, or set push_to_hub: false"
        in said
    )
    assert "hf_planted" not in said
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    said = refusal(small_recipe(push_to_hub=True, use_peft=True), tmp_path / "run")
    assert "which is not on the hub" in said
    assert not (tmp_path / "run").exists()


def test_a_recipe_may_be_corrected_until_the_first_checkpoint(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that failed after the run directory was made does not bind the run to its wrong recipe."""
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("mini_r1.training.trainer.CountdownTrainer.compute_loss", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(str(small_recipe(max_steps=3)), [], run)
    state = json.loads((run / "state.json").read_text())
    assert (state["state"], state["exit_code"], state["step"]) == ("failed", 1, 0)
    assert "division by zero" in state["reason"]
    assert "ZeroDivisionError" in (run / "attempts" / "1" / "rank-0.log").read_text()
    assert train(str(small_recipe(max_steps=2)), [], run) == ExitCode.FINISHED
    assert "max_steps: the run has 2, the recipe has 3" in refusal(small_recipe(max_steps=3), run)


def test_a_full_disk_is_retryable_and_costs_only_the_steps_since_the_last_save(
    small_recipe: Recipe, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    said = r"No space left on device .* run the same command again: it resumes from step 2\."
    with disk_full_at(4), pytest.raises(KitError, match=said) as caught:
        train(str(small_recipe()), [], run.path)
    assert caught.value.exit_code == ExitCode.RETRY
    assert (run.read_state()["state"], run.read_state()["exit_code"]) == ("failed", 150)
    assert [saved.step for saved in run.complete_checkpoints()] == [2]
    assert train(str(small_recipe()), [], run.path) == ExitCode.FINISHED
    assert [row["step"] for row in read_jsonl(run.attempts / "2" / "metrics.jsonl")] == [3, 4]


def test_a_directory_with_other_files_is_refused(small_recipe: Recipe, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me")
    assert "is not empty and holds no run" in refusal(small_recipe(), mine)
    assert [p.name for p in mine.iterdir()] == ["notes.txt"]


def test_data_that_changed_since_the_run_began_is_refused(small_recipe: Recipe, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    lines = [json.dumps({"nums": [n, n + 1, n + 2], "target": 3 * n + 3}) + "\n" for n in range(1, 20)]
    data.write_text("".join(lines))
    recipe = small_recipe(dataset_id_or_path=str(data), max_steps=2)
    assert train(str(recipe), [], tmp_path / "run") == ExitCode.FINISHED
    (tmp_path / "run" / "state.json").unlink()  # as after a kill in the last moment
    data.write_text("".join(lines[::-1]))
    assert "has changed since the run began" in refusal(recipe, tmp_path / "run")


def test_a_run_resumes_with_the_hub_commits_it_began_with(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A branch of the hub may have moved since the first start."""
    run = RunDir(tmp_path / "run")
    recipe = str(small_recipe(max_steps=2))
    assert train(recipe, [], run.path) == ExitCode.FINISHED
    run.state_file.unlink()
    record = run.read_record()
    record["data"]["revision"] = "d" * 40
    record["attempts"][0]["model"]["revision"] = "e" * 40
    record["attempts"].insert(0, {"attempt": 0, "model": {"revision": "f" * 40}})  # failed before any checkpoint
    write_json(run.run_file, record)
    asked: dict[str, str | None] = {}

    def load_data(task: object, source: str, *, revision: str | None, **others: object) -> TaskData:
        asked["data"] = revision
        return TaskData([Problem((1, 2), 3)], [], record["data"])

    def load_model(name: str, revision: str | None, *others: object) -> object:
        asked["model"] = revision
        raise KitError("seen enough")

    monkeypatch.setattr("mini_r1.training.recipe_data.load_data", load_data)
    monkeypatch.setattr("mini_r1.training.prepare.load_model", load_model)
    with pytest.raises(KitError, match="seen enough"):
        train(recipe, [], run.path)
    assert asked == {"data": "d" * 40, "model": "e" * 40}
