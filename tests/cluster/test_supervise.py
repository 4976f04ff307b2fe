"""How the launcher handles workers that end, die, hang, or are asked to stop."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_r1.errors import ExitCode
from mini_r1.launch.hang import Heartbeats, top_frame
from mini_r1.launch.peers import Ending, Peers
from mini_r1.launch.stop_order import StopOrder
from mini_r1.launch.supervise import Supervision
from mini_r1.launch.worker_environment import Variable, WorkerStart
from mini_r1.launch.workers import start_workers
from mini_r1.run.run_dir import RunDir

STAND_IN = Path(__file__).parent / "stand_in.py"
SECRET = "hf_" + "x" * 30


class Node:
    """One node's supervision of stand-ins, each with a task."""

    def __init__(self, tmp_path: Path, hang_timeout_s: float = 60) -> None:
        self.folder = tmp_path / "scratch"
        self.folder.mkdir()
        self.run = RunDir(tmp_path / "run")
        self.stop = StopOrder()
        self.said: list[str] = []
        self.hang_timeout_s = hang_timeout_s

    def watch(self, *tasks: str, after: Callable[[], None] | None = None) -> Ending:
        """Start a worker for each task and watch them; `after` runs in a thread."""
        variables = (Variable("MINI_R1_SUPERVISOR", str(self.folder), ""),)
        starts = [
            WorkerStart(
                rank, 0, (sys.executable, str(STAND_IN), *task.split()), (*variables, Variable("RANK", str(rank), ""))
            )
            for rank, task in enumerate(tasks)
        ]
        launchers = {**os.environ, "HF_TOKEN": SECRET}
        self.workers = start_workers(starts, launchers, self.said.append)
        peers = Peers(0, {})
        supervision = Supervision(
            self.workers, self.folder, self.run, peers, self.stop, "node 0 (here)", self.hang_timeout_s,
            self.said.append,
        )  # fmt: skip
        if after is not None:
            threading.Thread(target=after).start()
        ending = supervision.watch()
        assert all(worker.poll() is not None for worker in self.workers)
        return ending

    def wait_for(self, *ranks: int) -> None:
        """Wait until these ranks have given a sign of life."""
        end = time.monotonic() + 60
        while not all((self.folder / f"rank-{rank}.heartbeat").exists() for rank in ranks):
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize(
    ("tasks", "code", "blamed"),
    [
        (("exit 0", "exit 0"), 0, None),
        (("exit 143", "exit 143"), 143, None),
        (("exit 143", "exit 0"), 143, None),
        (("exit 78", "exit 78"), 78, 0),
        (("exit 150", "exit 78"), 78, 1),  # a survivor exits with 150
        (("exit 150", "exit 1"), 1, 1),
        (("exit 150", "exit 150"), 150, 0),
        (("exit 150", "die 9"), 150, 1),
        (("exit 150", "die 11"), 150, 1),
        (("exit 3", "exit 0"), 1, 0),  # not one of the kit's codes
    ],
)
def test_exit_codes_of_workers_become_one_and_the_culprit_is_named(
    node: Node, tasks: tuple[str, ...], code: int, blamed: int | None
) -> None:
    ending = node.watch(*tasks)
    assert ending.code == code
    if blamed is None:
        assert ending.text == ""
    else:
        assert ending.text.startswith(f"rank {blamed} on node 0 (here) ")
        assert f"rank {blamed} is here" in ending.text


def test_a_killed_worker_takes_the_others_down_and_memory_is_suspected(node: Node) -> None:
    ending = node.watch("wait 1", "die 9")
    assert (ending.code, ending.survived) == (ExitCode.RETRY, False)
    assert "SIGKILL: out of memory is the usual reason" in ending.text


def test_the_last_lines_of_the_failed_worker_are_shown(node: Node) -> None:
    ending = node.watch("exit 1")
    assert ending.text.endswith("rank 0 is here\n  first line\n  last line")


def test_processes_left_behind_are_ended(node: Node, tmp_path: Path) -> None:
    assert node.watch(f"child {tmp_path / 'pid'}").code == 0
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 30
    while _alive(pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_signals_are_ignored_until_a_worker_has_its_handlers(node: Node) -> None:
    node.watch("signals")
    assert "ignored: SIGTERM SIGINT SIGUSR1" in node.said


def test_rank_0_is_shown_without_secrets_and_escapes(node: Node) -> None:
    ending = node.watch("print HF_TOKEN", "print HF_TOKEN")
    assert ending.code == 0
    assert node.said == ["rank 0 is here", r"[redacted] \x1b[31m"]


def test_output_goes_to_the_attempt_with_what_came_before_it_was_known(node: Node) -> None:
    attempt = node.run.attempts / "4"
    assert node.watch(f"log {attempt}").code == 0
    assert (attempt / "rank-0.out").read_text() == "rank 0 is here\nbefore the attempt\nin the attempt\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_asks_all_workers_to_stop_in_order(node: Node, number: signal.Signals) -> None:
    def ask() -> None:
        node.wait_for(0, 1)
        node.stop.take(number)

    assert node.watch("work", "work", after=ask) == Ending(ExitCode.INTERRUPTED)
    assert f"stopping for {number.name}" in node.said


def test_a_second_signal_stops_at_once(node: Node) -> None:
    def ask_twice() -> None:
        node.wait_for(0, 1)
        node.stop.take(signal.SIGTERM)
        time.sleep(2.5)
        node.stop.take(signal.SIGTERM)

    ending = node.watch("deaf", "work", after=ask_twice)
    assert ending.code == ExitCode.INTERRUPTED
    assert "at once" in ending.text
    assert node.workers[0].poll() == -signal.SIGKILL
    assert node.workers[1].poll() == 143


@pytest.mark.parametrize(
    ("signals", "at_once"),
    [
        ([(0, signal.SIGTERM)], False),
        ([(0, signal.SIGTERM), (1.5, signal.SIGTERM)], False),  # a scheduler signals the process and its group
        ([(0, signal.SIGTERM), (3, signal.SIGTERM)], True),
        ([(0, signal.SIGINT), (3, signal.SIGTERM)], True),
        ([(0, signal.SIGUSR1), (30, signal.SIGUSR1)], False),
        ([(0, signal.SIGUSR1), (30, signal.SIGTERM)], False),  # the notice, and then the time limit
        ([(0, signal.SIGUSR1), (30, signal.SIGTERM), (33, signal.SIGTERM)], True),
        ([(0, signal.SIGTERM), (30, signal.SIGUSR1)], False),
    ],
)
def test_which_signals_mean_at_once(signals: list[tuple[float, signal.Signals]], at_once: bool) -> None:
    now = 0.0
    stop = StopOrder(lambda: now)
    assert stop.name is None
    for now, number in signals:  # noqa: B007  the clock reads it
        stop.take(number)
    assert (stop.name, stop.at_once) == (signals[0][1].name, at_once)


def test_a_hang_is_ended_and_the_stacks_show_the_culprit(tmp_path: Path) -> None:
    node = Node(tmp_path, hang_timeout_s=3)
    ending = node.watch("wait 5", "hang 5", "wait 5")
    assert ending.code == ExitCode.RETRY
    assert ending.age_s > 3
    first, second, *_ = ending.text.splitlines()
    assert first.startswith("rank 1 on node 0 (here) hangs: no sign of life for ")
    assert second.startswith("rank 1: step 7, phase reward, silent for ")
    assert "in sleep_in_a_reward (" in second
    for rank in range(3):
        assert "File " in (node.run.attempts / "5" / f"rank-{rank}.stack").read_text()
        assert f"rank {rank}: step" in ending.text


def test_a_rollout_that_vllm_samples_during_a_phase_is_named(tmp_path: Path) -> None:
    sign: dict[str, object] = {"step": 3, "phase": "update", "attempt": 1, "time": 1.0}
    beats = Heartbeats(tmp_path, range(1))
    for in_flight, said in (
        ({"in_flight": 5}, "update while vLLM samples for step 5"),
        ({}, "update"),
        ({"in_flight": "x"}, "update"),
    ):
        sign["time"] = time.time()
        (tmp_path / "rank-0.heartbeat").write_text(json.dumps(sign | in_flight))
        beats.read()
        assert beats.describe({}, 0).startswith(f"rank 0: step 3, phase {said}, silent for 0 s")


def test_a_worker_that_never_began_is_hung_too(tmp_path: Path) -> None:
    ending = Node(tmp_path, hang_timeout_s=2).watch("silent")
    assert ending.code == ExitCode.RETRY
    assert "rank 0: no sign of life since its start" in ending.text


def test_a_rank_that_waits_in_a_collective_is_not_the_culprit(tmp_path: Path) -> None:
    for rank, written in enumerate((2.0, 1.0, 3.0)):  # all between two reads of the launcher
        sign = {"step": 0, "phase": "score", "attempt": 1, "time": written}
        (tmp_path / f"rank-{rank}.heartbeat").write_text(json.dumps(sign))
    beats = Heartbeats(tmp_path, range(3))
    beats.read()
    waiting = (
        'Thread 0x1 (most recent call first):\n  File "/x/torch/distributed/distributed_c10d.py", line 1 in gather\n'
    )
    sleeping = 'Thread 0x1 (most recent call first):\n  File "/x/rewards.py", line 1 in slow\n'
    assert beats.find_culprit(range(3), {0: waiting, 1: waiting, 2: sleeping}) == 2
    assert beats.find_culprit(range(3), {0: waiting, 1: waiting, 2: waiting}) == 1
    assert beats.find_culprit([0, 2], {}) == 0


def test_the_top_frame_is_the_main_threads_outside_the_standard_library() -> None:
    stack = f"""Thread 0x01 (most recent call first):
  File "/x/monitor.py", line 4 in watch

Current thread 0x02 (most recent call first):
  File "{os.__file__.replace("os.py", "threading.py")}", line 320 in wait
  File "/x/rewards.py", line 12 in slow
  File "/x/run.py", line 3 in main
"""
    assert top_frame(stack) == "slow (/x/rewards.py:12)"
    assert top_frame("") == "no Python frame"


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
