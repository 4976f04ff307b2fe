"""A stand-in for SwanLab with what the kit calls: calls go to $STAND_IN_LOG as JSON."""

from __future__ import annotations

import json
import os
from enum import Enum
from pathlib import Path
from typing import Any

NAMES = ("SWANLAB_RUN_ID", "SWANLAB_RESUME")
_run: object | None = None


def write(**call: Any) -> None:
    with Path(os.environ["STAND_IN_LOG"]).open("a") as log_file:
        log_file.write(json.dumps({"tracker": "swanlab", **call}, default=vars) + "\n")


class State(Enum):
    SUCCESS = 1
    CRASHED = -1


class Text:
    def __init__(self, data: str, caption: str) -> None:
        self.data, self.caption = data, caption


def init(**names: str | None) -> None:
    global _run
    _run = object()
    print("swanlab: this goes to the standard output")
    write(call="init", names=names, environment={name: os.environ.get(name) for name in NAMES})


def log(figures: dict[str, Any], step: int) -> None:
    assert _run is not None
    write(call="log", figures=figures, step=step)


def finish(state: State = State.SUCCESS, error: str | None = None) -> None:
    global _run
    if _run is None:
        raise RuntimeError("no run")
    _run = None
    write(call="finish", state=state.name)
