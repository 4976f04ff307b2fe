"""A stand-in for SwanLab's integration: it starts a run and logs, under the names of its `rewrite_logs`."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

import swanlab


def rewrite_logs(logs: dict[str, Any]) -> dict[str, Any]:
    return {f"train/{name}": value for name, value in logs.items()}


class SwanLabCallback(TrainerCallback):
    def __init__(self, **names: str | None) -> None:
        self._names = names

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        swanlab.init(**self._names)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        swanlab.log(rewrite_logs(logs), step=state.global_step)
