"""A run on the user's own columns, prompt and reward: what is kept, recorded, measured, resumed and refused."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from mini_r1.cli.training_commands import train
from mini_r1.errors import ExitCode, KitError
from mini_r1.evaluation.evaluate_run import evaluate_run_or_model
from mini_r1.generation.model import StartingPoint
from mini_r1.hub.branch_contents import base_of, fill_branch
from mini_r1.play.players import load_players
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.report.samples_browser import Samples
from mini_r1.run.completions import format_completion
from mini_r1.run.files import read_jsonl
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.registry import find_task

from tests.conftest import ASSETS, write_recipe

PROMPT = """\
system: Do sums.
user: "{target} with {nums}? Use <think> </think>."
prefill: "Well:"
"""
REWARDS = """\
def closeness(completions, prompts, target, nums, **kwargs):
    print("scored", len(completions), nums[0], prompts[0][-5:])
    return [len(text) / (1 + abs(each)) for text, each in zip(completions, target)]
"""
CODE = "my_rewards.py:closeness"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with its data, prompt and rewards next to it."""
    folder = tmp_path_factory.mktemp("own")
    rows = [json.loads(line) for line in (ASSETS / "countdown_rows.jsonl").read_text().splitlines()][:24]
    nested = [{"truth": {"numbers": ",".join(map(str, row["nums"])), "result": str(row["target"])}} for row in rows]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in nested))
    (folder / "prompt.yaml").write_text(PROMPT)
    (folder / "my_rewards.py").write_text(REWARDS)
    return folder


@pytest.fixture(scope="module")
def recipe(folder: Path, untrained: Path) -> Path:
    return write_recipe(
        folder / "own.yaml", untrained,
        dataset_id_or_path=str(folder / "rows.jsonl"), max_steps=2, max_prompt_length=100,
        dataset_columns={"nums": "truth.numbers", "target": "truth.result"}, prompt_style="prompt.yaml",
        rewards={"format": 1.0, "equation": 1.0, "random": 1.0, CODE: 0.25},
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(recipe: Path, folder: Path) -> RunDir:
    assert train(str(recipe), [], folder / "run") == ExitCode.FINISHED
    (folder / "moved").mkdir()
    return RunDir((folder / "run").rename(folder / "moved" / "run"))  # it needs nothing outside


def test_the_run_keeps_and_records_its_files(run: RunDir, folder: Path) -> None:
    kept = load_recipe(run.recipe_file)
    assert kept.prompt_style == str(run.path / "recipe_files" / "prompt.yaml")
    assert kept.resolved_rewards() == {"format": 1.0, "equation": 1.0, "random": 1.0, CODE: 0.25}
    assert str(folder) not in run.recipe_file.read_text().replace(f"{folder}/rows.jsonl", "")
    for name in ("prompt.yaml", "my_rewards.py"):
        assert (run.path / "recipe_files" / name).read_bytes() == (folder / name).read_bytes()
        digest = sha256((folder / name).read_bytes()).hexdigest()
        assert run.read_record()["recipe_files"][name] == digest
    assert run.read_record()["data"]["columns"] == {"nums": "truth.numbers", "target": "truth.result"}


def test_every_completion_has_the_prompt_and_the_reward(run: RunDir) -> None:
    rows = list(read_jsonl(run.attempts / "1" / "completions.jsonl"))
    assert len(rows) == 2 * 4 * 4
    for row in rows:
        asked = f"<|im_start|>system\nDo sums.<|im_end|>\n<|im_start|>user\n{row['target']} with {row['nums']}? Use"
        assert row["prompt"] == f"{asked} <think> </think>.<|im_end|>\n<|im_start|>assistant\nWell:"
        assert row["prefill"] == "Well:"
        assert row["rewards"][CODE] == len(row["completion"]) / (1 + abs(row["target"]))
        weighted = sum(row["rewards"][name] for name in ("format", "equation", "random")) + 0.25 * row["rewards"][CODE]
        assert row["reward"] == pytest.approx(weighted)
        assert format_completion(row, None).plain.partition("\n")[2].startswith("Well:")
    metrics = list(read_jsonl(run.attempts / "1" / "metrics.jsonl"))
    means = [sum(row["rewards"][CODE] for row in rows if row["step"] == step) / 16 for step in (1, 2)]
    assert [row[f"rewards/{CODE}"] for row in metrics] == pytest.approx(means)
    log = (run.attempts / "1" / "rank-0.log").read_text()
    assert log.count(f"{CODE}: scored 16 [") == 2
    assert (run.path / "completion_samples" / "completion_samples.txt").read_text().count("\nWell:") > 0


def test_evaluation_asks_the_same_prompt_and_reads_the_same_columns(run: RunDir, folder: Path) -> None:
    held_out = evaluate_run_or_model(str(run.path), samples=1, limit=2).evaluations[-1]
    assert held_out["provenance"]["prompt_style"].startswith("prompt.yaml (sha256 ")
    mapped = evaluate_run_or_model(str(run.path), folder / "rows.jsonl", samples=1, limit=2).evaluations[-1]
    assert (mapped["problems"], mapped["provenance"]["problems_in_file"]) == (2, 24)
    assert mapped["provenance"]["columns"] == {"nums": "truth.numbers", "target": "truth.result"}
    for row in read_jsonl(run.evaluation / "step-2-limit-2-completions.jsonl"):
        task = find_task(row["task"])
        assert row["prefill"] == "Well:"
        assert task.score_row(row, "")["format"] == row["rewards"]["format"]


@pytest.mark.parametrize("name", ["prompt.yaml", "my_rewards.py"])
def test_a_resume_with_another_file_is_refused(
    run: RunDir, recipe: Path, folder: Path, tmp_path: Path, name: str
) -> None:
    for each in (recipe, folder / "prompt.yaml", folder / "my_rewards.py"):
        shutil.copy(each, tmp_path)
    assert train(str(tmp_path / "own.yaml"), [], run.path) == ExitCode.FINISHED  # the same files elsewhere
    (tmp_path / name).write_text((tmp_path / name).read_text() + "\n# another\n")
    with pytest.raises(
        KitError, match=rf"other recipe:\n  {name}: the run has 'sha256 \w+', the recipe has 'sha256"
    ) as caught:
        train(str(tmp_path / "own.yaml"), [], run.path)
    assert caught.value.exit_code == ExitCode.CONFIG


def test_a_reward_that_raises_ends_the_run_with_the_step(recipe: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "prompt.yaml", tmp_path)
    shutil.copy(recipe, tmp_path)
    (tmp_path / "my_rewards.py").write_text(
        "calls = []\ndef closeness(target, **k):\n    calls.append(1)\n"
        "    return [0.0 if len(calls) < 2 else 1 / 0 for t in target]\n"
    )
    with pytest.raises(
        KitError, match=r"closeness raised ZeroDivisionError: .* for the completion '.*', step 2: fix it"
    ):
        train(str(tmp_path / "own.yaml"), [], tmp_path / "run")
    state = RunDir(tmp_path / "run").read_state()
    assert (state["state"], state["exit_code"], "step 2" in state["reason"]) == ("failed", 78, True)


def test_forbidden_code_is_refused_before_anything_is_made(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINI_R1_ALLOW_RECIPE_CODE", "0")
    with pytest.raises(KitError, match="MINI_R1_ALLOW_RECIPE_CODE is 0"):
        train(str(recipe), [], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_play_shows_the_prefill_and_judges_with_it(run: RunDir) -> None:
    (player,) = load_players(run, None, StartingPoint(None, None, "not here"), lambda line: None)
    *_, answer = player.answer(player.task.parse({"nums": [3, 5], "target": 8}, ""), 0.0, 0)
    assert answer.prefill == "Well:"
    assert answer.verdict is not None
    assert "does not begin with <think>" in answer.verdict.completion.format_error  # type: ignore[attr-defined]


def test_a_published_run_has_its_files_and_no_folder_of_this_machine(run: RunDir, folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe(run.recipe_file)
    branch = fill_branch(run, recipe, base_of(run, recipe), run.require_snapshots()[0], "step-2", "card")
    for name, content in branch.files.items():
        if name.startswith("recipe"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    assert str(folder) not in (tmp_path / "recipe.yaml").read_text()
    published = load_recipe(tmp_path / "recipe.yaml")
    assert find_task(recipe.task).prompt(published.prompt_style).prefill == "Well:"
    assert published.resolved_rewards() == recipe.resolved_rewards()


def test_a_copy_that_is_a_link_out_of_the_run_is_not_published(run: RunDir, folder: Path, tmp_path: Path) -> None:
    sent = RunDir(Path(shutil.copytree(run.path, tmp_path / "sent")))
    link = sent.path / "recipe_files" / "my_rewards.py"
    link.unlink()
    link.symlink_to(folder / "my_rewards.py")
    recipe = load_recipe(sent.recipe_file)
    branch = fill_branch(sent, recipe, base_of(sent, recipe), sent.require_snapshots()[0], "step-2", "card")
    assert branch.left_out == ("recipe_files/my_rewards.py",)
    assert "recipe_files/my_rewards.py" not in branch.files
    assert "recipe_files/prompt.yaml" in branch.files


def test_a_report_reads_the_answers_after_the_prefill(run: RunDir) -> None:
    samples = Samples()
    for row in read_jsonl(run.attempts / "1" / "completions.jsonl"):
        samples.add(0, {**row, "completion": "<answer>1</answer>"}, 0)
    assert {answer for answer, *_ in samples.values("workings")} == {"1"}
