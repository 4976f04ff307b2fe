"""The other launchers while the workers run: which are there, which failed, and the exit code that all return.

Node 0 is connected with every other node and forwards what concerns all. A thread serves the connections, so that a
launcher that waits for a slow disk does not count as gone.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mini_r1.errors import ExitCode
from mini_r1.launch.channel import Channel, Gone

PING_EVERY_S = 5.0
SILENCE_S = 20.0  # seconds without a message after which a node counts as gone
_WEIGHT = (ExitCode.CONFIG, ExitCode.FAILED, ExitCode.RETRY, ExitCode.INTERRUPTED, ExitCode.FINISHED)
"""Exit codes of a job whose parts return different ones, the one that explains most first. Survivors return 150, so 78
or 1 is what they survived."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a node, or the job, ended."""

    code: ExitCode
    text: str = ""  # the reason; may be empty
    survived: bool = False  # whether it may only have failed because another node did
    age_s: float = 0.0  # for a hang: seconds since the last sign of life of the rank to blame


@dataclass(frozen=True, slots=True)
class PeerProblem:
    """What went wrong on another node."""

    text: str
    hung: bool = False  # workers hang, so that all should write their stacks
    lost: bool = False  # the node itself is gone


def agree(endings: Sequence[Ending]) -> Ending:
    """Return the job's ending, from those of its nodes: the code that explains most, of the node to blame."""
    return min(
        endings, key=lambda ending: (_WEIGHT.index(ending.code), ending.survived, -ending.age_s, not ending.text)
    )


class Peers:
    """The launchers of the other nodes, with a channel to each; a job of one node has none."""

    def __init__(self, index: int, channels: Mapping[int, Channel]) -> None:
        self.problem: PeerProblem | None = None  # the first one on another node
        self.result: Ending | None = None  # the job's, once all nodes have ended or are gone
        self._index = index
        self._channels = dict(channels)
        self._heard: dict[int, float] = {}
        self._endings: dict[int, Ending] = {}
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="peers", daemon=True)

    def start(self) -> None:
        """Begin to read messages and to send signs of life."""
        self._heard = dict.fromkeys(self._channels, time.monotonic())
        self._thread.start()

    def report_problem(self, text: str, *, hung: bool = False) -> None:
        """Report to all others what went wrong here, before this node has ended."""
        self._send_all({"type": "problem", "problem": asdict(PeerProblem(text, hung))})

    def report_end(self, ending: Ending) -> None:
        """Report that all workers of this node have ended; `result` follows."""
        with self._lock:
            self._endings[self._index] = ending
            if self._index != 0:
                self._send_all({"type": "ended", "ending": asdict(ending)})
            self._conclude()

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        for channel in self._channels.values():
            channel.close()

    def _serve(self) -> None:
        pinged = 0.0
        while not self._closed.wait(0.1):
            for node in list(self._channels):
                self._receive_from(node)
            if time.monotonic() - pinged > PING_EVERY_S:
                pinged = time.monotonic()
                self._send_all({"type": "ping"})

    def _receive_from(self, node: int) -> None:
        try:
            messages = self._channels[node].waiting()
            for message in messages:
                self._take(node, message)
            if messages:
                self._heard[node] = time.monotonic()
            silent = time.monotonic() - self._heard[node]
            if silent > SILENCE_S:
                raise Gone(f"nothing was heard from it for {silent:.0f} s")
        except (Gone, KeyError, TypeError, ValueError) as error:
            self._lose(node, str(error) if isinstance(error, Gone) else "it sends no valid message")

    def _take(self, node: int, message: Mapping[str, Any]) -> None:
        with self._lock:
            if message["type"] == "problem":
                self._take_problem(PeerProblem(**message["problem"]), node)
            elif message["type"] == "ended":
                self._endings[node] = _read_ending(message)
                self._conclude()
            elif message["type"] == "result":
                self.result = _read_ending(message)

    def _take_problem(self, problem: PeerProblem, node: int) -> None:
        self.problem = self.problem or problem
        if self._index == 0:
            self._send_all({"type": "problem", "problem": asdict(problem)}, but=node)

    def _lose(self, node: int, why: str) -> None:
        with self._lock:
            self._channels.pop(node).close()
            if self.result is not None or (self._index == 0 and node in self._endings):
                return  # it had nothing left to do
            text = f"node {node} is gone: {why}"
            self._endings[node] = Ending(ExitCode.RETRY, text)
            self._take_problem(PeerProblem(text, lost=True), node)
            self._conclude()

    def _conclude(self) -> None:
        """Agree on the job's ending once all nodes have ended; node 0 decides, or a node that has lost it."""
        if self.result is not None or self._index not in self._endings:
            return
        # Node 0 sends no ending: another node concludes alone only if it has lost node 0.
        if self._channels.keys() <= self._endings.keys():
            self.result = agree(list(self._endings.values()))
            self._send_all({"type": "result", "ending": asdict(self.result)})

    def _send_all(self, message: dict[str, Any], but: int | None = None) -> None:
        with self._lock:
            for node, channel in list(self._channels.items()):
                if node != but:
                    try:
                        channel.send(message)
                    except Gone:
                        continue  # its last messages come first; then reading reports that it is gone


def _read_ending(message: Mapping[str, Any]) -> Ending:
    ending = Ending(**message["ending"])
    return Ending(ExitCode(ending.code), ending.text, ending.survived, ending.age_s)
