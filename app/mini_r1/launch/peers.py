"""The other launchers while the workers run: who is there, who failed, and which exit code all end with.

A star: node 0 is connected with every other node and passes on what concerns all. A thread keeps it going, so that a
launcher that waits for a slow disk is not taken for one that is gone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mini_r1.errors import ExitCode
from mini_r1.launch.channel import Channel, Gone

PING_EVERY_S = 5.0
SILENCE_S = 20.0
"""Seconds without a word after which a node counts as gone."""
_WEIGHT = (ExitCode.CONFIG, ExitCode.FAILED, ExitCode.RETRY, ExitCode.INTERRUPTED, ExitCode.FINISHED)
"""What a job ends with if its parts end differently: the code that says most about why. Survivors end with 150, so one
with 78 or 1 is what they survived."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a node, or the job, ended.

    Args:
        code: for the process to exit with.
        text: why, in words; empty when there is nothing to say.
        survived: whether it may only have gone down with another node.
        age_s: of a hang, seconds since the last sign of life of the rank that is to blame.
    """

    code: ExitCode
    text: str = ""
    survived: bool = False
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """What another node said went wrong there, while it still goes on.

    Args:
        node: its index.
        hung: whether workers are hung, so that all should write their stacks.
        lost: whether the node itself is gone.
        text: one sentence.
    """

    node: int
    hung: bool
    lost: bool
    text: str


def agreed(endings: Sequence[Ending]) -> Ending:
    """What a job ends with, from how its nodes ended: the code that says most, of the node that is to blame."""
    return min(
        endings, key=lambda ending: (_WEIGHT.index(ending.code), ending.survived, -ending.age_s, not ending.text)
    )


class Peers:
    """The launchers of the other nodes; with none of them, a job of one node.

    Args:
        index: of this node.
        channels: to the others, by node.
        ping_every_s: seconds between two signs of life.
        silence_s: seconds until a node counts as gone.
    """

    def __init__(
        self,
        index: int,
        channels: Mapping[int, Channel],
        ping_every_s: float = PING_EVERY_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._index = index
        self._channels = dict(channels)
        self._ping_every_s, self._silence_s = ping_every_s, silence_s
        self._heard = dict.fromkeys(channels, time.monotonic())
        self._endings: dict[int, Ending] = {}
        self._trouble: Trouble | None = None
        self._result: Ending | None = None
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._attend, name="peers", daemon=True)

    def start(self) -> None:
        """Begin to listen and to give signs of life."""
        now = time.monotonic()
        self._heard = dict.fromkeys(self._heard, now)
        self._thread.start()

    @property
    def trouble(self) -> Trouble | None:
        """The first thing that went wrong on another node."""
        return self._trouble

    @property
    def result(self) -> Ending | None:
        """What the job ends with; None until all have ended or are gone."""
        return self._result

    def tell_trouble(self, text: str, *, hung: bool = False) -> None:
        """Tell all others that something went wrong here, before this node has ended."""
        self._send_all({"type": "trouble", "node": self._index, "hung": hung, "lost": False, "text": text})

    def tell_end(self, ending: Ending) -> None:
        """Tell that all workers of this node have ended; `result` follows."""
        with self._lock:
            self._endings[self._index] = ending
            if self._index != 0:
                self._send_all({"type": "ended", **_told(ending)})
            self._conclude()

    def close(self) -> None:
        """End the connections."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        for channel in self._channels.values():
            channel.close()

    # --- the thread ---

    def _attend(self) -> None:
        pinged = 0.0
        while not self._closed.wait(0.1):
            for node in list(self._channels):
                self._listen_to(node)
            if time.monotonic() - pinged > self._ping_every_s:
                pinged = time.monotonic()
                self._send_all({"type": "ping"})

    def _listen_to(self, node: int) -> None:
        channel = self._channels[node]
        try:
            messages = channel.waiting()
        except TimeoutError:
            messages = []
        except Gone as gone:
            self._lose(node, str(gone))
            return
        if messages:
            self._heard[node] = time.monotonic()
        silent = time.monotonic() - self._heard[node]
        try:
            for message in messages:
                self._take(node, message)
        except (KeyError, TypeError, ValueError):
            self._lose(node, "it sends what no launcher sends")
            return
        if silent > self._silence_s:
            self._lose(node, f"nothing was heard of it for {silent:.0f} s")

    def _take(self, node: int, message: Mapping[str, Any]) -> None:
        kind = message.get("type")
        with self._lock:
            if kind == "trouble":
                found = Trouble(
                    int(message["node"]), bool(message["hung"]), bool(message["lost"]), str(message["text"])
                )
                self._trouble = self._trouble or found
                self._pass_on(node, dict(message))
            elif kind == "ended":
                self._endings[node] = _ending(message)
                self._conclude()
            elif kind == "result":
                self._result = _ending(message)

    def _lose(self, node: int, why: str) -> None:
        """A node is gone: if it had nothing left to do, that is no loss."""
        with self._lock:
            self._channels.pop(node).close()
            if self._result is not None or (self._index == 0 and node in self._endings):
                return
            text = f"node {node} is gone: {why}"
            self._trouble = self._trouble or Trouble(node, False, True, text)
            self._endings[node] = Ending(ExitCode.RETRY, text)
            self._pass_on(node, {"type": "trouble", "node": node, "hung": False, "lost": True, "text": text})
            self._conclude()

    def _pass_on(self, origin: int, message: dict[str, Any]) -> None:
        if self._index == 0:
            self._send_all(message, but=origin)

    def _conclude(self) -> None:
        """Agree on the end, once everybody's is known."""
        if self._index not in self._endings or self._result is not None:
            return
        if self._index == 0:
            if any(node not in self._endings for node in self._channels):
                return
            self._result = agreed(list(self._endings.values()))
            self._send_all({"type": "result", **_told(self._result)})
        elif not self._channels:  # node 0 is gone, and nobody is left to agree with
            self._result = agreed(list(self._endings.values()))

    def _send_all(self, message: dict[str, Any], but: int | None = None) -> None:
        with self._lock:
            for node, channel in list(self._channels.items()):
                if node != but:
                    try:
                        channel.send(message)
                    except Gone:
                        continue  # what it still said comes first; then reading tells that it is gone


def _told(ending: Ending) -> dict[str, Any]:
    return {"code": int(ending.code), "text": ending.text, "survived": ending.survived, "age_s": ending.age_s}


def _ending(message: Mapping[str, Any]) -> Ending:
    return Ending(ExitCode(message["code"]), str(message["text"]), bool(message["survived"]), float(message["age_s"]))
