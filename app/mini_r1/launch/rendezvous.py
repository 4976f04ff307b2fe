"""Launchers of several nodes meet before any of them starts a worker: are all there, and of one mind?

Node 0 listens on the port after torch's; the others connect, however long their nodes take to come up. Each says what
it was given and with what it was started. Node 0 compares, has them all look for a file that it puts into the run
directory, and tells them how it is done, or why it cannot be. The connections stay open: see peers.py.
"""

from __future__ import annotations

import hashlib
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mini_r1.console import printable
from mini_r1.errors import ExitCode, KitError
from mini_r1.launch import kubernetes_hints
from mini_r1.launch.channel import Channel, Gone, listen
from mini_r1.launch.worker_environment import JOB_TOKEN
from mini_r1.machine.nodes import Nodes

MEET_TIMEOUT_S = 900.0
"""Seconds for all nodes to come: an image may have to be pulled on one that the others have."""
STRANGER_TIMEOUT_S = 60.0
"""Seconds until a node gives up on a port where something else than its job's launcher answers."""
PROOF_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
CANARY_TIMEOUT_S = 15.0
"""Seconds until a file that another node wrote has to be there: NFS clients remember what is not (acdirmax is 60)."""
SAY_EVERY_S = 15.0
HINT_AFTER_S = 60.0
"""Seconds until a wait is told with what may be wrong: a pod comes up in less, unless its image has to be pulled."""


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a launcher says of its node. Everything in it is JSON.

    Args:
        index: of the node.
        host: its name.
        devices: that it was given.
        on_cpu: whether they are slots on the CPU.
        recipe: the resolved recipe.
        options: of the command, which all nodes must have been given alike.
        versions: of Python, the kit and the packages that train together.
        problem: what the preflight found wrong, None if nothing.
        problem_code: the exit code that goes with it.
    """

    index: int
    host: str
    devices: Sequence[str]
    on_cpu: bool
    recipe: Mapping[str, Any]
    options: Mapping[str, Any]
    versions: Mapping[str, str | None]
    problem: str | None = None
    problem_code: int = 0


Decide = Callable[[Sequence[Introduction]], dict[str, Any]]
"""What node 0 makes of all introductions: what every node is told. A KitError is told too, and raised everywhere."""


class Meeting:
    """One launcher's part of the meeting.

    Args:
        nodes: who meets where.
        run_dir: that all must share.
        environment: of the launcher.
        say: takes a line of progress.
        stopped: whether this launcher was asked to stop meanwhile.
        timeout_s: seconds for all nodes to come.
    """

    def __init__(
        self,
        nodes: Nodes,
        run_dir: Path,
        environment: Mapping[str, str],
        say: Callable[[str], None],
        stopped: Callable[[], bool],
        timeout_s: float = MEET_TIMEOUT_S,
    ) -> None:
        self._nodes = nodes
        self._run_dir = run_dir
        self._key = job_key(nodes, environment)
        self._say = say
        self._stopped = stopped
        self._timeout_s = timeout_s
        self._environment = environment
        self._began, self._said, self._hinted = time.monotonic(), 0.0, False

    def hold(self, me: Introduction, decide: Decide) -> tuple[dict[int, Channel], dict[str, Any]]:
        """Meet.

        Returns:
            The open channels by node (node 0's to all others, another node's to node 0), and node 0's decision.

        Raises:
            KitError: it cannot be done; the same on all nodes that came.
        """
        if self._nodes.index == 0:
            return self._hold_as_host(me, decide)
        return self._hold_as_guest(me)

    # --- node 0 ---

    def _hold_as_host(self, me: Introduction, decide: Decide) -> tuple[dict[int, Channel], dict[str, Any]]:
        channels: dict[int, Channel] = {}
        try:
            with listen(self._nodes.address, self._nodes.control_port) as server:
                introductions = self._gather(server, me, channels)
            refuse_disagreement(introductions)
            decision = decide(introductions)
            self._refuse_unshared(channels)
        except KitError as error:
            for channel in channels.values():
                _try_to_send(channel, {"type": "refused", "text": error.message, "code": int(error.exit_code)})
                channel.close()
            raise
        for channel in channels.values():
            _try_to_send(channel, {"type": "go", "decision": decision})
        return channels, decision

    def _gather(self, server: socket.socket, me: Introduction, channels: dict[int, Channel]) -> list[Introduction]:
        """Wait for all others: their channels are put into `channels`; everybody's introduction, in order."""
        arrived: queue.SimpleQueue[tuple[Channel, Introduction]] = queue.SimpleQueue()
        introductions = {0: me}
        doors: list[threading.Thread] = []
        end = time.monotonic() + self._timeout_s
        server.settimeout(0.2)
        while len(introductions) < self._nodes.count:
            missing = [index for index in range(self._nodes.count) if index not in introductions]
            hint = kubernetes_hints.when_not_come(self._environment)
            self._may_go_on(end, f"{_nodes(missing)} of {self._nodes.count} did not come", hint)
            self._tell(f"waiting for {_nodes(missing)} of {self._nodes.count} on port {self._nodes.control_port}", hint)
            try:
                connection, _ = server.accept()
            except TimeoutError:
                pass
            else:
                # A thread for each: whoever connects and says nothing must not keep the others out.
                doors.append(threading.Thread(target=self._let_in, args=(connection, arrived), daemon=True))
                doors[-1].start()
            for index in [index for index, channel in channels.items() if _has_left(channel)]:
                channels.pop(index).close()
                del introductions[index]
            while not arrived.empty():
                channel, introduction = arrived.get()
                if introduction.index in introductions or not 0 < introduction.index < self._nodes.count:
                    text = f"there is a node {introduction.index} already: give each its own --node-index"
                    _try_to_send(channel, {"type": "refused", "text": text, "code": int(ExitCode.CONFIG)})
                    channel.close()
                    continue
                channels[introduction.index], introductions[introduction.index] = channel, introduction
        for door in doors:
            door.join()
        return [introductions[index] for index in range(self._nodes.count)]

    def _let_in(self, connection: socket.socket, arrived: queue.SimpleQueue[tuple[Channel, Introduction]]) -> None:
        channel = Channel(connection)
        try:
            channel.prove(self._key, first=True, timeout_s=PROOF_TIMEOUT_S)
            arrived.put((channel, Introduction(**channel.receive(PROOF_TIMEOUT_S))))
        except (Gone, TimeoutError, TypeError):
            channel.close()  # a stranger; a launcher would try again

    def _refuse_unshared(self, channels: Mapping[int, Channel]) -> None:
        """Have all others look for a file that this node puts into the run directory.

        Raises:
            KitError: one of them does not see it.
        """
        with _canary(self._run_dir) as name:
            for channel in channels.values():
                _try_to_send(channel, {"type": "canary", "name": name})
            blind = [index for index, channel in channels.items() if not _answer(channel).get("seen")]
        if blind:
            raise KitError(
                f"{_nodes(sorted(blind))} cannot see what node 0 writes to {self._run_dir.absolute()}: the run"
                " directory must be on a file system that all nodes share (in Kubernetes one claim, ReadWriteMany)."
                " Name one there with --run-dir"
            )

    # --- the others ---

    def _hold_as_guest(self, me: Introduction) -> tuple[dict[int, Channel], dict[str, Any]]:
        channel = self._reach(me)
        end = time.monotonic() + self._timeout_s
        while True:
            self._may_go_on(end, "node 0 never said how to go on")
            try:
                message = channel.receive(0.5)
            except TimeoutError:
                self._tell("waiting for the other nodes")
                continue
            except Gone as error:
                raise KitError(
                    f"node 0 ({self._nodes.address}) left before it began: {error}. Its own log says why",
                    ExitCode.RETRY,
                ) from error
            if message.get("type") == "canary":
                _try_to_send(channel, {"seen": _sees(self._run_dir / Path(str(message["name"])).name)})
            elif message.get("type") == "refused":
                channel.close()
                raise KitError(str(message["text"]), ExitCode(message["code"]))
            elif message.get("type") == "go":
                return {0: channel}, message["decision"]

    def _reach(self, me: Introduction) -> Channel:
        """A channel to node 0, which may not be there yet, nor its name."""
        place = f"{self._nodes.address}:{self._nodes.control_port}"
        end = time.monotonic() + self._timeout_s
        stranger_since: float | None = None
        while True:
            try:
                channel = Channel(socket.create_connection((self._nodes.address, self._nodes.control_port), timeout=5))
            except OSError as error:
                why, stranger_since = error.strerror or str(error), None
                hint = kubernetes_hints.when_unreached(self._environment, error)
            else:
                try:
                    channel.prove(self._key, first=False, timeout_s=PROOF_TIMEOUT_S)
                    channel.send(asdict(me))
                    return channel
                except Gone as error:
                    channel.close()
                    why, stranger_since = str(error), stranger_since or time.monotonic()
                    hint = kubernetes_hints.when_a_stranger(self._environment)
            why = printable(why)
            if stranger_since is not None and time.monotonic() - stranger_since > STRANGER_TIMEOUT_S:
                raise KitError(
                    f"{place} is not node 0 of this job ({why}): another program has that port, or {JOB_TOKEN},"
                    " --address or --port differ between the nodes. Start all of them alike, or with another --port"
                    f"{_after(hint)}",
                    ExitCode.RETRY,
                )
            self._may_go_on(end, f"node 0 could not be reached at {place} ({why})", hint)
            self._tell(f"waiting for node 0 at {place} ({why})", hint)
            time.sleep(0.5)

    # --- both ---

    def _may_go_on(self, end: float, otherwise: str, hint: str = "") -> None:
        if self._stopped():
            raise KitError("stopped while the nodes met; nothing was started", ExitCode.INTERRUPTED)
        if time.monotonic() > end:
            raise KitError(
                f"{otherwise} within {self._timeout_s / 60:g} minutes: see that node's log, and whether"
                f" {self._nodes.address} and port {self._nodes.control_port} can be reached from it{_after(hint)}",
                ExitCode.RETRY,
            )

    def _tell(self, line: str, hint: str = "") -> None:
        """Now and then; the hint once, when it takes longer than a node's start need take."""
        now = time.monotonic()
        if now - self._said > SAY_EVERY_S:
            self._said = now
            due = hint if now - self._began > HINT_AFTER_S and not self._hinted else ""
            self._hinted = self._hinted or bool(due)
            self._say(line + _after(due))


def job_key(nodes: Nodes, environment: Mapping[str, str]) -> bytes:
    """What the launchers of one job have in common: MINI_R1_JOB_TOKEN, else the job's id, else where they meet.

    Raises:
        KitError: the token is empty.
    """
    if JOB_TOKEN in environment and not environment[JOB_TOKEN].strip():
        raise KitError(
            f"{JOB_TOKEN} is empty: give it a secret that this job's nodes share (openssl rand -hex 32), or unset it"
        )
    secret = environment.get(JOB_TOKEN) or nodes.job_id or f"{nodes.address}:{nodes.port}"
    return hashlib.sha256(f"mini-r1 {secret} {nodes.count}".encode()).digest()


def refuse_disagreement(introductions: Sequence[Introduction]) -> None:
    """Compare what the nodes were started with to what node 0 was.

    Raises:
        KitError: a preflight failed, or a node has another recipe, other options, versions or kind of devices.
    """
    problems = [node for node in introductions if node.problem]
    if problems:
        codes = [node.problem_code for node in problems]
        code = ExitCode.CONFIG if ExitCode.CONFIG in codes else ExitCode.RETRY
        raise KitError("\n".join(f"node {node.index} ({node.host}): {node.problem}" for node in problems), code)
    first = introductions[0]
    for node in introductions[1:]:
        pair = f"node 0 ({first.host}) and node {node.index} ({node.host})"
        told = _different(first.recipe, node.recipe, node.index) + _different(first.options, node.options, node.index)
        if told:
            raise KitError(
                f"{pair} were started with different recipes: {'; '.join(told)}. Start all nodes with the same file and"
                " the same --set"
            )
        if node.on_cpu != first.on_cpu:
            raise KitError(f"of {pair} one has GPUs and the other is to work on its CPU: give both the same")
        told = _different(first.versions, node.versions, node.index)
        if told:
            raise KitError(
                f"{pair} have different versions installed: {'; '.join(told)}. Use one image or environment for all",
                ExitCode.RETRY,
            )


def _different(mine: Mapping[str, Any], theirs: Mapping[str, Any], index: int) -> list[str]:
    return [
        f"{printable(key)} is {_short(mine.get(key))} on node 0 and {_short(theirs.get(key))} on node {index}"
        for key in {**mine, **theirs}
        if mine.get(key) != theirs.get(key)
    ]


def _short(value: Any) -> str:
    text = printable(str(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _nodes(indices: Sequence[int]) -> str:
    names = ", ".join(map(str, indices[:8])) + (" and more" if len(indices) > 8 else "")
    return f"node{'s' * (len(indices) > 1)} {names}"


def _after(hint: str) -> str:
    return f". {hint}" if hint else ""


def _answer(channel: Channel) -> dict[str, Any]:
    try:
        return channel.receive(ANSWER_TIMEOUT_S)
    except (Gone, TimeoutError) as error:
        raise KitError(f"a node left while the nodes met: {error}", ExitCode.RETRY) from error


def _has_left(channel: Channel) -> bool:
    try:
        channel.waiting()
    except TimeoutError:
        return False
    except Gone:
        return True
    return False


def _try_to_send(channel: Channel, message: dict[str, Any]) -> None:
    with suppress(Gone):  # whoever reads from it next is told so
        channel.send(message)


@contextmanager
def _canary(run_dir: Path) -> Iterator[str]:
    """A file in the run directory with a name that nobody could guess; the directory goes too if it was made for it."""
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


def _sees(canary: Path) -> bool:
    end = time.monotonic() + CANARY_TIMEOUT_S
    while time.monotonic() < end:
        try:
            # Listed, not asked for by name: an NFS client remembers for a while that a name was not there.
            if canary.name in os.listdir(canary.parent):
                return True
        except OSError:
            pass
        time.sleep(0.25)
    return False
