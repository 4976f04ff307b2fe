"""Two processes that train one model: one run directory, one decision to stop, the steps of a single process."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from mini_r1.run.reader import read_completions, read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.training import rollout_engines
from mini_r1.training.world import World
from safetensors.torch import load_file

from tests.conftest import ASSETS
from tests.training.workers import Ended, Workers, train, wait_until

STEPS, PROMPTS, GENERATIONS = 4, 4, 4
Start = Callable[..., list[Ended]]
Trained = Callable[..., RunDir]


def train_as_told(given: bool, stop_at: int | None, number: signal.Signals, *args: str | Path) -> None:
    """`mini-r1 train ARGS`.

    Args:
        given: completions that depend on the prompt alone, in place of sampled ones: the same on whichever rank.
        stop_at: the step during whose rollout the last rank, and no other, gets a signal. No rank's rollout ends then,
            unless that rank stops it. With minus that step, the last rank waits for the others when the signal comes.
        number: the signal.
        args: of the command.
    """
    sample, calls = rollout_engines.sample, []

    def counted(model: Any, prompts: Any, config: Any, **kwargs: Any) -> list[list[int]]:
        calls.append(1)
        last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
        if last and len(calls) == stop_at:
            os.kill(os.getpid(), number)
        if last and -len(calls) == stop_at:
            threading.Timer(1, os.kill, (os.getpid(), number)).start()
        elif len(calls) == abs(stop_at or 0) and number != signal.SIGKILL:
            wait_until(kwargs["stop"])
        if not given:
            return sample(model, prompts, config, **kwargs)
        return [drawn(ids, i, kwargs["eos_token_ids"][0]) for ids in prompts for i in range(config.num_generations)]

    rollout_engines.sample = counted
    train(*args)


def drawn(prompt: list[int], index: int, end: int) -> list[int]:
    """A completion of 3 to 20 tokens of the demo's vocabulary, and the end token."""
    rng = random.Random(f"{prompt} {index}")
    return [*(rng.randrange(3, 200) for _ in range(rng.randint(3, 20))), end]


@pytest.fixture(scope="module")
def start(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Run `mini-r1 train` on some ranks to its end, with PROMPTS prompts in an optimizer step."""
    folder = tmp_path_factory.mktemp("ranks")

    def run(
        ranks: int,
        run_dir: Path,
        *,
        begun_with: int | None = None,
        given: bool = False,
        stop_at: int | None = None,
        number: signal.Signals = signal.SIGTERM,
    ) -> list[Ended]:
        accumulation = PROMPTS // (begun_with or ranks)
        recipe = folder / f"accumulation-{accumulation}.yaml"
        values = {
            "model_name_or_path": str(untrained), "dataset_id_or_path": str(ASSETS / "countdown_rows.jsonl"),
            "test_fraction": 0.25, "max_steps": STEPS, "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": accumulation, "num_generations": GENERATIONS, "max_prompt_length": 64,
            "max_completion_length": 24, "lr_scheduler_type": "constant", "beta": 0.01, "temperature": 1.0,
            "max_tokens_per_micro_batch": 150,  # two or three completions, so that ranks need unlike numbers of them
            # Plain SGD: Adam's first steps make the sign of a rounding error as large as a gradient.
            "optim": "sgd", "learning_rate": 0.05, "save_steps": 2, "seed": 3,
            # An untrained model is never right: a random reward makes the groups differ.
            "rewards": {"format": 1.0, "equation": 1.0, "random": 1.0},
        }  # fmt: skip
        recipe.write_text(json.dumps(values))  # JSON is YAML
        args = (given, stop_at, number, recipe, "--run-dir", run_dir)
        with Workers(ranks, train_as_told, *args, folder=folder) as workers:
            return workers.wait()

    return run


@pytest.fixture(scope="module")
def trained(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run directory of such ranks, each kind trained once: not to be written to."""
    runs: dict[tuple[int, bool, int | None], RunDir] = {}

    def get(ranks: int, *, given: bool = False, stop_at: int | None = None) -> RunDir:
        kind = (ranks, given, stop_at)
        if kind not in runs:
            runs[kind] = RunDir(tmp_path_factory.mktemp("run") / "run")
            all_ended(start(ranks, runs[kind].path, given=given, stop_at=stop_at), 143 if stop_at else 0)
        return runs[kind]

    return get


def all_ended(ranks: list[Ended], code: int) -> None:
    said = "\n".join(f"--- rank {rank}\n{ended.errors}{ended.output}" for rank, ended in enumerate(ranks))
    assert [ended.code for ended in ranks] == [code] * len(ranks), said


def copied(run: RunDir, tmp_path: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(run.path, tmp_path / "run")))


def weights(run: RunDir, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoints / f"step-{step}" / "model.safetensors")


def lasting(run: RunDir) -> list[dict[str, Any]]:
    """The logged rows without what depends on the clock."""
    return [{k: v for k, v in row.items() if not k.startswith(("time", "tokens_per"))} for row in read_metrics(run)]


def close(run: RunDir, whole: RunDir) -> None:
    """Assert that both took the same steps, but for the order in which numbers were added."""
    assert [row["step"] for row in read_metrics(run)] == [row["step"] for row in read_metrics(whole)] == [1, 2, 3, 4]
    for row, expected in zip(read_metrics(run), read_metrics(whole), strict=True):
        for name in ("loss", "grad_norm", "kl", "reward", "reward_std", "completion_length", "learning_rate"):
            assert row[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), (row["step"], name)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(run)[name], tensor, rtol=1e-4, atol=1e-6)


# --- one run directory ---


def test_ranks_write_one_run_directory(trained: Trained) -> None:
    run = trained(2)
    state = run.read_state()
    assert (state["state"], state["step"], state["exit_code"]) == ("finished", STEPS, 0)
    assert [path.name for path in run.attempts.iterdir()] == ["1"]
    assert sorted(path.name for path in (run.attempts / "1").glob("rank-*")) == ["rank-0.log", "rank-1.log"]
    assert [attempt["workers"] for attempt in run.read_record()["attempts"]] == [2]
    assert len(list(run.tensorboard.glob("events.*"))) == 1
    assert [saved.step for saved in run.complete_checkpoints()] == [4, 2]


def test_every_rank_s_completions_are_recorded_and_counted(trained: Trained) -> None:
    run = trained(2)
    records = list(read_completions(run))
    assert Counter(record["step"] for record in records) == dict.fromkeys(range(1, STEPS + 1), PROMPTS * GENERATIONS)
    for row in read_metrics(run):
        own = [record for record in records if record["step"] == row["step"]]
        assert len({record["prompt"] for record in own}) == PROMPTS
        for of_one_rank in (own[: len(own) // 2], own[len(own) // 2 :]):
            assert len({record["completion"] for record in of_one_rank}) > 1
        assert row["reward"] == pytest.approx(sum(record["reward"] for record in own) / len(own))
        assert row["completion_length"] == pytest.approx(sum(record["tokens"] for record in own) / len(own))


def train_with_a_hanging_exit(*args: str | Path) -> None:
    """`mini-r1 train ARGS`, where a process group cannot be destroyed: NCCL aborts while peers are inside kernels."""
    torch.distributed.destroy_process_group = lambda: wait_until(lambda: False, 300)
    train(*args)


def test_an_error_on_rank_0_ends_every_rank_with_its_message_and_without_a_collective(
    untrained: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"model_name_or_path": str(untrained), "max_steps": 1}))
    args = (recipe, "--run-dir", tmp_path / "run")
    with Workers(2, train_with_a_hanging_exit, *args, folder=tmp_path / "logs") as workers:
        ranks = workers.wait(60)
    all_ended(ranks, 78)
    assert "is not empty and holds no run" in ranks[0].errors


def use_default_timeouts(seconds: int) -> None:
    """A World, and the timeout of groups that are made without one, as DeepSpeed makes them."""
    World(seconds)
    for backend in ("nccl", "gloo"):
        assert torch.distributed.distributed_c10d._get_default_timeout(backend) == timedelta(seconds=seconds), backend
    group = torch.distributed.new_group(range(2))
    if os.environ["RANK"] == "1":
        wait_until(lambda: Path("first-gave-up").exists())
        return
    with pytest.raises(RuntimeError, match=f"{seconds}000ms"):
        torch.distributed.barrier(group=group)
    Path("first-gave-up").touch()


def test_groups_that_others_make_wait_as_long_as_ddp_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Workers(2, use_default_timeouts, 2, folder=tmp_path / "logs") as workers:
        all_ended(workers.wait(60), 0)


def meet_and_leave(folder: Path, times: int) -> None:
    for time in range(times):
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/{time}", timeout=timedelta(seconds=30),
            rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]),
        )  # fmt: skip
        world = World(30)
        assert world.any(world.main)
        world.leave()
        PartialState._reset_state()


def test_leaving_never_hangs(tmp_path: Path) -> None:
    """Destroying a gloo group of torch 2.5.1 does, sooner or later."""
    with Workers(2, meet_and_leave, tmp_path, 40, folder=tmp_path) as workers:
        all_ended(workers.wait(), 0)


# --- the steps of a single process ---


def test_two_ranks_equal_one_rank_with_twice_the_accumulation(trained: Trained, untrained: Path) -> None:
    one, two = trained(1, given=True), trained(2, given=True)
    close(two, one)
    before = load_file(untrained / "model.safetensors")
    assert any(not torch.allclose(tensor, before[name], atol=1e-3) for name, tensor in weights(one).items())


# --- stopped and continued ---


def test_a_signal_to_one_rank_stops_the_rollouts_of_all_at_the_same_step(trained: Trained) -> None:
    run = trained(2, stop_at=4)
    state = run.read_state()
    assert (state["state"], state["step"], state["exit_code"]) == ("interrupted", 3, 143)
    assert [saved.step for saved in run.complete_checkpoints()] == [3, 2]


def test_a_rank_waiting_for_the_others_passes_its_signal_on(trained: Trained) -> None:
    state = trained(2, stop_at=-4).read_state()
    assert (state["state"], state["step"], state["exit_code"]) == ("interrupted", 3, 143)


def test_stopped_ranks_resume_to_the_same_end(trained: Trained, start: Start, tmp_path: Path) -> None:
    run, whole = copied(trained(2, stop_at=4), tmp_path), trained(2)
    all_ended(start(2, run.path), 0)
    assert lasting(run) == lasting(whole)
    assert list(read_completions(run)) == list(read_completions(whole))
    for name, tensor in weights(whole).items():
        assert tensor.equal(weights(run)[name]), name
    assert sorted(path.name for path in (run.attempts / "2").glob("rank-*")) == ["rank-0.log", "rank-1.log"]


def test_a_rank_that_loses_another_exits_150_and_the_run_can_be_resumed(
    trained: Trained, start: Start, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    survivor, killed = start(2, run.path, stop_at=4, number=signal.SIGKILL)
    assert killed.code == -signal.SIGKILL
    assert survivor.code == 150, survivor.errors
    assert "another worker is gone" in survivor.errors
    assert "Traceback" not in survivor.errors
    state = run.read_state()
    assert (state["state"], state["step"], state["exit_code"]) == ("failed", 3, 150)
    all_ended(start(2, run.path), 0)
    assert lasting(run) == lasting(trained(2))


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_ranks_keeps_the_prompts_of_a_step(
    trained: Trained, start: Start, tmp_path: Path, before: int, after: int
) -> None:
    run = copied(trained(before, given=True, stop_at=3), tmp_path)
    assert run.read_state()["step"] == 2
    all_ended(start(after, run.path, begun_with=before, given=True), 0)
    assert [attempt["workers"] for attempt in run.read_record()["attempts"]] == [before, after]
    close(run, trained(1, given=True))


def test_ranks_that_cannot_share_the_prompts_evenly_are_refused(trained: Trained, start: Start, tmp_path: Path) -> None:
    run = copied(trained(2, given=True, stop_at=3), tmp_path)
    ranks = start(3, run.path, begun_with=2, given=True)
    all_ended(ranks, 78)
    assert f"an optimizer step of this run has {PROMPTS} prompts, and 3 workers" in ranks[0].errors
    assert "start with 1, 2, 4 workers" in ranks[0].errors
    assert run.read_state()["state"] == "interrupted"
    assert [path.name for path in run.attempts.iterdir()] == ["1"]
