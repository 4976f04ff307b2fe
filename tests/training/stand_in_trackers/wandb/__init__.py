"""A stand-in for wandb with what transformers' WandbCallback and the kit call: calls go to $STAND_IN_LOG as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

NAMES = ("WANDB_RUN_ID", "WANDB_RESUME")


def write(**call: Any) -> None:
    with Path(os.environ["STAND_IN_LOG"]).open("a") as log:
        log.write(json.dumps({"tracker": "wandb", **call}, default=vars) + "\n")


class Config(dict):
    def update(self, values: dict[str, Any], allow_val_change: bool = False) -> None:
        super().update(values)


class Run:
    summary: dict[str, Any]

    def __init__(self) -> None:
        self.summary = {}

    def _label(self, code: str) -> None: ...


class Table:
    def __init__(self, columns: list[str], data: list[list[Any]]) -> None:
        self.columns, self.data = columns, data


run: Run | None = None
config = Config()


def init(**names: str) -> None:
    global run
    if os.environ.get("STAND_IN_REFUSES"):
        raise ConnectionError("no server")
    run = Run()
    write(call="init", names=names, environment={name: os.environ.get(name) for name in NAMES})


def log(figures: dict[str, Any]) -> None:
    assert run is not None
    write(call="log", figures=figures)


def define_metric(name: str, step_metric: str | None = None, step_sync: bool = False) -> None: ...


def finish(exit_code: int = 0) -> None:
    global run
    run = None
    write(call="finish", exit_code=exit_code)
