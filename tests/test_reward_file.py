"""A user's reward function: found, imported, called as TRL calls it, and each way in which it can be wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from mini_r1.errors import ExitCode, KitError
from mini_r1.tasks.reward_file import check_source, is_code, load_reward, refuse_code, short_name, source_file

from tests.conftest import REPO

COLUMNS = ("nums", "target")
PROMPTS, COMPLETIONS = ["p", "q"], ["one", "two\x1b[31m"]
VALUES = {"nums": [[1, 2], [3]], "target": [3, 4]}
CLOSENESS = """\
def closeness(completions, target, **kwargs):
    return [len(c) / t for c, t in zip(completions, target)]
"""


def write(folder: Path, text: str, function: str = "closeness") -> str:
    (folder / "my_rewards.py").write_text(text)
    return f"{folder}/my_rewards.py:{function}"


def rewards(name: str) -> list[float]:
    return load_reward(name, COLUMNS, {})(PROMPTS, COMPLETIONS, VALUES, 7)


def error(name: str) -> str:
    with pytest.raises(KitError) as caught:
        rewards(name)
    assert caught.value.exit_code == ExitCode.CONFIG
    assert caught.value.message.isprintable()
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "short"),
    [("a/b/my_rewards.py:closeness", "my_rewards.py:closeness"), ("package.module:near", "package.module:near")],
)
def test_the_name_of_code_is_a_file_or_module_and_a_function(name: str, short: str) -> None:
    assert is_code(name)
    assert short_name(name) == short


@pytest.mark.parametrize("name", ["format", "format:1", "my_rewards.py", "a b:c", "a.py:", ":c", "a..b:c", "a.py:b.c"])
def test_other_names_are_no_code(name: str) -> None:
    assert not is_code(name)


def test_a_function_gets_lists_by_keyword_and_returns_floats(tmp_path: Path) -> None:
    assert rewards(write(tmp_path, CLOSENESS)) == [1.0, 2.0]
    text = "seen = []\ndef closeness(**given):\n    seen.append(given)\n    return (True, 0.5)\n"
    loaded = load_reward(write(tmp_path, text), COLUMNS, {})
    assert loaded(PROMPTS, COMPLETIONS, VALUES, 7) == [1.0, 0.5]
    assert loaded.function.__globals__["seen"] == [{"prompts": PROMPTS, "completions": COMPLETIONS, **VALUES}]
    assert not list(tmp_path.glob("__pycache__"))


def test_it_need_not_take_everything(tmp_path: Path) -> None:
    assert rewards(write(tmp_path, "def closeness(completions):\n    return [0 for c in completions]\n")) == [0.0, 0.0]
    assert rewards(write(tmp_path, "closeness = lambda *, prompts, x=1: (x for p in prompts)\n")) == [1.0, 1.0]


def test_a_module_is_found_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "near_kit").mkdir()
    (tmp_path / "near_kit" / "__init__.py").write_text("raise SystemError\n")
    (tmp_path / "near_kit" / "rewards.py").write_text(CLOSENESS)
    monkeypatch.syspath_prepend(tmp_path)
    assert source_file("near_kit.rewards:closeness") == tmp_path / "near_kit" / "rewards.py"
    check_source("near_kit.rewards:closeness")
    assert "near_kit.rewards:closeness cannot be imported (SystemError" in error("near_kit.rewards:closeness")
    (tmp_path / "near_kit" / "__init__.py").write_text("")
    assert rewards("near_kit.rewards:closeness") == [1.0, 2.0]
    assert "there is no module near_kit.reward here" in error("near_kit.reward:closeness")
    assert "there is no module nowhere.a here" in error("nowhere.a:closeness")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def closeness(:\n", "my_rewards.py:1: not valid Python (invalid syntax"),
        ("def closenes(c):\n    pass\n", "has no function closeness; it has: closenes"),
        ("", "has no function closeness; it has: none"),
        ("closeness = 3\n", "has no function closeness"),
        ("import not_there\n" + CLOSENESS, "cannot be imported (ModuleNotFoundError: No module named 'not_there')"),
        ("import sys\nsys.exit(3)\n" + CLOSENESS, "cannot be imported (SystemExit: 3)"),
        ("def closeness(completions, difficulty): ...\n",
         "needs 'difficulty': a reward gets prompts, completions, nums, target by keyword"),
        ("def closeness(completions, /): ...\n", "needs 'completions': a reward gets"),
        ("def closeness(**k): return None\n", "must return a list, a float for each completion (step 7)"),
        ("def closeness(**k): return '12'\n", "must return a list, a float for each"),
        ("def closeness(**k): return [1.0]\n", "returned 1 values for 2 completions, step 7: it must return one"),
        ("def closeness(**k): return [1, float('nan')]\n",
         "my_rewards.py:closeness returned nan for the completion 'two\\x1b[31m', step 7: it must return finite"),
        ("def closeness(**k): return [1e999, 0]\n", "returned inf for the completion 'one', step 7"),
        ("def closeness(**k): return [0, None]\n", "returned None for the completion 'two"),
        ("def closeness(**k): return [0, '1']\n", "returned '1' for the completion 'two"),
        ("def closeness(completions, **k): return [1 / ('t' not in c) for c in completions]\n",
         "the reward my_rewards.py:closeness raised ZeroDivisionError: division by zero for the completion "
         "'two\\x1b[31m', step 7: fix it"),
        ("import sys\ndef closeness(completions, **k): sys.exit(completions[-1])\n",
         "raised SystemExit: two\\x1b[31m for the completion 'one', step 7"),
        ("def closeness(completions, **k): return [1 / (len(completions) - 2)] * 2\n",
         "raised ZeroDivisionError: division by zero for 2 completions together, and for none of them alone, step 7"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_function_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    assert sentence in error(write(tmp_path, text))


def test_code_can_be_forbidden(tmp_path: Path) -> None:
    name = write(tmp_path, "raise SystemError\n" + CLOSENESS)
    sentence = r"the recipe names code \(my_rewards.py:closeness\), and MINI_R1_ALLOW_RECIPE_CODE is 0"
    with pytest.raises(KitError, match=sentence) as caught:
        load_reward(name, COLUMNS, {"MINI_R1_ALLOW_RECIPE_CODE": "0"})
    assert caught.value.exit_code == ExitCode.CONFIG
    refuse_code([], {"MINI_R1_ALLOW_RECIPE_CODE": "0"})
    refuse_code([name], {"MINI_R1_ALLOW_RECIPE_CODE": "1"})


def test_what_it_prints_goes_to_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    name = write(tmp_path, "def closeness(completions, **k):\n    print(completions[1])\n    return [0, 0]\n")
    assert rewards(name) == [0.0, 0.0]
    assert [record.getMessage() for record in caplog.records] == ["my_rewards.py:closeness: two\\x1b[31m"]
    assert capsys.readouterr().out == ""


def test_the_documented_example_is_a_reward(tmp_path: Path) -> None:
    page = (REPO / "docs" / "rewards.md").read_text()
    text = page.partition("```python\n")[2].partition("```")[0]
    loaded = load_reward(write(tmp_path, text), COLUMNS, {})
    columns = {"nums": [[1]] * 3, "target": [24, 3, 5]}
    assert loaded(["p"] * 3, ["8 * 3 = 24", "no", "1 + 2 = 3"], columns, 1) == [1, 0, 1 / 3]
