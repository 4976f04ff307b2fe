"""`mini-r1 launch` as a user and a scheduler see it: real workers, on slots of the CPU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from mini_r1.errors import ExitCode, KitError
from mini_r1.launch import launcher as launching
from mini_r1.launch.job import LaunchOptions
from mini_r1.machine.control_groups import usable_cores
from mini_r1.machine.nodes import free_port
from mini_r1.run.files import write_json
from mini_r1.run.reader import read_metrics
from mini_r1.run.run_dir import RunDir

from tests.conftest import ASSETS, command, without_times

STEPS = 12
WAIT_S = 300
"""Generous: a worker's imports take 9 s on an idle machine."""


class Launcher:
    """A launcher that runs, with its own scratch directory.

    Args:
        folder: for its scratch directory and what it says.
        args: of the command.
        environment: in addition to the test's own.
    """

    def __init__(self, folder: Path, *args: str | Path | int, **environment: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        env = {**os.environ, "MINI_R1_ACCELERATOR": "cpu", "TMPDIR": str(folder), **environment}
        for name in [name for name in env if name.startswith(("SLURM_", "PET_")) or name == "CUDA_VISIBLE_DEVICES"]:
            del env[name]
        with (folder / "said").open("wb") as said:
            self.process = subprocess.Popen(
                [*command(), "launch", *map(str, args)], env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text(errors="replace")

    def pid_of(self, rank: int) -> int:
        """Return a worker's process id, once it has given a sign of life."""
        return int(self.until(lambda: self._beat(rank))["pid"])

    def until(self, what: Callable[[], Any]) -> Any:
        """Wait until a condition holds while the launcher runs."""
        end = time.monotonic() + WAIT_S
        while not (found := what()):
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.05)
        return found

    def wait(self) -> int:
        """Return its exit code, after checking that it left no process or file."""
        code = self.process.wait(timeout=WAIT_S)
        if code >= 0:
            assert list(self.folder.glob("mini-r1-*")) == [], "a scratch directory was left"
        return code

    def _beat(self, rank: int) -> dict[str, Any] | None:
        for path in self.folder.glob(f"mini-r1-*/rank-{rank}.heartbeat"):
            beat: dict[str, Any] = json.loads(path.read_text())
            return beat
        return None


@pytest.fixture(scope="module")
def recipe(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recipe of cheap steps on real rows, the same for every number of workers that divides 4."""
    values = {
        "model_name_or_path": str(untrained), "dataset_id_or_path": str(ASSETS / "countdown_rows.jsonl"),
        "test_fraction": 0.25, "max_steps": STEPS, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2,
        "num_generations": 4, "max_prompt_length": 64, "max_completion_length": 24, "learning_rate": 1e-3,
        "lr_scheduler_type": "constant", "beta": 0.01, "temperature": 1.0, "save_steps": 4, "seed": 3,
        # An untrained model is never right: random rewards make the completions of a group differ.
        "rewards": {"format": 1.0, "equation": 1.0, "random": 1.0},
    }  # fmt: skip
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launcher]]:
    """Start launchers; those that a failed test leaves are killed."""
    started: list[Launcher] = []

    def start(*args: str | Path | int, **environment: str) -> Launcher:
        started.append(Launcher(tmp_path / f"launcher-{len(started)}", *args, **environment))
        return started[-1]

    yield start
    for launcher in started:
        launcher.process.kill()
        launcher.process.wait()


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Launcher]:
    """Return an undisturbed run of two workers."""
    folder = tmp_path_factory.mktemp("finished")
    launcher = Launcher(folder / "launcher", recipe, "--gpus", 2, "--run-dir", folder / "run")
    assert launcher.wait() == 0, launcher.said
    return RunDir(folder / "run"), launcher


def two_nodes(launch: Callable[..., Launcher], *args: str | Path, slots: tuple[int, int] = (1, 2)) -> list[Launcher]:
    """Start two launchers on this machine, as nodes of different size."""
    port = free_port()
    place = ["--nodes", 2, "--address", "127.0.0.1", "--port", port]
    return [launch(*args, *place, "--node-index", index, "--gpus", count) for index, count in enumerate(slots)]


def under_way(run: RunDir, steps: int = 2) -> bool:
    state = run.read_state()
    return state.get("state") == "running" and state.get("step", 0) >= steps


@contextmanager
def listening() -> Iterator[int]:
    """Take a port, with a free one before it."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        yield port


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone(*pids: int) -> bool:
    end = time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    return not any(map(alive, pids))


# --- one node ---


def test_a_recipe_is_trained_on_all_devices(finished: tuple[RunDir, Launcher]) -> None:
    run, launcher = finished
    state = run.read_state()
    assert (state["state"], state["step"], state["exit_code"]) == ("finished", STEPS, 0)
    assert run.read_record()["attempts"][0]["workers"] == 2
    assert "2 workers, no vLLM" in launcher.said
    assert f"step {STEPS}/{STEPS}" in launcher.said
    assert f"finished at step {STEPS}" in (run.attempts / "1" / "rank-0.out").read_text()
    assert (run.attempts / "1" / "rank-1.out").is_file()


@pytest.mark.real
def test_a_run_that_a_scheduler_stopped_resumes_to_the_same_end(
    launch: Callable[..., Launcher], recipe: Path, finished: tuple[RunDir, Launcher], tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    launcher = launch(recipe, "--gpus", 2, "--run-dir", run.path)
    pids = [launcher.pid_of(rank) for rank in range(2)]
    launcher.until(lambda: under_way(run))
    for pid in (*pids, launcher.process.pid, *pids, launcher.process.pid):
        os.kill(pid, signal.SIGTERM)
    assert launcher.wait() == 143, launcher.said
    state = run.read_state()
    assert (state["state"], state["exit_code"]) == ("interrupted", 143)
    assert run.complete_checkpoints()[0].step == state["step"] < STEPS
    assert launch(recipe, "--gpus", 2, "--run-dir", run.path).wait() == 0
    assert without_times(read_metrics(run)) == without_times(read_metrics(finished[0]))


def test_a_signal_during_the_preflight_interrupts(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = launching.examine_node

    def signalled(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return looked(*args, **options)

    monkeypatch.setattr(launching, "examine_node", signalled)
    order = LaunchOptions(str(recipe), gpus=2, run_dir=tmp_path / "run")
    with pytest.raises(KitError, match="stopped before anything was started") as stopped:
        launching.launch(order, {"PATH": os.environ["PATH"], "MINI_R1_ACCELERATOR": "cpu"}, print)
    assert stopped.value.exit_code == ExitCode.INTERRUPTED


@pytest.mark.real
def test_a_killed_worker_ends_the_job_with_its_last_lines(
    launch: Callable[..., Launcher], recipe: Path, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    launcher = launch(recipe, "--gpus", 2, "--run-dir", run.path, "--set", "max_steps=1000")
    pids = [launcher.pid_of(rank) for rank in range(2)]
    launcher.until(lambda: under_way(run))
    os.kill(pids[0], signal.SIGKILL)
    assert launcher.wait() == 150
    assert "rank 0 on node 0" in launcher.said
    assert "was killed by SIGKILL: out of memory" in launcher.said
    assert "\n  step " in launcher.said.partition("its last lines:")[2]
    state = run.read_state()
    assert (state["state"], state["exit_code"]) == ("failed", 150)
    assert "SIGKILL" in state["reason"]
    assert gone(*pids)


@pytest.mark.exhaustive
def test_workers_do_not_outlive_a_launcher_that_is_killed(
    launch: Callable[..., Launcher], recipe: Path, tmp_path: Path
) -> None:
    launcher = launch(recipe, "--gpus", 2, "--run-dir", tmp_path / "run")
    pids = [launcher.pid_of(rank) for rank in range(2)]
    launcher.process.kill()
    assert gone(*pids)


@pytest.mark.real
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_asked_twice_a_launcher_stops_at_once(
    launch: Callable[..., Launcher], recipe: Path, tmp_path: Path, workers: int
) -> None:
    launcher = launch(recipe, "--gpus", workers, "--run-dir", tmp_path / "run")
    pids = [launcher.pid_of(rank) for rank in range(workers)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # on a fast machine they would end after the first SIGTERM
    launcher.process.send_signal(signal.SIGTERM)
    time.sleep(2.5)
    launcher.process.send_signal(signal.SIGTERM)
    assert launcher.wait() == 143
    assert "stopped at once" in launcher.said
    assert gone(*pids)


SLEEP = "time.sleep(3600)"
RECEIVE = "import torch; torch.distributed.recv(torch.zeros(1), src=0)"  # which rank 0 never sends


@pytest.mark.parametrize(
    ("module", "function", "phase", "blocker"),
    [
        pytest.param("trainer", "score", "score", SLEEP, id="sleeps in a reward", marks=pytest.mark.exhaustive),
        pytest.param("rollout_engines", "sample", "rollout", RECEIVE, id="blocks in a collective"),
    ],
)
@pytest.mark.real
def test_a_rank_that_hangs_is_found_and_its_stack_is_kept(
    launch: Callable[..., Launcher], recipe: Path, tmp_path: Path, module: str, function: str, phase: str, blocker: str
) -> None:
    # Python runs this file in every process: rank 1 stops at its second call of the function.
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        f"""
import os, sys, threading, time

def hanging(function, calls=[]):
    def hanging_function(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            {blocker}
        return function(*args, **kwargs)
    return hanging_function

def wait_for_module():
    while "mini_r1.training.train" not in sys.modules:  # which imports it
        time.sleep(0.001)
    module = None
    while not hasattr(module, "{function}"):
        module = sys.modules.get("mini_r1.training.{module}")
        time.sleep(0.001)
    module.{function} = hanging(module.{function})

if os.environ.get("RANK") == "1":
    threading.Thread(target=wait_for_module, daemon=True).start()
"""
    )
    run = RunDir(tmp_path / "run")
    # Long enough for the imports on a busy machine, during which there are no signs of life: 40 s once were not.
    args = (recipe, "--gpus", 2, "--run-dir", run.path, "--set", "hang_timeout_s=60")
    launcher = launch(*args, PYTHONPATH=os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    assert launcher.wait() == 150
    assert "rank 1 on node 0" in launcher.said
    blamed = next(line for line in launcher.said.splitlines() if f"rank 1: step 1, phase {phase}, silent for" in line)
    assert ("in hanging_function (" in blamed) == (blocker == SLEEP)
    stacks = [run.attempts / "1" / f"rank-{rank}.stack" for rank in range(2)]
    assert "hanging_function" in stacks[1].read_text()
    assert "File " in stacks[0].read_text()
    assert run.read_state()["state"] == "failed"


@pytest.mark.real
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_an_error_that_only_workers_find_exits_78(
    launch: Callable[..., Launcher], recipe: Path, finished: tuple[RunDir, Launcher], tmp_path: Path, workers: int
) -> None:
    # Only rank 0 compares the data with what the run began with.
    run = RunDir(shutil.copytree(finished[0].path, tmp_path / "copy"))
    record = run.read_record()
    write_json(run.run_file, {**record, "data": {**record["data"], "source": "elsewhere"}})
    run.write_state("interrupted", step=STEPS)
    launcher = launch(recipe, "--gpus", workers, "--run-dir", run.path)
    assert launcher.wait() == 78
    assert "rank 0 on node 0" in launcher.said
    assert "ended with exit code 78; its last lines:" in launcher.said
    assert f"the data of {run.path} has changed since the run began" in launcher.said
    assert [saved.step for saved in run.complete_checkpoints()] == [
        saved.step for saved in finished[0].complete_checkpoints()
    ]


def test_a_wrong_recipe_starts_nothing(launch: Callable[..., Launcher], recipe: Path, tmp_path: Path) -> None:
    launcher = launch(recipe, "--gpus", 1, "--run-dir", tmp_path / "run", "--vllm-devices", 2)
    assert launcher.wait() == 78
    assert "--vllm-devices 2, but use_vllm is false" in launcher.said
    assert not (tmp_path / "run").exists()


def test_a_taken_port_exits_150_with_what_to_do(launch: Callable[..., Launcher], recipe: Path, tmp_path: Path) -> None:
    with listening() as port:
        launcher = launch(recipe, "--gpus", 2, "--run-dir", tmp_path / "run", "--port", port)
        assert launcher.wait() == 150
    assert f"port {port}" in launcher.said
    assert "--port" in launcher.said


# --- several nodes ---


@pytest.mark.exhaustive
def test_nodes_of_different_size_train_stop_and_resume(
    launch: Callable[..., Launcher], recipe: Path, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    args = (recipe, "--run-dir", run.path)
    nodes = two_nodes(launch, *args)
    nodes[1].until(lambda: under_way(run))
    nodes[1].process.send_signal(signal.SIGTERM)  # one is enough
    assert [node.wait() for node in nodes] == [143, 143], nodes[0].said + nodes[1].said
    stopped = run.read_state()
    assert (stopped["state"], run.complete_checkpoints()[0].step) == ("interrupted", stopped["step"])
    assert 2 <= stopped["step"] < STEPS
    nodes = two_nodes(launch, *args)
    assert [node.wait() for node in nodes] == [0, 0], nodes[0].said + nodes[1].said
    assert [row["step"] for row in read_metrics(run)] == list(range(1, STEPS + 1))
    assert [attempt["workers"] for attempt in run.read_record()["attempts"]] == [3, 3]
    assert sorted(path.name for path in (run.attempts / "2").glob("*.out")) == [f"rank-{rank}.out" for rank in range(3)]
    assert "3 workers on 2 nodes (1 + 2)" in nodes[0].said


@pytest.mark.real
@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_a_node_that_vanishes_takes_the_other_down(
    launch: Callable[..., Launcher], recipe: Path, tmp_path: Path, lost: int
) -> None:
    run = RunDir(tmp_path / "run")
    nodes = two_nodes(launch, recipe, "--run-dir", run.path, "--set", "max_steps=1000")
    pids = [nodes[0].pid_of(0), nodes[1].pid_of(1), nodes[1].pid_of(2)]
    nodes[1].until(lambda: under_way(run))
    nodes[lost].process.kill()
    assert nodes[1 - lost].wait() == 150
    assert f"node {lost} is gone" in nodes[1 - lost].said
    assert gone(*pids)


def test_nodes_with_different_recipes_are_refused_on_both(
    launch: Callable[..., Launcher], recipe: Path, tmp_path: Path
) -> None:
    other = tmp_path / recipe.name
    shutil.copy(recipe, other)
    place = ["--nodes", 2, "--address", "127.0.0.1", "--port", free_port(), "--gpus", 1, "--run-dir", tmp_path / "run"]
    nodes = [launch(recipe, *place, "--node-index", 0), launch(other, *place, "--node-index", 1, "--set", "seed=4")]
    assert [node.wait() for node in nodes] == [78, 78]
    for node in nodes:
        assert "seed is 3 on node 0 and 4 on node 1" in node.said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("broken", [0, 1])
def test_a_node_that_cannot_read_its_recipe_stops_the_others(
    launch: Callable[..., Launcher], recipe: Path, tmp_path: Path, broken: int
) -> None:
    place = ["--nodes", 2, "--address", "127.0.0.1", "--port", free_port(), "--gpus", 1, "--run-dir", tmp_path / "run"]
    wrong = ["--set", "num_generations=1"]
    nodes = [launch(recipe, *place, "--node-index", index, *(wrong if index == broken else [])) for index in range(2)]
    assert [node.wait() for node in nodes] == [78, 78]
    assert f"node {broken} (" in nodes[1 - broken].said
    assert "num_generations=1: must be at least 2" in nodes[1 - broken].said
    assert not (tmp_path / "run").exists()


@pytest.mark.real
def test_a_run_directory_that_is_not_shared_is_refused_on_both(
    launch: Callable[..., Launcher], recipe: Path, tmp_path: Path
) -> None:
    place = [recipe, "--nodes", 2, "--address", "127.0.0.1", "--port", free_port(), "--gpus", 1]
    nodes = [launch(*place, "--node-index", index, "--run-dir", tmp_path / f"run-{index}") for index in range(2)]
    assert [node.wait() for node in nodes] == [78, 78]
    for node in nodes:
        assert "node 1 cannot see what node 0 writes" in node.said


# --- dry run ---


@pytest.fixture
def dry(
    recipe: Path, mini_r1: Callable[..., subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Return the standard output of `launch --dry-run`."""
    monkeypatch.setenv("MINI_R1_ACCELERATOR", "cpu")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    monkeypatch.setenv("RUN_SECRET", "swordfish")

    def run(*args: str | int | Path) -> str:
        done = mini_r1("launch", recipe, "--dry-run", *map(str, args))
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_dry_run_shows_every_worker_with_reasons(dry: Callable[..., str]) -> None:
    text = dry("--gpus", 2, "--nodes", 2, "--node-index", 0, "--address", "n1")
    assert "node 0: 2 workers" in text
    assert "node 1: 2 workers" in text
    assert "    RANK=3  # this worker among all" in text
    assert "TORCHELASTIC_RUN_ID  # torchrun's" in text
    assert "-m mini_r1 train" in text


@pytest.mark.parametrize("name", ["mini-r1-3b", "auto"])
def test_a_dry_run_takes_gpus_that_are_not_here(
    mini_r1: Callable[..., subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    options = ["--gpus", "4", *(["--gpu-memory", "80"] if name == "auto" else [])]
    done = mini_r1("launch", name, "--dry-run", *options)
    assert done.returncode == 0, done.stderr
    assert "as if they were here" in done.stdout
    assert "3 workers, vLLM on node 0's last device (cuda:3)" in done.stdout
    plan = json.loads(mini_r1("plan", "mini-r1-3b", "--gpus", "4", "--json").stdout)
    assert f"DeepSpeed: {plan['deepspeed']}" in done.stdout
    started = mini_r1("launch", "mini-r1-3b", "--gpus", "4")
    assert started.returncode == 78
    assert "--gpus 4: no GPU here" in started.stderr


def test_a_dry_run_prints_only_the_run_directory(dry: Callable[..., str], tmp_path: Path) -> None:
    assert dry("--print-run-dir", "--run-dir", tmp_path / "of Zoë") == f"{tmp_path}/of Zoë\n"


@pytest.mark.parametrize("options", [["--print-run-dir"], ["--print-run-dir", "--dry-run", "--json"]])
def test_printing_the_run_directory_needs_a_dry_run_without_json(
    recipe: Path, mini_r1: Callable[..., subprocess.CompletedProcess[str]], options: list[str]
) -> None:
    done = mini_r1("launch", recipe, *options)
    assert done.returncode == 78
    assert "--print-run-dir needs --dry-run, without --json" in done.stdout + done.stderr


def test_a_worker_with_a_built_in_model_gets_at_most_two_threads(
    dry: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    facts = json.loads(dry("--gpus", 1, "--json", "--set", "model_name_or_path=builtin:demo"))
    threads = [worker["environment"]["OMP_NUM_THREADS"] for worker in facts["workers"]]
    assert threads == [str(min(2, usable_cores()))]


def test_a_dry_run_in_json(dry: Callable[..., str]) -> None:
    facts = json.loads(dry("--gpus", 2, "--json", "--set", "run_name=swordfish-1"))
    assert (facts["num_processes"], facts["vllm_devices"]) == (2, [])
    assert [worker["environment"]["RANK"] for worker in facts["workers"]] == ["0", "1"]
    assert facts["workers"][0]["environment"]["WORLD_SIZE"] == "2"
    assert set(facts["workers"][0]["reasons"]) == set(facts["workers"][0]["environment"])
    assert all(facts["workers"][0]["reasons"].values())
    assert "run_name=[redacted]-1" in facts["workers"][0]["command"]
    assert facts["taken_out"] == {"TORCHELASTIC_RUN_ID": "torchrun's: workers would look for its agent"}
