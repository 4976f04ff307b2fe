"""What errors about devices, roles and launchers advise, followed: it must lead to another result.

test_nodes.py has the same for nodes.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_r1.cli.node_commands import _smoke
from mini_r1.doctor.smoke import SmokeTest
from mini_r1.errors import ExitCode, KitError
from mini_r1.launch.channel import listen
from mini_r1.launch.rendezvous import Meeting
from mini_r1.launch.stop_order import StopOrder
from mini_r1.machine.devices import Devices, given_devices
from mini_r1.machine.nodes import Nodes, find_nodes, free_port
from mini_r1.machine.nvidia import ListedGpu
from mini_r1.machine.roles import Roles, assign

SLICES = ("MIG-1f3c5a2e-0000-1111-2222-333333333333", "MIG-2f3c5a2e-0000-1111-2222-333333333333")
TWO = [ListedGpu("GPU-aaaaaaaa"), ListedGpu("GPU-bbbbbbbb")]
DIVIDED = [ListedGpu("GPU-aaaaaaaa", SLICES)]


def given(driver: list[ListedGpu] | None = None, count: int | None = None, **environment: str) -> Devices:
    return given_devices(environment, count, lambda: driver)


def roles(*devices: int, use_vllm: bool = True, on_cpu: bool = False) -> Roles:
    return assign([list(map(str, range(count))) for count in devices], use_vllm=use_vllm, on_cpu=on_cpu)


def meeting(**environment: str) -> Meeting:
    return Meeting(Nodes(2, 0, "n1", 15_000, "a test", "7"), Path(), environment, print, StopOrder())


def open_port(port: int) -> None:
    listen("127.0.0.1", port).close()


def open_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        open_port(taken.getsockname()[1])


ADVICE: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
    ("ask for fewer", lambda: given(TWO, 3), lambda: given(TWO, 2)),
    (
        "or set MINI_R1_ACCELERATOR=cpu for 3 slots on the CPU",
        lambda: given(TWO, 3),
        lambda: given(TWO, 3, MINI_R1_ACCELERATOR="cpu"),
    ),
    (
        "name devices of this node",
        lambda: given(TWO, CUDA_VISIBLE_DEVICES="4,5"),
        lambda: given(TWO, CUDA_VISIBLE_DEVICES="0,1"),
    ),
    (
        "name devices of this node",
        lambda: given(TWO, CUDA_VISIBLE_DEVICES="GPU-cccc"),
        lambda: given(TWO, CUDA_VISIBLE_DEVICES="GPU-bbbb"),
    ),
    (
        "set CUDA_VISIBLE_DEVICES to one of them",
        lambda: given(DIVIDED),
        lambda: given(DIVIDED, CUDA_VISIBLE_DEVICES=SLICES[1]),
    ),
    ("give the job whole GPUs", lambda: given(DIVIDED, CUDA_VISIBLE_DEVICES=",".join(SLICES)), lambda: given(TWO)),
    (
        "write indices (0,1), the UUIDs",
        lambda: given(TWO, CUDA_VISIBLE_DEVICES="all"),
        lambda: given(TWO, CUDA_VISIBLE_DEVICES="GPU-aaaa,GPU-bbbb"),
    ),
    (
        "set CUDA_VISIBLE_DEVICES to the devices to use",
        lambda: given(TWO, SLURM_GPUS_ON_NODE="many"),
        lambda: given(TWO, SLURM_GPUS_ON_NODE="many", CUDA_VISIBLE_DEVICES="0,1"),
    ),
    (
        "must be cpu, cuda, or not set",
        lambda: given(TWO, MINI_R1_ACCELERATOR="gpu"),
        lambda: given(TWO, MINI_R1_ACCELERATOR="cuda"),
    ),
    ("or set use_vllm: false", lambda: roles(1, 4), lambda: roles(1, 4, use_vllm=False)),
    ("Give node 0 2 or more", lambda: roles(1, 4), lambda: roles(2, 4)),
    ("give every node at least one", lambda: roles(2, 0), lambda: roles(2, 1)),
    ("or leave the node out", lambda: roles(2, 0), lambda: roles(2)),
    ("or unset it", lambda: meeting(MINI_R1_JOB_TOKEN=" "), meeting),
    ("give it a secret", lambda: meeting(MINI_R1_JOB_TOKEN=""), lambda: meeting(MINI_R1_JOB_TOKEN="a secret")),
    ("with another --port", open_a_taken_port, lambda: open_port(free_port())),
]


@pytest.mark.parametrize(("advice", "fails", "works"), ADVICE)
def test_advice_that_is_followed_leads_to_another_result(
    advice: str, fails: Callable[[], object], works: Callable[[], object]
) -> None:
    with pytest.raises(KitError, match=re.escape(advice)):
        fails()
    works()


def test_the_smoke_test_needs_no_flag_on_one_of_several_nodes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error of find_nodes names flags of `mini-r1 launch`, which the doctor does not have."""
    tested = []
    monkeypatch.setattr(SmokeTest, "findings", lambda self: tested.append(self.nodes.source) or iter(()))
    monkeypatch.setenv("SKYPILOT_NUM_NODES", "2")
    with pytest.raises(KitError, match="SKYPILOT_NUM_NODES=2"):
        find_nodes({"SKYPILOT_NUM_NODES": "2"})
    assert _smoke(None, 0, "1", as_json=True) == ExitCode.FINISHED
    assert tested == ["--nodes 1"]
    assert "SKYPILOT_NUM_NODES=2" in (warning := capsys.readouterr().err)
    assert "testing this node alone" in warning.replace("\n", " ")
