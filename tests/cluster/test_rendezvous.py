"""Launchers that meet: over the real network stack, all in one process."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mini_r1.errors import ExitCode, KitError
from mini_r1.launch import peers as peers_module
from mini_r1.launch import rendezvous
from mini_r1.launch.channel import MAX_BYTES, Channel, Gone
from mini_r1.launch.peers import Ending, PeerProblem, Peers, agree
from mini_r1.launch.rendezvous import Introduction, Meeting
from mini_r1.launch.stop_order import StopOrder
from mini_r1.machine.nodes import Nodes, free_port

HELLO = Introduction(
    index=0, host="h", devices=("0",), on_cpu=True, recipe={"seed": 1, "beta": 0.1, "--deepspeed": "auto"},
    versions={"torch": "2.5.1"},
)  # fmt: skip


class Node(threading.Thread):
    """One launcher's part of a meeting, and its outcome."""

    def __init__(self, index: int, count: int, port: int, run_dir: Path, **changes: Any) -> None:
        super().__init__(daemon=True)
        self.stop = StopOrder()
        self.outcome: Any = None
        self.channels: dict[int, Channel] = {}
        environment = {"MINI_R1_JOB_TOKEN": changes.pop("token", "a secret"), **changes.pop("environment", {})}
        timeout = changes.pop("timeout_s", 60)
        nodes = Nodes(count, index, changes.pop("address", "127.0.0.1"), port, "a test", None)
        self.said: list[str] = []
        self._meeting = Meeting(nodes, run_dir, environment, self.said.append, self.stop, timeout)
        self._me = replace(HELLO, **{"index": index, **changes})
        self.start()

    def run(self) -> None:
        def decide(devices: Any) -> dict[str, Any]:
            return {"devices": [list(ids) for ids in devices]}

        try:
            self.channels, self.outcome = self._meeting.hold(self._me, decide)
        except KitError as error:
            self.outcome = error

    def wait(self) -> Any:
        self.join(timeout=90)
        assert not self.is_alive()
        return self.outcome


@pytest.fixture
def port() -> int:
    return free_port()


def refused(*nodes: Node) -> str:
    """Return the message with which all were refused, with exit code 78."""
    errors = [node.wait() for node in nodes]
    assert all(isinstance(error, KitError) for error in errors), errors
    assert {error.exit_code for error in errors} == {ExitCode.CONFIG}
    assert len({error.message for error in errors}) == 1
    return str(errors[0].message)


def test_all_nodes_get_the_same_decision_and_the_run_directory_stays_clean(port: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    late = [Node(index, 3, port, run, devices=["0"] * (index + 1)) for index in (2, 1)]
    time.sleep(1)  # node 0 comes last
    nodes = [Node(0, 3, port, run), *late]
    assert [node.wait() for node in nodes] == [{"devices": [["0"], ["0", "0"], ["0", "0", "0"]]}] * 3
    assert sorted(nodes[0].channels) == [1, 2]
    assert not run.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": {"seed": 2, "beta": 0.1}}, "seed is 1 on node 0 and 2 on node 1"),
        ({"recipe": {"seed": 1, "beta": 0.1, "gamma": 3}}, "gamma is None on node 0 and 3 on node 1"),
        ({"recipe": {**HELLO.recipe, "--deepspeed": "zero3"}}, "--deepspeed is auto on node 0 and zero3 on node 1"),
        ({"recipe": {**HELLO.recipe, "--vllm-devices": "2"}}, "--vllm-devices is None on node 0 and 2 on node 1"),
        ({"on_cpu": False}, "one has GPUs"),
        ({"error": "the recipe is wrong", "error_code": 78}, "node 1 (h): the recipe is wrong"),
    ],
)
def test_nodes_that_disagree_are_refused_on_all(
    port: int, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    nodes = [Node(0, 2, port, tmp_path), Node(1, 2, port, tmp_path, **changes)]
    assert message in refused(*nodes)


@pytest.mark.parametrize("changes", [{"versions": {"torch": "2.6"}}, {"error": "no memory", "error_code": 150}])
def test_errors_of_a_node_exit_150(port: int, tmp_path: Path, changes: dict[str, Any]) -> None:
    nodes = [Node(0, 2, port, tmp_path), Node(1, 2, port, tmp_path, **changes)]
    assert [node.wait().exit_code for node in nodes] == [ExitCode.RETRY] * 2


def test_a_run_directory_that_is_not_shared_is_refused_on_all(port: int, tmp_path: Path) -> None:
    nodes = [Node(0, 2, port, tmp_path / "a"), Node(1, 2, port, tmp_path / "b")]
    message = refused(*nodes)
    assert "node 1 cannot see what node 0 writes" in message
    assert "one claim, ReadWriteMany" in message
    assert list(tmp_path.iterdir()) == []


def test_strangers_on_the_port_do_not_keep_nodes_out(port: int, tmp_path: Path) -> None:
    first = Node(0, 2, port, tmp_path)
    silent, noisy = _connect(port + 1), _connect(port + 1)
    noisy.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
    assert Node(1, 2, port, tmp_path).wait() == first.wait()
    assert first.wait()["devices"] == [["0"], ["0"]]
    silent.close()
    noisy.close()


def test_a_launcher_of_another_job_is_kept_out(port: int, tmp_path: Path) -> None:
    first = Node(0, 2, port, tmp_path, timeout_s=4)
    second = Node(1, 2, port, tmp_path, token="another", timeout_s=2)
    assert [node.wait().exit_code for node in (first, second)] == [ExitCode.RETRY] * 2
    assert "no launcher of this job" in second.wait().message


def test_a_node_that_does_not_come_is_named(port: int, tmp_path: Path) -> None:
    first, second = Node(0, 3, port, tmp_path, timeout_s=3), Node(1, 3, port, tmp_path)
    assert "node 2 of 3 did not come" in first.wait().message
    assert (second.wait().message, second.wait().exit_code) == (first.wait().message, ExitCode.RETRY)


def test_node_0_that_does_not_come_is_named_with_its_address(port: int, tmp_path: Path) -> None:
    error = Node(1, 2, port, tmp_path, timeout_s=1).wait()
    assert f"127.0.0.1:{port + 1}" in error.message
    assert error.exit_code == ExitCode.RETRY


IN_A_POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}


def test_a_waiting_pod_names_what_to_check_in_kubernetes(port: int, tmp_path: Path) -> None:
    waits = {"timeout_s": 1, "environment": IN_A_POD}
    nowhere = Node(1, 2, port, tmp_path, address="mini-r1-0.mini-r1.invalid", **waits).wait()
    assert "publishNotReadyAddresses: true" in nowhere.message
    unreached = Node(1, 2, port, tmp_path, **waits).wait()
    assert "NetworkPolicy let this job's pods reach one another" in unreached.message
    alone = Node(0, 2, port, tmp_path, **waits).wait()
    assert "ReadWriteMany" in alone.message
    assert {error.exit_code for error in (nowhere, unreached, alone)} == {ExitCode.RETRY}


def test_outside_a_pod_kubernetes_is_not_mentioned(port: int, tmp_path: Path) -> None:
    for index, place in ((1, {"address": "mini-r1-0.mini-r1.invalid"}), (1, {}), (0, {})):
        node = Node(index, 2, port, tmp_path, timeout_s=1, **place)
        assert "Kubernetes" not in node.wait().message
        assert "Kubernetes" not in "".join(node.said)


def test_a_long_wait_is_reported_once_with_a_hint(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "REPORT_EVERY_S", 0.1)
    monkeypatch.setattr(rendezvous, "HINT_AFTER_S", 1.0)
    node = Node(0, 2, port, tmp_path, timeout_s=3, environment=IN_A_POD)
    node.wait()
    hinted = ["NetworkPolicy" in line for line in node.said]
    assert hinted.count(True) == 1
    assert not hinted[0]


def test_a_pod_with_another_secret_gets_a_hint(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "STRANGER_TIMEOUT_S", 1.0)
    first = Node(0, 2, port, tmp_path)
    error = Node(1, 2, port, tmp_path, token="another", environment=IN_A_POD).wait()
    assert "MINI_R1_JOB_TOKEN" in error.message
    assert "a pod keeps the secret it was started with" in error.message
    assert error.exit_code == ExitCode.RETRY
    first.stop.take(signal.SIGTERM)
    assert first.wait().exit_code == ExitCode.INTERRUPTED


@pytest.mark.parametrize("token", ["", "\n"])
def test_an_empty_secret_is_refused(port: int, tmp_path: Path, token: str) -> None:
    """`kubectl create secret --from-file=token=/dev/stdin` makes one from a command that failed."""
    with pytest.raises(KitError, match="MINI_R1_JOB_TOKEN is empty") as caught:
        Node(0, 2, port, tmp_path, token=token)
    assert caught.value.exit_code == ExitCode.CONFIG


def test_a_second_launcher_with_the_same_index_is_refused(port: int, tmp_path: Path) -> None:
    first, second = Node(0, 3, port, tmp_path), Node(1, 3, port, tmp_path)
    time.sleep(1)
    assert "there is a node 1 already" in Node(1, 3, port, tmp_path).wait().message
    Node(2, 3, port, tmp_path)
    assert first.wait() == second.wait()


POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}


@pytest.mark.parametrize(("environment", "code"), [({}, 78), (POD, 150), ({"SLURM_JOB_ID": "7"}, 150)])
def test_an_index_that_stays_taken_is_78_on_a_workstation_and_150_in_a_job(
    port: int, tmp_path: Path, environment: dict[str, str], code: int
) -> None:
    """A stopped node's replacement may come before its old connection is gone."""
    settings = {**environment, "MINI_R1_WAIT_MINUTES": "0"}
    first, second = Node(0, 3, port, tmp_path, environment=settings), Node(1, 3, port, tmp_path, environment=settings)
    time.sleep(1)
    third = Node(1, 3, port, tmp_path, environment=settings).wait()
    assert (third.exit_code, "there is a node 1 already" in third.message) == (code, True)
    Node(2, 3, port, tmp_path, environment=settings)
    assert first.wait() == second.wait()


def test_a_replacement_waits_until_the_old_node_has_left(port: int, tmp_path: Path) -> None:
    first, old = Node(0, 3, port, tmp_path, environment=POD), Node(1, 3, port, tmp_path, environment=POD)
    time.sleep(1)
    new = Node(1, 3, port, tmp_path, environment=POD)
    time.sleep(1)
    assert new.outcome is None
    old.stop.take(signal.SIGTERM)
    assert old.wait().exit_code == ExitCode.INTERRUPTED
    third = Node(2, 3, port, tmp_path, environment=POD)
    assert first.wait() == new.wait() == third.wait()


def test_a_replacement_that_waits_when_all_nodes_have_met_is_150(port: int, tmp_path: Path) -> None:
    first, old = Node(0, 3, port, tmp_path, environment=POD), Node(1, 3, port, tmp_path, environment=POD)
    time.sleep(1)
    new = Node(1, 3, port, tmp_path, environment=POD)
    time.sleep(1)
    third = Node(2, 3, port, tmp_path, environment=POD)
    assert first.wait() == old.wait() == third.wait()
    assert new.wait().exit_code == ExitCode.RETRY


def test_a_signal_ends_the_wait(port: int, tmp_path: Path) -> None:
    nodes = [Node(0, 3, port, tmp_path), Node(1, 3, port, tmp_path)]
    for node in nodes:
        node.stop.take(signal.SIGTERM)
    assert {node.wait().exit_code for node in nodes} <= {ExitCode.INTERRUPTED, ExitCode.RETRY}
    assert nodes[0].wait().exit_code == ExitCode.INTERRUPTED


def test_a_taken_port_is_reported_with_what_to_do(port: int, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", port + 1)):
        error = Node(0, 2, port, tmp_path).wait()
    assert error.exit_code == ExitCode.RETRY
    assert f"port {port + 1}" in error.message
    assert "--port" in error.message


# --- channels ---


def test_messages_arrive_whole_and_in_order() -> None:
    left, right = map(Channel, socket.socketpair())
    sent = [{"n": 1}, {"text": "ü" * 100_000}, {}]
    writer = threading.Thread(target=lambda: [left.send(message) for message in sent])
    writer.start()
    assert [right.receive(30) for _ in sent] == sent
    writer.join()
    with pytest.raises(TimeoutError):
        right.receive(0.05)
    left.close()
    with pytest.raises(Gone):
        right.receive(30)


@pytest.mark.parametrize("data", [b"x" * (MAX_BYTES + 1), b"[]\n", b"{\n", b"\xff\xff\n", b"[" * 100_000 + b"\n"])
def test_an_invalid_message_ends_the_channel(data: bytes) -> None:
    left, right = socket.socketpair()
    writer = threading.Thread(target=lambda: left.sendall(data))
    writer.start()
    with pytest.raises(Gone, match="no valid message"):
        Channel(right).receive(30)
    writer.join()
    left.close()


@pytest.mark.parametrize("keys", [(b"k", b"k"), (b"k", b"other")])
def test_the_proof_needs_the_key(keys: tuple[bytes, bytes]) -> None:
    ends = [Channel(end) for end in socket.socketpair()]
    gone: list[Gone] = []

    def prove(number: int) -> None:
        try:
            ends[number].prove(keys[number], first=number == 0, timeout_s=30)
        except Gone as error:
            gone.append(error)
            ends[number].close()

    threads = [threading.Thread(target=prove, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(gone) == (0 if keys[0] == keys[1] else 2)


def test_an_echo_proves_nothing() -> None:
    left, right = socket.socketpair()

    def echo() -> None:
        while data := right.recv(100):
            right.sendall(data)

    threading.Thread(target=echo, daemon=True).start()
    channel = Channel(left)
    with pytest.raises(Gone):
        channel.prove(b"k", first=True, timeout_s=30)
    channel.close()


# --- the other nodes while workers run ---

Star = Callable[..., list[Peers]]


@pytest.fixture
def star() -> Any:
    """Return a function that connects nodes with node 0 and returns their peers."""
    made: list[Peers] = []

    def make(count: int) -> list[Peers]:
        pairs = [socket.socketpair() for _ in range(1, count)]
        made.append(Peers(0, {i: Channel(pair[0]) for i, pair in enumerate(pairs, 1)}))
        made.extend(Peers(i, {0: Channel(pair[1])}) for i, pair in enumerate(pairs, 1))
        return made

    yield make
    for peers in made:
        peers.close()


def until(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + 60
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_all_nodes_end_with_the_code_that_explains_most(star: Star) -> None:
    nodes = star(3)
    endings = [
        Ending(ExitCode.RETRY, "survived", True),
        Ending(ExitCode.FAILED, "the error"),
        Ending(ExitCode.FINISHED),
    ]
    for peers, ending in zip(nodes, endings, strict=True):
        peers.start()
        peers.report_end(ending)
    assert [until(lambda p=peers: p.result) for peers in nodes] == [Ending(ExitCode.FAILED, "the error")] * 3
    assert [peers.problem for peers in nodes] == [None] * 3


def test_no_node_ends_before_the_last(star: Star) -> None:
    nodes = star(2)
    for peers in nodes:
        peers.start()
    nodes[0].report_end(Ending(ExitCode.FINISHED))
    time.sleep(0.5)
    assert nodes[0].result is None
    nodes[1].report_end(Ending(ExitCode.FINISHED))
    assert [until(lambda p=peers: p.result).code for peers in nodes] == [0, 0]


def test_a_problem_is_reported_to_every_node(star: Star) -> None:
    nodes = star(3)
    for peers in nodes:
        peers.start()
    nodes[2].report_problem("rank 5 hangs", hung=True)
    for peers in nodes[:2]:
        assert until(lambda p=peers: p.problem) == PeerProblem("rank 5 hangs", hung=True)


@pytest.mark.parametrize("lost", [0, 2])
def test_a_node_that_vanishes_is_noticed_by_all(star: Star, lost: int) -> None:
    nodes = star(3)
    for peers in nodes:
        peers.start()
    nodes[lost].close()
    for peers in (node for index, node in enumerate(nodes) if index != lost):
        problem = until(lambda p=peers: p.problem)
        assert problem.lost
        assert problem.text.startswith(f"node {lost} is gone")
        peers.report_end(Ending(ExitCode.RETRY, "", True))
    for peers in (node for index, node in enumerate(nodes) if index != lost):
        ending = until(lambda p=peers: p.result)
        assert (ending.code, ending.text) == (ExitCode.RETRY, problem.text)


def test_a_node_that_falls_silent_is_lost(star: Star, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "SILENCE_S", 2.0)
    nodes = star(2)
    nodes[0].start()  # the other one never does
    assert "nothing was heard" in until(lambda: nodes[0].problem).text


def test_signs_of_life_keep_a_node(star: Star, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "SILENCE_S", 3.0)
    monkeypatch.setattr(peers_module, "PING_EVERY_S", 0.2)
    nodes = star(2)
    for peers in nodes:
        peers.start()
    time.sleep(4)
    assert [peers.problem for peers in nodes] == [None, None]


def test_a_node_alone_agrees_with_itself() -> None:
    peers = Peers(0, {})
    peers.start()
    peers.report_end(Ending(ExitCode.INTERRUPTED))
    assert peers.result == Ending(ExitCode.INTERRUPTED)
    peers.close()


def test_the_ending_is_that_of_the_node_to_blame() -> None:
    survivor = Ending(ExitCode.RETRY, "a collective failed", True)
    assert agree([survivor, Ending(ExitCode.RETRY, "killed")]).text == "killed"
    assert agree([survivor, Ending(ExitCode.CONFIG, "wrong")]).code == 78
    assert agree([Ending(ExitCode.FINISHED), Ending(ExitCode.INTERRUPTED)]).code == 143
    hangs = [Ending(ExitCode.RETRY, "waits", age_s=61), Ending(ExitCode.RETRY, "sleeps", age_s=90)]
    assert agree(hangs).text == "sleeps"


def _connect(port: int) -> socket.socket:
    end = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=5)
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
