"""What the installed torchrun and `accelerate launch` set for a worker, compared with `mini-r1 launch` and its docs."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from unittest.mock import patch

import pytest
from mini_r1.launch.worker_environment import worker_starts
from mini_r1.machine.roles import assign

from tests.cluster.test_environment import job
from tests.conftest import REPO

ALWAYS = ("--num_processes=2", "--num_machines=1", "--mixed_precision=bf16", "--dynamo_backend=no", "--debug")
PLAIN = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}


class Captured(BaseException):
    """Raised in place of a worker's start."""


def added(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if PLAIN.get(name) != value}


@contextmanager
def kept_signals() -> Iterator[None]:
    """Restore the handlers of signals that torchrun sets before it starts a worker."""
    before = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def set_by_accelerate(*options: str) -> dict[str, str]:
    """What the installed `accelerate launch`, and torchrun under it, add to a worker's environment."""
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing import api

    found: dict[str, str] = {}

    def capture(entrypoint: str, args: tuple[str, ...], env: dict[str, str], *rest: object, **options: object) -> None:
        found.update(added({**os.environ, **env}))
        raise Captured

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    arguments = [*ALWAYS, f"--main_process_port={port}", *options, "train.py"]
    with (
        kept_signals(),
        patch.dict(os.environ, PLAIN, clear=True),
        patch.object(api, "get_subprocess_handler", capture),
        patch.object(launch, "check_cuda_p2p_ib_support", lambda: False),  # an RTX 4090 with an old driver
        pytest.raises(Captured),
    ):
        launch.launch_command(launch.launch_command_parser().parse_args(arguments))
    return found


def set_for_deepspeed() -> dict[str, str]:
    """What accelerate adds for DeepSpeed, to the same launch: importing DeepSpeed for it takes many seconds."""
    from accelerate.commands import launch

    arguments = [*ALWAYS, "--use_deepspeed", "--main_process_port=0", "--zero_stage=3", "train.py"]
    args = launch.launch_command_parser().parse_args(arguments)
    with patch.dict(os.environ, PLAIN, clear=True):
        args, *_ = launch._validate_launch_command(args)
        args.deepspeed_fields_from_accelerate_config = ""
        return added(launch.prepare_deepspeed_cmd_env(args)[1])


@pytest.fixture(scope="module")
def theirs() -> dict[str, str]:
    """Everything that either of the two sets, in any mode for GPUs of one machine."""
    found = set_by_accelerate("--multi_gpu", "--enable_cpu_affinity", "--gpu_ids=0,1")
    for mode in ("--use_fsdp", "--use_megatron_lm"):
        found |= set_by_accelerate(mode)
    return found | set_for_deepspeed()


@pytest.fixture(scope="module")
def decisions() -> dict[str, str]:
    """The first words of the table's last column, by the names and patterns of its first."""
    section = (REPO / "docs/launch.md").read_text().partition("## What other launchers set")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return {name: row[-1].strip() for row in rows for name in re.findall(r"`([^`]+)`", row[0])}


def decision(name: str, decisions: Mapping[str, str]) -> str:
    (found,) = [text for pattern, text in decisions.items() if fnmatch(name, pattern)]
    return found


def test_the_table_has_every_variable_and_no_other(theirs: dict[str, str], decisions: dict[str, str]) -> None:
    assert {"TORCHELASTIC_ERROR_FILE", "FSDP_SYNC_MODULE_STATES", "ACCELERATE_CPU_AFFINITY", "RANK"} <= set(theirs)
    missing = [name for name in theirs if not any(fnmatch(name, pattern) for pattern in decisions)]
    assert missing == []
    assert [pattern for pattern in decisions if not any(fnmatch(name, pattern) for name in theirs)] == []


def worker(launchers: dict[str, str]) -> dict[str, str]:
    """The environment of a worker of `mini-r1 launch` on the same GPUs."""
    made = replace(job(0, environment=launchers), lacks_p2p=True)
    roles = assign([["0", "1", "2"], ["0"]], use_vllm=True, on_cpu=False)
    return worker_starts(made, roles, 0, None, Path("/scratch"))[0].environment(launchers)


def test_the_launcher_does_what_the_table_says(theirs: dict[str, str], decisions: dict[str, str]) -> None:
    inherited = {name: f"theirs {value}" for name, value in theirs.items()}
    alone, given = worker({}), worker(inherited)
    for name, text in {name: decision(name, decisions) for name in theirs}.items():
        if text.startswith("the same"):
            assert name in alone, name
        elif text.startswith("removed"):
            assert name not in given, name
        else:
            assert text.startswith("not set"), text
            assert name not in alone, name
            assert given[name] == inherited[name]
    equal = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")
    assert {name: alone[name] for name in equal} == {name: theirs[name] for name in equal}
