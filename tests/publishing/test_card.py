"""The text of the model card, which nothing in a run can break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from mini_r1.console import as_markdown
from mini_r1.hub import branch_contents
from mini_r1.hub.branch_contents import Base
from mini_r1.hub.card_figures import CURVE
from mini_r1.hub.model_card import card
from mini_r1.recipe.fields import Recipe
from mini_r1.run.reader import Evaluated
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from tensorboard.plugin_util import markdown_to_safe_html

FULL = {
    "problems": 500,
    "samples": 8,
    "temperature": 0.9,
    "greedy": 0.61,
    "greedy_ci95": [0.57, 0.65],
    "sampled": 0.554,
    "ci95": [0.52, 0.59],
    "pass_at_k": {"1": {"value": 0.554, "ci95": [0.52, 0.59]}, "8": {"value": 0.7, "ci95": [0.66, 0.74]}},
    "by_size": {
        "3": {"problems": 250, "sampled": 0.8, "ci95": [0.75, 0.85], "greedy": 0.82},
        "4": {"problems": 250, "sampled": 0.3, "ci95": [0.25, 0.35], "greedy": 0.4},
    },
    "by_operators": {"needs_multiply_or_divide": {"problems": 200, "sampled": 0.123, "ci95": [0.1, 0.15]}},
    "failures": {"result is N, not N": 100, "number N is used twice": 20},
    "tries": 3.25,
    "baselines": {
        "signed_sums": {
            "success_at_tries": {"1": 0.1, "2": 0.25, "all": 0.545},
            "observed_over_expected": 0.873,
            "observed_over_expected_ci95": [0.81, 0.94],
        },
        "untrained": {"sampled": 0.02, "greedy": 0.03},
    },
    "provenance": {"selection": "all 500 problems", "date": "2025-02-01T00:00:00Z"},
}
HUB_BASE = Base("Qwen/Qwen2.5-3B-Instruct", "a" * 40, "Qwen/Qwen2.5-3B-Instruct", {"license": "other"})


def figures(values: dict[str, Any]) -> Evaluated:
    return Evaluated("step-4.json", 4, 500, "", values)


def made(measured: Evaluated | None = None, base: Base = HUB_BASE, **changes: Any) -> str:
    values: dict[str, Any] = {
        "repo": "anna/first",
        "step": 4,
        "is_adapter": False,
        "recipe": Recipe(model_name_or_path=base.name or "builtin:demo", learning_rate=5e-7),
        "base": base,
        "record": {"data": {"train_rows": 45_000, "held_out_rows": 5_000, "revision": "b" * 40, "split_by": "key"}},
        "measured": measured,
        "branches": (2, 4),
        "example": CountdownTask.example,
    }
    return card(**{**values, **changes})


def test_every_figure_has_its_interval() -> None:
    text = made(figures(FULL))
    for line in (
        "| all | 500 | 61.0% (57.0% - 65.0%) | 55.4% (52.0% - 59.0%) |",
        "| 3 numbers | 250 | 82.0% | 80.0% (75.0% - 85.0%) |",
        "| 4 numbers | 250 | 40.0% | 30.0% (25.0% - 35.0%) |",
        "| needs × or ÷ | 200 |  | 12.3% (10.0% - 15.0%) |",
        "- tries per answer: 3.2",
        "- for comparison: sums and differences in random order, success by number of tries: 10.0% (1), 25.0% (2), "
        "54.5% (all)",
        "- right answers over those expected of sums and differences in random order with the same number of tries: "
        "0.87 (0.81 - 0.94)",
        "| for comparison: the untrained model |  | 3.0% | 2.0% |",
        "- pass@8: 70.0% (66.0% - 74.0%)",
        "why answers failed: result is N, not N (100); number N is used twice (20)",
        "all 500 problems; 8 sampled answers each at temperature 0.9, and a greedy one",
        "45,000 problems to train on, 5,000 held out by key",
        "learning\\_rate: 5.0e-07".replace("\\", ""),
        "[Qwen/Qwen2.5-3B-Instruct](https://huggingface.co/Qwen/Qwen2.5-3B-Instruct)",
    ):
        assert line in text, line
    assert "slightly too high" not in text
    assert "slightly too high" in made(figures(FULL), is_best=True)


@pytest.mark.parametrize(
    ("keys", "said"),
    [({"top_p": 1.0, "top_k": None}, ""), ({"top_p": 0.95, "top_k": 1}, ", top_p 0.95, top_k 1")],
)
def test_the_card_names_what_cut_the_distribution_off(keys: dict[str, Any], said: str) -> None:
    text = made(figures({**FULL, "provenance": {**FULL["provenance"], **keys}}))  # type: ignore[dict-item]
    assert f"8 sampled answers each at temperature 0.9{said}, and a greedy one" in text


def recipe_of(**values: Any) -> Recipe:
    return Recipe(**{"model_name_or_path": "builtin:demo", "dataset_id_or_path": "generated", **values})


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(model_name_or_path="Qwen/Qwen2.5-3B"), "given 3 or 4 numbers and a target"),
        (Recipe(model_name_or_path="Qwen/Qwen2.5-3B"), "a correct equation, equally; no solutions were shown."),
        (recipe_of(generator={"sizes": [3]}), "given 3 numbers and a target"),
        (recipe_of(generator={"sizes": [5, 2, 3]}), "given 2, 3 or 5 numbers and a target"),
        (recipe_of(dataset_id_or_path="mine.jsonl"), "given some numbers and a target"),
        (recipe_of(warm_start={"traces": 12_000}), "before that it imitated 12,000 solutions written by a program"),
        (recipe_of(), "it imitated"),  # the demo always does
        (
            recipe_of(rewards={"equation": 1.0, "words": 0.2}),
            "Rules rewarded `equation` (weight 1), `words` (weight 0.2);",
        ),
        (recipe_of(scoring="original"), "`equation_original` (weight 1)"),
    ],
)  # fmt: skip
def test_the_card_describes_this_run_and_not_the_original(recipe: Recipe, expected: str) -> None:
    text = made(base=Base(None, None, "x"), recipe=recipe)
    assert expected in text
    assert ("no solutions were shown" in text) == (recipe.model_name_or_path != "builtin:demo")


def test_only_changed_keys_of_the_recipe_are_shown() -> None:
    shown = yaml.safe_load(made().split("```yaml")[1].split("```")[0])
    assert shown == {"model_name_or_path": "Qwen/Qwen2.5-3B-Instruct", "learning_rate": 5e-7}


def test_no_missing_row_or_interval_is_mentioned() -> None:
    plain_figures = {"problems": 40, "sampled": 0.5}
    for measured in (None, figures(plain_figures)):
        text = made(measured)
        assert "see the row" not in text
        assert "Intervals are" not in text
    full = made(figures(FULL))
    assert "see the row 'needs × or ÷'" in full
    assert "Intervals are 95 %" in full


def test_huggingface_hub_reads_the_metadata() -> None:
    data = ModelCard(made(figures(FULL))).data
    assert (data.base_model, data.datasets, data.license) == (
        "Qwen/Qwen2.5-3B-Instruct", ["Jiayi-Pan/Countdown-Tasks-3to4"], "other"
    )  # fmt: skip
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.task_type) == ("pass@1", 0.554, "text-generation")
    assert result.metric_args == {"ci95": [0.52, 0.59]}


@pytest.mark.parametrize(
    "missing", [None, Evaluated(CURVE, 4, 20, "", {"sampled": 0.25}), figures({"sampled": 0.5, "by": 3})]
)
def test_a_missing_measurement_is_reported(missing: Evaluated | None) -> None:
    text = made(missing, record={})
    if missing is None:
        assert "Not measured at step 4." in text
        assert "model-index" not in text
    elif missing.file == CURVE:
        assert "25.0% of 20 held-out problems, one sampled answer each" in text
        assert "without an interval" in text
    assert "nan" not in text.lower()
    assert "None" not in text


def test_the_licence_is_that_of_the_base_or_reported_as_unknown() -> None:
    known = {"license": "other", "license_name": "qwen-research", "license_link": "https://example.org/LICENSE"}
    text = made(base=Base("Qwen/Qwen2.5-3B-Instruct", None, "", known))
    assert yaml.safe_load(text.split("---")[1])["license_name"] == "qwen-research"
    assert "That of [Qwen/Qwen2.5-3B-Instruct](https://huggingface.co/Qwen/Qwen2.5-3B-Instruct): qwen-research." in text
    unknown = made(base=Base("Qwen/Qwen2.5-3B-Instruct", None, "", {}))
    assert "license" not in yaml.safe_load(unknown.split("---")[1])
    assert "which could not be looked up: read it there" in unknown
    assert yaml.safe_load(made(base=Base(None, None, "the demo")).split("---")[1])["license"] == "apache-2.0"
    folder = made(base=Base(None, None, "x"), recipe=Recipe(model_name_or_path="/models/x"))
    assert "license" not in yaml.safe_load(folder.split("---")[1])
    assert "ask its owner" in folder


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "a | b\n# c", "[x](javascript:y)", "`</code><b>", "\x1b[31m\u202e", "![x](y)"]
)
def test_text_from_a_run_stays_text(text: str) -> None:
    values = {**FULL, "failures": {text: 3}, "provenance": {"selection": text}, "baselines": {text: {"sampled": 0.1}}}
    shown = markdown_to_safe_html(made(figures(values)).split("---", 2)[2])
    for mark in ("<script", "<b>", 'javascript:y"', "<img", "<h1>c", "\x1b"):
        assert mark not in shown.replace("<h1>first", "")
    assert markdown_to_safe_html(as_markdown(text)).count("<") <= 2  # a paragraph


def test_a_recipe_cannot_end_its_block() -> None:
    recipe = Recipe(model_name_or_path="builtin:demo", run_name="``` # heading <b>")
    text = made(base=Base(None, None, "the demo"), recipe=recipe)
    fence = next(line for line in text.splitlines() if line.endswith("yaml"))
    assert fence == "````yaml"


def test_paths_of_this_machine_are_not_published(tmp_path: Path) -> None:
    recipe = Recipe(
        model_name_or_path=str(tmp_path / "models" / "mine"), dataset_id_or_path=str(tmp_path / "rows.jsonl"),
        output_dir=str(tmp_path), tokenizer_name_or_path=str(tmp_path),
    )  # fmt: skip
    shown = branch_contents.public_recipe(recipe)
    assert (shown.model_name_or_path, shown.dataset_id_or_path, shown.output_dir) == ("mine", "rows.jsonl", None)
    assert str(tmp_path) not in str(shown.model_dump())
