"""The Python API: what the commands call, by `from mini_r1 import ...`, without torch until something is computed."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mini_r1
import pytest
from mini_r1 import api, evaluate, load_data, load_recipe, score, train
from mini_r1.errors import ExitCode, KitError
from mini_r1.run.run_dir import RunDir
from rich.console import Console

from tests.conftest import REPO, rows

QUIET = Console(quiet=True)


WITHOUT_TORCH = """
import sys
import mini_r1
assert "mini_r1.api" not in sys.modules
from mini_r1 import evaluate, load_data, load_recipe, score, train
score({"completion": "</think>", "nums": [1], "target": 1})
load_data(load_recipe("demo-cpu", ["dataset_rows=50"]))
assert not {"torch", "transformers", "datasets"} & set(sys.modules)
"""


def test_no_torch_until_something_is_computed() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_names_of_the_package_are_those_of_the_module() -> None:
    for name in mini_r1.__all__:
        assert getattr(mini_r1, name) is getattr(api, name)
        assert name in dir(mini_r1)
    with pytest.raises(AttributeError, match="module 'mini_r1' has no attribute 'trian'"):
        mini_r1.trian  # noqa: B018


def test_recipe_data_and_score() -> None:
    recipe = load_recipe("demo-cpu", ["dataset_rows=200", "seed=7"])
    assert (recipe.seed, recipe.max_steps) == (7, 70)
    data = load_data(recipe)
    assert (len(data.train) + len(data.held_out), data.provenance["source"]) == (200, "generated")
    assert data.train == load_data(recipe).train
    row = {"completion": "6 * 7 = 42</think>\n<answer>6 * 7</answer>", "nums": [6, 7], "target": 42}
    assert score(row) == {
        "format": 1, "equation": 1, "format_original": 1, "equation_original": 1, "reason": "correct",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: load_recipe("demo-gpu"), "demo-gpu"),
        (lambda: load_recipe("demo-cpu", ["max_step=1"]), "max_step"),
        (lambda: score({"completion": "", "nums": [1]}), "row: .*target"),
        (lambda: score({"nums": [1], "target": 1}, "line 3"), "line 3: 'completion' is missing"),
        (lambda: score({"completion": 1, "nums": [1], "target": 1}), "row: 'completion' must be a string"),
        (lambda: load_data(load_recipe("mini-r1-3b", ["dataset_id_or_path=./no.jsonl"])), "no.jsonl"),
        (lambda: evaluate("no-such-run-or-model"), "no-such-run-or-model"),
    ],
)
def test_what_is_wrong_is_an_error_with_an_exit_code(call: Callable[[], object], said: str) -> None:
    with pytest.raises(KitError, match=said) as caught:
        call()
    assert caught.value.exit_code == ExitCode.CONFIG


def test_train_and_evaluate(small_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = load_recipe(small_recipe(max_steps=2))
    run = RunDir(tmp_path / "run")
    outcome = train(recipe, run.path, console=QUIET)
    assert (outcome.exit_code, outcome.step) == (ExitCode.FINISHED, 2)
    assert train(recipe, run.path, console=QUIET) == outcome  # finished: nothing to do
    with pytest.raises(KitError, match="was started with another recipe"):
        train(load_recipe(small_recipe(max_steps=3)), run.path, console=QUIET)
    series = evaluate(run.path, samples=1, every=True, console=QUIET)
    assert [each["provenance"]["step"] for each in series.evaluations] == [0, 2]
    for each in series.evaluations:
        assert 0 <= each["sampled"] <= 1
        assert each["problems"] == len(rows(run.held_out_file))


def test_the_documentation_has_every_function_with_its_parameters() -> None:
    page = (REPO / "docs" / "api.md").read_text()
    for name in mini_r1.__all__:
        parameters = inspect.signature(getattr(api, name)).parameters
        (heading,) = [line for line in page.splitlines() if line.startswith(f"## `{name}(")]
        assert heading == f"## `{name}({', '.join(parameters)})`"
        assert inspect.getdoc(getattr(api, name))


def test_the_example_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own code, with a shorter training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINI_R1_CACHE", str(tmp_path / "cache"))
    page = (REPO / "docs" / "api.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    assert 'load_recipe("demo-cpu")' in code
    quick = [
        "warm_start.traces=300", "warm_start.steps=2", "warm_start.min_accuracy=0", "dataset_rows=60", "max_steps=1",
        "warmup_steps=0", "gradient_accumulation_steps=1", "per_device_train_batch_size=2",
    ]  # fmt: skip
    exec(code.replace('load_recipe("demo-cpu")', f'load_recipe("demo-cpu", {quick})'), {})
    correct, problems, *results = capsys.readouterr().out.splitlines()
    assert correct == "correct"
    assert "problems to train on" in problems
    assert [line.partition(":")[0] for line in results] == ["step 0", "step 1"]
