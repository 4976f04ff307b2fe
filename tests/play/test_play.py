"""`mini-r1 play`: two models answer in turn, and the answers are shown."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mini_r1.errors import KitError
from mini_r1.generation.model import StartingPoint, load_model, load_tokenizer
from mini_r1.generation.sampler import SamplingConfig, sample, stream
from mini_r1.play.players import Answer, Player, answer_in_turn, load_players
from mini_r1.play.session import Sampling, play, play_one, play_one_as_json, side_by_side
from mini_r1.run.manifest import seal
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.rewards import judge
from rich.console import Console

from tests.conftest import command
from tests.training.workers import run_forked

Kit = Callable[..., subprocess.CompletedProcess[str]]

PROBLEM = Problem((3, 5, 9), 1)
HOSTILE = "<script>x</script>\x1b[31m\x07\x00\u202e\ud800[bold]b[/bold]\x9b2J"


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Use one thread in every test of this file."""


@pytest.fixture
def run(tmp_path: Path, untrained: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    made.snapshots.mkdir(parents=True)
    made.recipe_file.write_text(
        f"model_name_or_path: {untrained}\ndataset_id_or_path: generated\nmax_completion_length: 12\nmax_steps: 9\n"
    )
    for step in (3, 6):
        scratch = made.snapshots / f".step-{step}"
        shutil.copytree(untrained, scratch)
        seal(scratch, made.snapshots / f"step-{step}", run_id=made.run_id)
    return made


@pytest.fixture
def playing(run: RunDir, untrained: Path) -> list[Player]:
    return load_players(run, None, StartingPoint(str(untrained), None, "the test model"), lambda line: None)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- tokens ---


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_yields_the_samplers_tokens(untrained: Path, temperature: float) -> None:
    model, tokenizer = load_model(str(untrained), None, None, None).eval(), load_tokenizer(str(untrained), None)
    prompt = tokenizer("3 + 5 = ", add_special_tokens=False)["input_ids"]
    sampling = SamplingConfig(30, temperature)
    (whole,) = sample(model, [prompt], sampling, eos_token_ids=[2], pad_token_id=0, seed=7)
    assert list(stream(model, prompt, sampling, eos_token_ids=[2], seed=7)) == whole
    first = whole[3]
    ended = list(stream(model, prompt, sampling, eos_token_ids=[first], seed=7))
    assert ended == whole[: whole.index(first) + 1]


def test_a_stream_ends_where_the_sampler_ends_at_a_stop_string(untrained: Path) -> None:
    model, tokenizer = load_model(str(untrained), None, None, None).eval(), load_tokenizer(str(untrained), None)
    prompt = tokenizer("3 + 5 = ", add_special_tokens=False)["input_ids"]
    ends: dict[str, Any] = {"eos_token_ids": [2], "seed": 7, "tokenizer": tokenizer}
    (whole,) = sample(model, [prompt], SamplingConfig(30, 1.0), pad_token_id=0, **ends)
    sampling = SamplingConfig(30, 1.0, top_k=50, top_p=0.9, stop=(tokenizer.decode(whole[10:12])[-1:],))
    (stopped,) = sample(model, [prompt], sampling, pad_token_id=0, **ends)
    assert list(stream(model, prompt, sampling, **ends)) == stopped
    assert len(stopped) < 30


def test_players_take_the_sampling_keys_of_the_recipe(run: RunDir, untrained: Path) -> None:
    recipe = run.recipe_file.read_text()

    def answers(keys: str) -> list[Answer]:
        run.recipe_file.write_text(f"{recipe}{keys}")
        players = load_players(run, None, StartingPoint(None, None, "not here"), lambda line: None)
        return [list(answer_in_turn(players, PROBLEM, 1.0, seed))[-1][0] for seed in range(3)]

    free = answers("")
    assert len({answer.text for answer in free}) == 3
    for keys in ("top_k: 1\n", "top_p: 1e-6\n"):
        assert len({answer.text for answer in answers(keys)}) == 1  # the most likely tokens, at any seed
    stopped = answers(f"stop: {json.dumps(free[0].text[:1])}\n")[0]
    assert stopped.ids == free[0].ids[: len(stopped.ids)]
    assert len(stopped.ids) < len(free[0].ids) == 12
    assert not stopped.to_json()["truncated"]
    assert free[0].to_json()["truncated"]


def test_both_answer_in_turn_and_get_a_verdict_at_their_end(playing: list[Player]) -> None:
    lengths: list[tuple[int, ...]] = []
    for done in answer_in_turn(playing, PROBLEM, 1.0, 0):
        lengths.append(tuple(len(answer.ids) for answer in done))
    assert lengths[:3] == [(1, 1), (2, 2), (3, 3)]
    assert [answer.player for answer in done] == ["untrained", "trained"]
    assert done[0].ids == done[1].ids  # the same weights and the same draws here
    for answer in done:
        assert answer.verdict == judge(answer.text, PROBLEM, prefill=CountdownTask.prompts["script"].prefill)
        assert answer.ended or len(answer.ids) == 12


# --- what is shown ---


def test_one_problem_on_a_console(playing: list[Player]) -> None:
    console = Console(file=io.StringIO(), width=100)
    play_one(playing, PROBLEM, Sampling(), console)
    lines = text_of(console).splitlines()
    assert "untrained" in lines[0]
    assert "trained, step 6" in lines[0]
    assert "wrong: " in text_of(console)
    assert lines[-1] == "exact solver: (9 - 5) - 3 = 1"
    assert judge(f"</think>\n<answer>{lines[-1].split(': ')[1]}</answer>", PROBLEM).right


def test_a_problem_without_a_solution_is_reported(playing: list[Player]) -> None:
    console = Console(file=io.StringIO(), width=100)
    play_one(playing, Problem((1, 1), 50), Sampling(), console)
    assert text_of(console).splitlines()[-1] == "exact solver: there is no solution"


def test_a_stopped_search_for_a_solution_is_reported(playing: list[Player], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mini_r1.tasks.countdown.solver.MAX_STEPS", 1)
    monkeypatch.setattr("mini_r1.tasks.countdown.solver.solvable.__defaults__", (1,))
    problem, console = Problem((8, 3, 7, 5), 9999), Console(file=io.StringIO(), width=100)
    play_one(playing, problem, Sampling(), console)
    assert text_of(console).splitlines()[-1] == "exact solver: no solution found; the search was stopped"
    found = play_one_as_json(playing, problem, Sampling())
    assert (found["solution"], found["solvable"]) == (None, None)


def test_a_models_text_is_text_while_it_comes_and_at_the_end() -> None:
    answer = Answer("trained", "\x1b[2Jname", [1, 2], HOSTILE)
    coming = Console(file=io.StringIO(), width=120)
    coming.print(side_by_side([answer], coming, 5))
    answer.verdict = judge(HOSTILE, PROBLEM)
    console = Console(file=io.StringIO(), width=120)
    console.print(side_by_side([answer], console))
    for text in (text_of(coming), text_of(console)):
        assert not set(text) & set("\x1b\x07\x00\u202e\ud800\x9b")
        assert "<script>x</script>" in text
        assert "[bold]b[/bold]" in text


def test_a_long_answer_shows_its_end_while_it_comes_and_all_of_it_then() -> None:
    answer = Answer("trained", "trained", [1], "\n".join(f"line {i}." for i in range(200)) + "x" * (1 << 20))
    coming = Console(file=io.StringIO(), width=80)
    coming.print(side_by_side([answer], coming, 5))
    assert "line 3." not in text_of(coming)
    assert len(text_of(coming).splitlines()) == 5 + 2
    whole = Console(file=io.StringIO(), width=80)
    whole.print(side_by_side([answer], whole))
    assert "line 3." in text_of(whole)
    assert text_of(whole).count("x") == 1 << 20


def test_the_end_of_a_long_paragraph_is_visible_while_it_comes() -> None:
    """One line of the model may fill the screen many times; its newest part must be visible."""
    words = " ".join(f"word{i}" for i in range(500))
    both = [Answer(name, name, [1], words) for name in ("untrained", "trained")]
    for width, panels_high in ((100, 1), (40, 2)):
        console = Console(file=io.StringIO(), width=width)
        console.print(side_by_side(both, console, 10))
        text = text_of(console)
        assert text.count("word499") == 2
        assert "word3 " not in text
        assert len(text.splitlines()) <= 10 + 2 * panels_high


def test_answers_are_below_each_other_on_a_narrow_terminal() -> None:
    both = [Answer(name, name, [1], "3 + 9") for name in ("untrained", "trained")]
    heads = []
    for width in (40, 80):
        console = Console(file=io.StringIO(), width=width)
        console.print(side_by_side(both, console))
        heads.append(["untrained" in line or " trained" in line for line in text_of(console).splitlines()].count(True))
    assert heads == [2, 1]


def test_on_a_terminal_the_answers_grow(playing: list[Player]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
    play_one(playing, PROBLEM, Sampling(), console)
    assert "12 tokens" in text_of(console)


# --- asking ---


def test_a_wrong_input_is_reported_and_asked_again(playing: list[Player]) -> None:
    typed: Iterator[str | None] = iter(["3 x -> 1", "3 5", "many", "3 5 -> 8", "\x1b[A", "q", "3 5 9 -> 1"])
    console = Console(file=io.StringIO(), width=100)
    asked: list[str] = []

    def ask(question: str) -> str | None:
        asked.append(question)
        return next(typed)

    play(playing, Sampling(), console, ask)
    text = text_of(console)
    assert "a number is a whole number, such as 7; found 'x'" in text
    assert "a target is a whole number, such as 7; found 'many'" in text
    assert text.count("exact solver: ") == 1
    assert "3 + 5 = 8" in text
    assert "\x1b" not in text
    assert next(typed) == "3 5 9 -> 1"  # q ended it
    assert asked.count("target: ") == 1


def test_the_end_of_the_input_ends_the_session(playing: list[Player]) -> None:
    console, asked = Console(file=io.StringIO()), list[str]()
    play(playing, Sampling(), console, asked.append)
    assert len(asked) == 1
    assert "exact solver" not in text_of(console)


def test_a_number_that_the_tokenizer_does_not_know_is_refused(playing: list[Player]) -> None:
    playing[0]._tokenizer.unk_token_id = playing[0]._tokenizer("7", add_special_tokens=False)["input_ids"][0]
    with pytest.raises(KitError, match="this model cannot read 7"):
        playing[0].refuse(Problem((7, 5), 1))
    playing[0].refuse(PROBLEM)


# --- which models ---


def test_only_the_trained_model_plays_without_a_starting_point(run: RunDir, tmp_path: Path) -> None:
    lines: list[str] = []
    for start in (StartingPoint(None, None, "it was not kept"), StartingPoint(str(tmp_path / "gone"), None, "x")):
        (alone,) = load_players(run, 3, start, lines.append)
        assert (alone.name, alone.title) == ("trained", "trained, step 3")
    assert lines[0] == "only the trained model plays: it was not kept"
    assert "cannot load the model" in lines[1]


def test_a_missing_or_damaged_snapshot_is_refused(run: RunDir) -> None:
    start = StartingPoint(None, None, "")
    with pytest.raises(KitError, match="no complete snapshot of step 4; there are: 3, 6"):
        load_players(run, 4, start, print)
    weights = run.snapshots / "step-6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(KitError, match="is damaged"):
        load_players(run, None, start, print)


# --- the command ---


def test_json_is_one_object(playing: list[Player]) -> None:
    found = json.loads(json.dumps(play_one_as_json(playing, PROBLEM, Sampling())))
    assert (found["nums"], found["target"], found["solution"]) == ([3, 5, 9], 1, "(9 - 5) - 3")
    assert found["solvable"] is True
    assert set(found["answers"]) == {"untrained", "trained"}
    answer = found["answers"]["trained"]
    assert answer["right"] == bool(judge(answer["completion"], PROBLEM).right)


def test_ctrl_c_at_the_question_ends_the_session_cleanly(run: RunDir) -> None:
    with subprocess.Popen(
        [*command(), "play", str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline().startswith("Type numbers -> target")
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 143
    assert errors.endswith("interrupted\n")
    assert "Traceback" not in errors


def test_the_command(mini_r1: Kit, run: RunDir, tmp_path: Path) -> None:
    typed = mini_r1("play", run.path, stdin=b"3 \xff\n3 5 -> 8\n")
    assert typed.returncode == 0, typed.stderr
    assert "exact solver: 3 + 5 = 8" in typed.stdout
    assert "a number is a whole number" in typed.stdout
    done = run_forked("play", run.path, "--numbers", "3,5,9", "--target", "1", "--json", folder=tmp_path)
    assert done.code == 0, done.errors
    assert json.loads(done.output)["answers"]["untrained"]["tokens"] <= 12
    for wrong, message in (
        (("--numbers", "3,5"), "--numbers and --target need each other"),
        (("--json",), "--json answers one problem"),
        (("--numbers", "3,x", "--target", "1"), "a number is a whole number, such as 7; found 'x'"),
    ):
        refused = run_forked("play", run.path, *wrong, folder=tmp_path)
        assert (refused.code, message in refused.errors) == (78, True)
