"""Two nodes of uneven size, as two hosts: the first with 1 worker and vLLM, the second with 2 workers.

The real vLLM 0.7.0 and DeepSpeed's ZeRO-3, by `mini-r1 launch` on each. Each start takes most of a minute, so each run
is made to tell several things.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from mini_r1.run.reader import read_completions, read_metrics
from mini_r1.run.run_dir import RunDir

from tests.cluster.hosts import LINKS, NAMES, Host, two_hosts, why_none
from tests.cluster.real_stack import (
    STEPS,
    Launch,
    assert_repeated,
    needs_vllm,
    random_model,
    reached,
    same,
    sharding_everything,
    write_recipe,
)

pytestmark = [needs_vllm, pytest.mark.real]

GONE_S = 60
"""Seconds within which a job ends whose node has vanished."""


class Cluster:
    """Both hosts, and the job that runs on them."""

    def __init__(self, hosts: tuple[Host, Host], folder: Path) -> None:
        self.hosts = hosts
        self.folder = folder
        self.run = RunDir(folder / "run")
        model = random_model(folder / "model")
        self.recipe = write_recipe(folder / "recipe.yaml", model, gradient_accumulation_steps=1)
        self.deepspeed = sharding_everything(folder)
        self._launches = 0

    @contextmanager
    def launch(self, run: RunDir) -> Iterator[list[Launch]]:
        """Start the launcher on both hosts."""
        self._launches += 1
        with ExitStack() as stack:
            launches = []
            for index, host in enumerate(self.hosts):
                own_disk = self.folder / f"disk-of-{host.name}"
                own_disk.mkdir(exist_ok=True)
                where = ("--nodes", "2", "--node-index", str(index), "--address", NAMES[0], "--gpus", "2")
                launch = Launch(
                    self.recipe, "--run-dir", run.path, "--deepspeed", self.deepspeed, *where,
                    log=self.folder / f"{self._launches}-{host.name}.txt",
                    environment={"TMPDIR": str(own_disk)},
                    inside=host.inside,
                )  # fmt: skip
                launches.append(stack.enter_context(launch))
            yield launches

    def finish(self, run: RunDir) -> RunDir:
        """Start the launcher on both hosts, and wait until the run is finished."""
        with self.launch(run) as launches:
            assert ends(launches) == [0, 0], said(launches)
        return run


def ends(launches: list[Launch]) -> list[int]:
    return [launch.wait() for launch in launches]


def said(launches: list[Launch]) -> str:
    return "\n".join(f"--- {name}\n{launch.said}" for name, launch in zip(NAMES, launches, strict=True))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = why_none()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("two-nodes")
    with two_hosts(folder) as hosts:
        yield Cluster(hosts, folder)


@pytest.fixture(scope="module")
def run(cluster: Cluster) -> RunDir:
    """Return a finished run: SIGTERM to one node stopped it first, then the second node's link went down."""
    run, second = cluster.run, cluster.hosts[1]
    with cluster.launch(run) as launches:
        launches[0].wait_for(reached(run, 1, "rollout"))
        workers = [launches[0].worker(0), launches[1].worker(1), launches[1].worker(2)]
        links = [worker.environ()["GLOO_SOCKET_IFNAME"] for worker in workers]
        assert links == [LINKS[0], LINKS[1], LINKS[1]]
        assert "GLOO_SOCKET_IFNAME" not in os.environ
        launches[0].vllm()
        launches[1].terminate()
        assert ends(launches) == [143, 143], said(launches)
    assert "3 workers on 2 nodes (1 + 2)" in launches[0].said
    state = run.read_state()
    assert (state["state"], state["exit_code"], state["reason"]) == ("interrupted", 143, "a signal to another worker")
    saved = run.complete_checkpoints()[0]
    assert (saved.step, saved.facts["world_size"]) == (state["step"], 3)
    assert saved.step < 5

    try:  # one step after a save: it is lost, and repeated
        crashed(cluster, run, step=5, vanish=lambda: second.run("ip", "link", "set", LINKS[1], "down"))
    finally:
        second.run("ip", "link", "set", LINKS[1], "up")
    return cluster.finish(run)


@pytest.fixture(scope="module")
def whole(cluster: Cluster) -> RunDir:
    """Return an undisturbed run."""
    return cluster.finish(RunDir(cluster.folder / "whole"))


def test_all_devices_but_one_train_and_their_shards_are_saved(run: RunDir) -> None:
    attempt = run.read_record()["attempts"][0]
    assert (attempt["workers"], attempt["vllm_device"]) == (2 + 2 - 1, "cpu")
    state = run.read_state()
    assert (state["state"], state["step"], state["exit_code"]) == ("finished", STEPS, 0)
    newest = run.complete_checkpoints()[0]
    assert (newest.step, newest.facts["world_size"], newest.facts["zero_stage"]) == (STEPS, 3, 3)
    files = json.loads((newest.path / "manifest.json").read_text())["files"]
    assert len([name for name in files if "optim_states" in name]) == 3
    assert sorted(path.name for path in (run.attempts / "1").glob("*.out")) == [f"rank-{r}.out" for r in range(3)]


def test_the_weights_arrive_at_vllm_from_both_nodes(run: RunDir) -> None:
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["sync/equal"] for row in rows] == [1.0] * STEPS
    assert any(row.get("sync/changed", 0) > 0 for row in rows), "the steps changed nothing to be seen"
    records = list(read_completions(run))
    assert all(len([record for record in records if record["step"] == row["step"]]) == 3 * 4 for row in rows)


def test_a_step_that_was_lost_with_a_node_is_repeated_exactly(run: RunDir) -> None:
    assert_repeated(run, 2, 5)


@pytest.mark.exhaustive
def test_a_run_that_was_stopped_and_lost_a_node_ends_with_the_same_weights(run: RunDir, whole: RunDir) -> None:
    same(run, whole)


@pytest.mark.exhaustive
def test_a_node_that_dies_ends_the_job_and_the_run_resumes_to_the_same_end(cluster: Cluster, whole: RunDir) -> None:
    run = RunDir(cluster.folder / "vanished")
    crashed(cluster, run, step=2, vanish=cluster.hosts[1].kill_all)
    same(cluster.finish(run), whole)


def crashed(cluster: Cluster, run: RunDir, *, step: int, vanish: Callable[[], None]) -> None:
    """Let the second node vanish: within a minute the first reports it and ends, and no process is left."""
    with cluster.launch(run) as (first, second):
        first.wait_for(reached(run, step, "rollout"))
        first.all_processes()
        second.all_processes()
        vllm = first.vllm()
        vanish()
        assert first.wait(GONE_S) == 150, first.said
        assert "node 1 is gone" in first.said
        assert not vllm.is_running() or vllm.status() == psutil.STATUS_ZOMBIE
        assert not cluster.hosts[0].processes()
        # Killed, or cut off and so in the same place as the first.
        assert second.wait(GONE_S) in (-9, 150), second.said
        assert not cluster.hosts[1].processes()
    state = run.read_state()
    assert (state["state"], state["exit_code"]) == ("failed", 150)
    assert "gone" in state["reason"]  # reported by a worker or, if no socket was closed, by its launcher
    assert step <= state["step"] < STEPS


@pytest.mark.exhaustive
def test_a_run_directory_that_is_another_disk_on_the_second_node_is_refused_on_both(cluster: Cluster) -> None:
    run = RunDir(cluster.folder / "not-shared")
    run.path.mkdir()
    second = cluster.hosts[1]
    second.run("mount", "-t", "tmpfs", "own", run.path)
    with cluster.launch(run) as launches:
        assert ends(launches) == [78, 78], said(launches)
    for launch in launches:
        assert "node 1 cannot see what node 0 writes" in launch.said
        assert "--run-dir" in launch.said
    second.run("sh", "-c", 'test -z "$(ls -A "$1")"', "sh", run.path)
    second.run("umount", run.path)
    assert not list(run.path.iterdir())
