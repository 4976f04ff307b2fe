"""Launchers of several nodes meet before any of them starts a worker: all must be there, and agree.

Node 0 listens on the port after torch's. The others connect and send their devices and what they were started with.
Node 0 compares, has all look for a file in the run directory, and decides or refuses. The connections stay: peers.py.
"""

import hashlib
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mini_r1.console import printable
from mini_r1.errors import Cause, ExitCode, KitError
from mini_r1.launch.channel import Channel, Gone, listen
from mini_r1.launch.stop_order import StopOrder
from mini_r1.machine.nodes import JOB_TOKEN, Nodes
from mini_r1.machine.paths import in_pod
from mini_r1.machine.schedulers import Patience, is_scheduled

MEET_TIMEOUT_S = 900.0  # seconds for all nodes to come: one may have to pull an image that the others have
STRANGER_TIMEOUT_S = 60.0  # seconds until a node gives up on a port where another program answers
PROOF_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
CANARY_TIMEOUT_S = 15.0
"""Seconds for a file that another node wrote to appear: NFS clients cache what is not there (acdirmax is 60)."""
REPORT_EVERY_S = 15.0
HINT_AFTER_S = 60.0  # seconds until a report has a hint: a pod comes up in less, unless its image has to be pulled

# For Kubernetes only: a launcher in a pod cannot see why nodes do not meet.
NO_NAME = (
    "In Kubernetes: is node 0's pod running, does a headless Service with publishNotReadyAddresses: true give it this"
    " name (the pods' subdomain is the Service's name), and does a NetworkPolicy let pods ask the DNS?"
)
NO_ROUTE = "In Kubernetes: is node 0's pod running, and does a NetworkPolicy let this job's pods reach one another?"
NOT_COME = (
    "In Kubernetes: `kubectl describe pod` shows what a pod waits for (GPUs, a secret, a volume that another node has:"
    " ReadWriteMany); a NetworkPolicy must let this job's pods reach one another"
)
OTHER_SECRET = "In Kubernetes a pod keeps the secret it was started with: delete this job's pods or the job"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a launcher sends about its node, all of it JSON."""

    index: int
    host: str
    devices: Sequence[str] = ()
    on_cpu: bool = False  # whether the devices are slots on the CPU
    recipe: Mapping[str, Any] = field(default_factory=dict)  # and the options that must be the same on all nodes
    versions: Mapping[str, str | None] = field(default_factory=dict)
    error: str | None = None  # what the preflight found
    error_code: int = 0


Decide = Callable[[list[Sequence[str]]], dict[str, Any]]
"""Node 0's decision from the devices of all nodes, which every node gets. Its KitError is raised on all nodes."""


@dataclass(slots=True)
class Meeting:
    """One launcher's part of the meeting. An empty MINI_R1_JOB_TOKEN is a KitError."""

    nodes: Nodes
    run_dir: Path
    environment: Mapping[str, str]
    say: Callable[[str], None]
    stop: StopOrder
    timeout_s: float = MEET_TIMEOUT_S
    _key: bytes = field(init=False)
    _patience: Patience = field(init=False)
    _reported: float = field(init=False, default=0.0)
    _hinted: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._key = _job_key(self.nodes, self.environment)
        self._patience = Patience(self.environment)

    def hold(self, me: Introduction, decide: Decide) -> tuple[dict[int, Channel], dict[str, Any]]:
        """Return the open channels by node (node 0's to all others, theirs to node 0), and node 0's decision.

        Raises KitError, the same on all nodes that came, if the job cannot start.
        """
        if self.nodes.index != 0:
            return self._wait_for_decision(me)
        channels: dict[int, Channel] = {}
        try:
            with listen(self.nodes.address, self.nodes.control_port) as server:
                introductions = self._gather(server, me, channels)
            _refuse_disagreement(introductions)
            decision = decide([node.devices for node in introductions])
            self._refuse_unshared(channels)
        except KitError as error:
            for channel in channels.values():
                _refuse(channel, error)
            raise
        for channel in channels.values():
            _try_to_send(channel, {"type": "go", "decision": decision})
        return channels, decision

    def _gather(self, server: socket.socket, me: Introduction, channels: dict[int, Channel]) -> list[Introduction]:
        """Wait for all others and put their channels into `channels`; return all introductions, in order."""
        arrived: queue.SimpleQueue[tuple[Channel, Introduction]] = queue.SimpleQueue()
        introductions = {0: me}
        waiting: list[tuple[float, Channel, Introduction]] = []  # since when, for an index that another node has
        threads: list[threading.Thread] = []
        end = time.monotonic() + self.timeout_s
        server.settimeout(0.2)
        while len(introductions) < self.nodes.count:
            missing = [index for index in range(self.nodes.count) if index not in introductions]
            absent = f"{_list_nodes(missing)} of {self.nodes.count}"
            self._keep_waiting(
                end, f"waiting for {absent} on port {self.nodes.control_port}", f"{absent} did not come", NOT_COME
            )
            with suppress(TimeoutError):
                # A thread for each connection: one that sends nothing must not keep the others out.
                thread = threading.Thread(target=self._let_in, args=(server.accept()[0], arrived), daemon=True)
                threads.append(thread)
                thread.start()
            for index, channel in list(channels.items()):
                try:
                    channel.waiting()
                except Gone:
                    channels.pop(index).close()
                    del introductions[index]
            while not arrived.empty():
                waiting.append((time.monotonic(), *arrived.get()))
            for since, channel, introduction in list(waiting):
                index = introduction.index
                if index not in introductions and 0 < index < self.nodes.count:
                    channels[index], introductions[index] = channel, introduction
                elif 0 < index < self.nodes.count and time.monotonic() < since + self._patience.seconds:
                    continue  # the node that it replaces may be about to leave
                else:
                    self._refuse_index(channel, index)
                waiting.remove((since, channel, introduction))
        for thread in threads:
            thread.join()
        for _, channel, introduction in waiting:
            self._refuse_index(channel, introduction.index)
        return [introductions[index] for index in range(self.nodes.count)]

    def _refuse_index(self, channel: Channel, index: int) -> None:
        held = 0 < index < self.nodes.count and is_scheduled(self.environment)
        cause = Cause.INDEX_HELD if held else Cause.WRONG
        fix = "its scheduler has replaced it" if held else "give each its own --node-index"
        _refuse(channel, KitError(f"there is a node {index} already: {fix}", cause.exit_code))

    def _let_in(self, connection: socket.socket, arrived: queue.SimpleQueue[tuple[Channel, Introduction]]) -> None:
        channel = Channel(connection)
        try:
            channel.prove(self._key, first=True, timeout_s=PROOF_TIMEOUT_S)
            arrived.put((channel, Introduction(**channel.receive(PROOF_TIMEOUT_S))))
        except (Gone, TimeoutError, TypeError):
            channel.close()  # a stranger; a launcher would try again

    def _refuse_unshared(self, channels: Mapping[int, Channel]) -> None:
        """Raise KitError if another node cannot see a file that this node writes to the run directory."""
        with _canary(self.run_dir) as name:
            for channel in channels.values():
                _try_to_send(channel, {"type": "canary", "name": name})
            try:
                answers = {index: channel.receive(ANSWER_TIMEOUT_S) for index, channel in channels.items()}
            except (Gone, TimeoutError) as error:
                raise KitError(f"a node left while the nodes met: {error}", ExitCode.RETRY) from error
        blind = sorted(index for index, answer in answers.items() if not answer.get("seen"))
        if blind:
            raise KitError(
                f"{_list_nodes(blind)} cannot see what node 0 writes to {self.run_dir.absolute()}: the run"
                " directory must be on a file system that all nodes share (in Kubernetes one claim, ReadWriteMany)."
                " Name one there with --run-dir"
            )

    def _wait_for_decision(self, me: Introduction) -> tuple[dict[int, Channel], dict[str, Any]]:
        channel = self._reach(me)
        try:
            return {0: channel}, self._receive_decision(channel)
        except KitError:
            channel.close()  # node 0 sees at once that this node's index is free
            raise

    def _receive_decision(self, channel: Channel) -> dict[str, Any]:
        end = time.monotonic() + self.timeout_s
        while True:
            try:
                message = channel.receive(0.5)
            except TimeoutError:
                self._keep_waiting(end, "waiting for the other nodes", "node 0 sent no decision")
                continue
            except Gone as error:
                raise KitError(
                    f"node 0 ({self.nodes.address}) left before it began: {error}. See its own log", ExitCode.RETRY
                ) from error
            if message.get("type") == "canary":
                _try_to_send(channel, {"seen": _appears(self.run_dir / Path(str(message["name"])).name)})
            elif message.get("type") == "refused":
                raise KitError(str(message["text"]), ExitCode(message["code"]))
            elif message.get("type") == "go":
                decision: dict[str, Any] = message["decision"]
                return decision

    def _reach(self, me: Introduction) -> Channel:
        """Return a channel to node 0, which may not be there yet, nor its name."""
        address = self.nodes.address, self.nodes.control_port
        place = "{}:{}".format(*address)
        end = time.monotonic() + self.timeout_s
        stranger_since: float | None = None
        while True:
            try:
                channel = Channel(socket.create_connection(address, timeout=5))
                channel.prove(self._key, first=False, timeout_s=PROOF_TIMEOUT_S)
                channel.send(asdict(me))
                return channel
            except OSError as error:
                why, stranger_since = error.strerror or str(error), None
                hint = NO_NAME if isinstance(error, socket.gaierror) else NO_ROUTE
            except Gone as error:
                channel.close()
                why, hint, stranger_since = str(error), OTHER_SECRET, stranger_since or time.monotonic()
            why = printable(why)
            if stranger_since is not None and time.monotonic() - stranger_since > STRANGER_TIMEOUT_S:
                raise KitError(
                    f"{place} is not node 0 of this job ({why}): another program has that port, or {JOB_TOKEN},"
                    " --address or --port differ between the nodes. Start all of them alike, or with another --port"
                    f"{self._after(hint)}",
                    ExitCode.RETRY,
                )
            self._keep_waiting(
                end, f"waiting for node 0 at {place} ({why})", f"node 0 could not be reached at {place} ({why})", hint
            )
            time.sleep(0.5)

    def _keep_waiting(self, end: float, status: str, failure: str, hint: str = "") -> None:
        """Report the status now and then, and the hint once if it takes longer than the start of a node.

        Raises KitError if this launcher was asked to stop, or the time is over.
        """
        if self.stop.name:
            raise KitError("stopped while the nodes met; nothing was started", ExitCode.INTERRUPTED)
        now = time.monotonic()
        if now > end:
            raise KitError(
                f"{failure} within {self.timeout_s / 60:g} minutes: see that node's log, and whether"
                f" {self.nodes.address} and port {self.nodes.control_port} can be reached from it{self._after(hint)}",
                ExitCode.RETRY,
            )
        if now - self._reported > REPORT_EVERY_S:
            self._reported = now
            due = self._after(hint) if now > end - self.timeout_s + HINT_AFTER_S and not self._hinted else ""
            self._hinted = self._hinted or bool(due)
            self.say(status + due)

    def _after(self, hint: str) -> str:
        return f". {hint}" if hint and in_pod(self.environment) else ""


def _job_key(nodes: Nodes, environment: Mapping[str, str]) -> bytes:
    """Return what the launchers of one job share: MINI_R1_JOB_TOKEN, else the job's id, else where they meet."""
    if JOB_TOKEN in environment and not environment[JOB_TOKEN].strip():
        raise KitError(
            f"{JOB_TOKEN} is empty: give it a secret that this job's nodes share (openssl rand -hex 32), or unset it"
        )
    secret = environment.get(JOB_TOKEN) or nodes.job_id or f"{nodes.address}:{nodes.port}"
    return hashlib.sha256(f"mini-r1 {secret} {nodes.count}".encode()).digest()


def _refuse_disagreement(introductions: Sequence[Introduction]) -> None:
    """Raise KitError if a preflight failed, or a node differs from node 0 in recipe, options, versions or devices."""
    failed = [node for node in introductions if node.error]
    if failed:
        code = ExitCode.CONFIG if any(node.error_code == ExitCode.CONFIG for node in failed) else ExitCode.RETRY
        raise KitError("\n".join(f"node {node.index} ({node.host}): {node.error}" for node in failed), code)
    first = introductions[0]
    for node in introductions[1:]:
        pair = f"node 0 ({first.host}) and node {node.index} ({node.host})"
        differences = _compare(first.recipe, node.recipe, node.index)
        if differences:
            raise KitError(
                f"{pair} were started with different recipes: {differences}. Start all nodes with the same file and"
                " the same --set"
            )
        if node.on_cpu != first.on_cpu:
            raise KitError(f"of {pair} one has GPUs and the other is to work on its CPU: give both the same")
        differences = _compare(first.versions, node.versions, node.index)
        if differences:
            raise KitError(
                f"{pair} have different versions installed: {differences}. Use one image or environment for all",
                ExitCode.RETRY,
            )


def _compare(mine: Mapping[str, Any], theirs: Mapping[str, Any], index: int) -> str:
    def shown(value: Any) -> str:
        text = printable(str(value))
        return text if len(text) <= 60 else text[:57] + "..."

    return "; ".join(
        f"{printable(key)} is {shown(mine.get(key))} on node 0 and {shown(theirs.get(key))} on node {index}"
        for key in {**mine, **theirs}
        if mine.get(key) != theirs.get(key)
    )


def _list_nodes(indices: Sequence[int]) -> str:
    names = ", ".join(map(str, indices[:8])) + (" and more" if len(indices) > 8 else "")
    return f"node{'s' * (len(indices) > 1)} {names}"


def _try_to_send(channel: Channel, message: dict[str, Any]) -> None:
    with suppress(Gone):  # the next read from it reports that
        channel.send(message)


def _refuse(channel: Channel, error: KitError) -> None:
    _try_to_send(channel, {"type": "refused", "text": error.message, "code": int(error.exit_code)})
    channel.close()


@contextmanager
def _canary(run_dir: Path) -> Iterator[str]:
    """A file in the run directory with a random name; the directory is removed too if it was made for the file."""
    name = f".canary-{secrets.token_hex(8)}.tmp"
    made = not run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / name).touch()
    except OSError as error:
        raise KitError(f"cannot use {run_dir} as run directory: {error.strerror}") from error
    try:
        yield name
    finally:
        (run_dir / name).unlink(missing_ok=True)
        if made and not any(run_dir.iterdir()):
            run_dir.rmdir()


def _appears(canary: Path) -> bool:
    end = time.monotonic() + CANARY_TIMEOUT_S
    while time.monotonic() < end:
        # The folder is listed: an NFS client caches for a while that a name was not there.
        with suppress(OSError):
            if canary.name in os.listdir(canary.parent):
                return True
        time.sleep(0.25)
    return False
