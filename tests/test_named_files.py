"""Prompt files and code of rewards in a recipe: where they are found, what a recipe with them is refused for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mini_r1.errors import KitError
from mini_r1.launch.job import LaunchOptions
from mini_r1.launch.launcher import shared_settings
from mini_r1.recipe.named_files import digests, named_files, refuse_other_files, with_copies
from mini_r1.recipe.recipe_file import RecipeError, differences, dump_recipe, load_recipe

MODEL = "model_name_or_path: some/model\n"
PROMPT = "user: '{nums} -> {target}, with <think>'\n"
CODE = "def closeness(completions, **k):\n    return [0.0] * len(completions)\n"
NEAR = "my_rewards.py:closeness"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a recipe with its files; the current folder is another one."""
    folder = tmp_path / "recipes"
    (folder / "below").mkdir(parents=True)
    (folder / "prompt.yaml").write_text(PROMPT)
    (folder / "my_rewards.py").write_text(CODE)
    (folder / "below" / "my_rewards.py").write_text(CODE)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def write(folder: Path, text: str) -> Path:
    (folder / "x.yaml").write_text(MODEL + text)
    return folder / "x.yaml"


def issue(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), overrides)
    return caught.value.message.replace(f"{folder}/", "")


def test_files_are_beside_the_recipe_or_else_in_the_current_folder(folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write(folder, f"prompt_style: prompt.yaml\nrewards: {{equation: 1, {NEAR}: 0.2}}\n"))
    assert recipe.prompt_style == f"{folder}/prompt.yaml"
    assert recipe.rewards == {"equation": 1, f"{folder}/{NEAR}": 0.2}
    assert recipe.resolved_rewards() == {"equation": 1, NEAR: 0.2}
    (tmp_path / "here" / "other.yml").write_text(PROMPT)
    (tmp_path / "here" / "near.py").write_text(CODE)
    given = load_recipe(folder / "x.yaml", ["prompt_style=other.yml", "rewards.near.py:closeness=0.5"])
    assert given.prompt_style == f"{tmp_path}/here/other.yml"
    assert given.resolved_rewards() == {"equation": 1, NEAR: 0.2, "near.py:closeness": 0.5}
    assert load_recipe(folder / "x.yaml", [f"rewards={{{NEAR}: 2}}"]).resolved_rewards() == {NEAR: 2.0}


def test_a_copy_in_a_run_is_the_same_recipe(folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write(folder, f"prompt_style: prompt.yaml\nrewards: {{{NEAR}: 1, package.near:f: 2}}\n"))
    assert load_recipe(write(folder, dump_recipe(recipe).replace(MODEL, ""))) == recipe
    run = tmp_path / "run"
    run.mkdir()
    alone = recipe.model_copy(update={"rewards": {f"{folder}/{NEAR}": 1.0}})
    (run / "recipe_files").mkdir()
    for name, path in named_files(alone).items():
        shutil.copy(path, run / "recipe_files" / name)
    (run / "recipe.yaml").write_text(dump_recipe(with_copies(alone)))
    kept = load_recipe(run.rename(tmp_path / "moved") / "recipe.yaml")
    assert kept.prompt_style == f"{tmp_path}/moved/recipe_files/prompt.yaml"
    assert differences(kept, alone) == {}
    assert digests(kept) == digests(alone)
    assert sorted(digests(alone)) == ["my_rewards.py", "prompt.yaml"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("prompt_style: scrpt", "x.yaml:2: prompt_style: the task countdown has the prompt styles script, notebook: "
         "name one, or a .yaml file; did you mean 'script'?"),
        ("prompt_style: none.yaml", "x.yaml:2: prompt_style: there is no file none.yaml in the folder of "
         "the recipe or in the current folder"),
        ("prompt_style: bad.yaml", "x.yaml:2: prompt_style: bad.yaml: the user message has no {target}"),
        ("prompt_style: plain.yaml", "x.yaml:2: prompt_style: the prompt has no <think>, which the reward format asks "
         "for: add it to the prompt, or name other rewards, such as rewards: {equation: 1, my_rewards"),
        ("prompt_style: plain.yaml\nscoring: original", "which the reward format_original asks for"),
        ("prompt_style: prompt.yaml\nmodel_name_or_path: builtin:demo\ndataset_id_or_path: generated",
         "builtin:demo is made to continue a thought: end the prefill of the prompt with <think>"),
        ("prompt_style: open.yaml\nstop: ['hm <think>']", "x.yaml:3: stop: 'hm <think>' is what every prompt ends"),
        ("rewards: {none.py:f: 1}", "x.yaml:2: rewards.none.py:f: there is no file none.py in the folder"),
        ("rewards: {my_rewards.py:nearness: 1}", "my_rewards.py has no function nearness; it has: closeness"),
        ("rewards: {broken.py:f: 1}", "broken.py:2: not valid Python"),
        ("rewards: {my_rewards.py: 1}", "must be one of format, equation, .* or code, such as my_rewards.py:closeness"),
        ("rewards: {format:1}", "x.yaml:2: rewards.format:1: write a space after the colon"),
        ("rewards: {equaton: 1}", "not 'equaton'; did you mean 'equation'?"),
        (f"rewards: {{{NEAR}: 1, below/{NEAR}: 1}}", "have one name, and a run keeps its files together: rename one"),
        (f"rewards: {{{NEAR}: .nan}}", f"rewards.{NEAR}: must be a finite number"),
    ],
)  # fmt: skip
def test_a_recipe_with_wrong_files_is_refused(folder: Path, text: str, sentence: str) -> None:
    (folder / "bad.yaml").write_text("user: 'Use {nums}.'")
    (folder / "plain.yaml").write_text("user: '{nums} {target} <answer>'")
    (folder / "open.yaml").write_text("user: '{nums} {target}'\nprefill: 'hm <think>'")
    (folder / "broken.py").write_text("\ndef f(:\n")
    if "builtin" in text:
        (folder / "x.yaml").write_text(text)
        with pytest.raises(RecipeError) as caught:
            load_recipe(folder / "x.yaml")
        assert sentence in caught.value.message
        return
    found = issue(folder, text)
    assert all(part in found for part in sentence.split(".*")), found


def test_a_prompt_without_a_thought_goes_with_other_rewards(folder: Path) -> None:
    (folder / "plain.yaml").write_text("user: '{nums} {target} <answer>'")
    recipe = load_recipe(write(folder, f"prompt_style: plain.yaml\nrewards: {{equation: 1, {NEAR}: 1, format: 0}}"))
    assert recipe.resolved_rewards()["equation"] == 1


def test_a_recipe_says_that_it_names_code(folder: Path) -> None:
    warnings = load_recipe(write(folder, f"rewards: {{equation: 1, {NEAR}: 1}}")).warnings()
    assert any(NEAR in warning and "code that the recipe names" in warning for warning in warnings)


def test_nodes_compare_files_and_not_their_folders(folder: Path, tmp_path: Path) -> None:
    text = f"prompt_style: prompt.yaml\nrewards: {{{NEAR}: 1}}\n"
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    first, same = (shared_settings(load_recipe(write(each, text)), LaunchOptions("x")) for each in (folder, other))
    assert first == same
    assert first["my_rewards.py"].startswith("sha256 ")
    (other / "my_rewards.py").write_text(CODE + "\n")
    changed = shared_settings(load_recipe(other / "x.yaml"), LaunchOptions("x"))
    assert [key for key in first if first[key] != changed[key]] == ["my_rewards.py"]


def test_workers_with_other_files_are_refused() -> None:
    refuse_other_files({"a.py": "1"}, {"a.py": "1"})
    with pytest.raises(KitError, match="a.py differs between the workers"):
        refuse_other_files({"a.py": "1"}, {"a.py": "2"})
