"""What TensorBoard gets: every scalar of metrics.jsonl, and completions as text that stays text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mini_r1.cli.training_commands import train
from mini_r1.errors import ExitCode
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.reader import read_completions, read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.training import curves
from mini_r1.training.curves import Curves, as_code, shown_completions, tag, write_held_out
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.hparams import plugin_data_pb2

HOSTILE = [
    "<script>alert(1)</script>",
    "</pre></code><img src=x onerror=alert(1)>",
    "[link](javascript:alert(1))",
    "```\nout\n```",
    "text\n\n# no heading\n\n<b>bold</b>",
    "\t<i>tab</i>",
    "\x1b[31mred\x00\u202e",
    "a\r\n<script>b</script>",
    "\n\n\n",
    "<![if x",  # CVE-2025-69534 of markdown 3.7, where a line begins with it
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_not_rendered_as_markdown(text: str) -> None:
    """As TensorBoard itself turns Markdown into HTML."""
    shown = markdown_to_safe_html(as_code(f"first\n{text}\nlast"))
    assert set(re.findall(r"</?(\w+)", shown)) <= {"pre", "code", "span", "div"}
    assert "first" in shown
    assert "last" in shown
    assert "\x1b" not in shown


def record(right: bool, completion: str = "6 * 7</think>") -> dict[str, Any]:
    return {
        "nums": [6, 7], "target": 42, "reason": "correct", "completion": completion,
        "rewards": {"equation": float(right)},
    }  # fmt: skip


def texts(run: RunDir) -> dict[str, list[tuple[int, str]]]:
    events = EventAccumulator(str(run.tensorboard), size_guidance={"tensors": 0}).Reload()
    return {
        name: [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors(name)]
        for name in events.Tags()["tensors"]
        if not name.startswith("_hparams_")
    }


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    return RunDir(tmp_path)


def test_the_amount_of_text_is_bounded(run: RunDir) -> None:
    board = Curves(run, 0)
    for step in range(1, 1001):
        records = [record(i % 2 == 0, "x" * 9_000) for i in range(20)]
        board.add_completions(step, shown_completions(step, 1000, records))
    board.tb_writer.close()
    found = texts(run)
    assert {name.removesuffix("/text_summary") for name in found} == {
        "completions/right 1", "completions/right 2", "completions/wrong 1", "completions/wrong 2"
    }  # fmt: skip
    for shown in found.values():
        assert [step for step, _ in shown] == [1, *range(20, 1001, 20)]
        assert all(len(text) < curves.SHOWN_CHARACTERS + 200 for _, text in shown)
        assert all("[5,000 more characters]" in text for _, text in shown)


def test_a_step_without_a_right_answer(run: RunDir) -> None:
    board = Curves(run, 0)
    board.add_completions(2, shown_completions(2, 3, [record(False)]))
    board.tb_writer.close()
    (shown,) = texts(run).values()
    assert shown == [(2, "    [6, 7] -> 42: correct\n    <think>6 * 7</think>")]


def hyperparameters_of(run: RunDir) -> dict[str, Any]:
    """Those of the events' session, as the plugin of TensorBoard reads them."""
    events = EventAccumulator(str(run.tensorboard)).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


@pytest.mark.parametrize(
    ("figure", "name"),
    [
        ("success", "rollout/success"),
        ("success/3_numbers", "rollout/success/3_numbers"),
        ("completion_length", "rollout/completion_length"),
        ("frac_truncated", "rollout/frac_truncated"),
        ("reward", "rewards/reward"),
        ("reward_std", "rewards/reward_std"),
        ("rewards/format", "rewards/format"),
        ("loss", "loss/loss"),
        ("kl", "loss/kl"),
        ("grad_norm", "loss/grad_norm"),
        ("learning_rate", "loss/learning_rate"),
        ("time/rollout", "time/rollout"),
        ("tokens_per_second", "time/tokens_per_second"),
        ("sync/equal", "sync/equal"),
        ("eval_success", "eval/success"),
        ("eval_rewards/format", "eval/rewards/format"),
        ("total_flos", "train/total_flos"),
    ],
)
def test_figures_are_grouped(figure: str, name: str) -> None:
    assert tag(figure) == name


def test_hyperparameters_have_no_path(small_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = load_recipe(small_recipe(output_dir=str(tmp_path / "out"), beta=0.04, scoring="original"))
    board = Curves(RunDir(tmp_path), 0, recipe)
    board.tb_writer.close()
    found = hyperparameters_of(RunDir(tmp_path))
    assert (found["beta"], found["scoring"], found["use_vllm"]) == (0.04, "original", False)
    assert found["model"] == Path(recipe.model_name_or_path).name
    assert not any("/" in value for value in found.values() if isinstance(value, str))


def test_held_out_results_are_curves(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    results = [
        {"sampled": 0.1, "greedy": 0.2, "pass_at_k": {"4": {"value": 0.3}}, "provenance": {"step": 0}},
        {"sampled": 0.5, "greedy": None, "pass_at_k": {"4": {"value": 0.6}}, "tries": 2.0, "provenance": {"step": 20}},
    ]
    write_held_out(run, results[:1])
    write_held_out(run, results[1:])  # a later call of the command
    events = EventAccumulator(str(run.tensorboard)).Reload()
    found = {name: [(e.step, round(e.value, 3)) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert found == {
        "held_out/sampled": [(0, 0.1), (20, 0.5)], "held_out/greedy": [(0, 0.2)],
        "held_out/pass@4": [(0, 0.3), (20, 0.6)], "held_out/tries": [(20, 2.0)],
    }  # fmt: skip


def test_a_run_writes_every_scalar_and_its_completions(small_recipe: Callable[..., Path], tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    recipe = small_recipe(max_steps=2, eval_strategy="steps", eval_steps=2, eval_problems=4)
    assert train(str(recipe), [], run.path) == ExitCode.FINISHED
    events = EventAccumulator(str(run.tensorboard)).Reload()
    logged = {name for row in read_metrics(run) for name, value in row.items() if isinstance(value, int | float)}
    written = set(events.Tags()["scalars"])
    assert {tag(name) for name in logged - {"step", "time"}} <= written
    assert {name.partition("/")[0] for name in written} <= {"rollout", "rewards", "loss", "time", "eval", "train"}
    assert "max_steps" in hyperparameters_of(run)
    for row in read_metrics(run):
        (reward,) = [event.value for event in events.Scalars("rewards/reward") if event.step == row["step"]]
        assert reward == pytest.approx(row["reward"])
    shown = [each for name, found in texts(run).items() if name.startswith("completions/") for each in found]
    assert {step for step, _ in shown} == {1, 2}
    for event_file in run.tensorboard.iterdir():  # it is published
        assert str(tmp_path).encode() not in event_file.read_bytes()
    first = next(read_completions(run))
    assert any(f"{first['nums']} -> {first['target']}" in text for _, text in shown)
