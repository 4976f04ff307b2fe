"""A warm start that was stopped: all that its next step depends on, in one file beside the place of the finished model.

No pickle: tensors in safetensors, the rest as JSON in the file's header. A file that cannot be read is no progress.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mini_r1.run.files import replacing
from mini_r1.training.muon import Muon


@dataclass(slots=True)
class Training:
    """A warm start under way.

    Attributes:
        model: with random weights before the first step.
        matrices: its parameters that Muon updates.
        others: those that AdamW updates.
        adamw: of `others`.
        muon: of `matrices`.
        rng: of the order of the traces.
        batches: of row indices, those of this epoch that are left; the last one is the next.
        step: steps taken.
        seconds: that they and what came before them took, in all attempts.
    """

    model: Any
    matrices: Sequence[torch.nn.Parameter]
    others: Sequence[torch.nn.Parameter]
    adamw: torch.optim.AdamW
    muon: Muon
    rng: random.Random
    batches: list[list[int]] = field(default_factory=list)
    step: int = 0
    seconds: float = 0.0


def save(path: Path, training: Training) -> None:
    """Replace the file atomically.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    tensors = {name: tensor.detach().contiguous() for name, tensor in _tensors(training).items()}
    state = {
        "step": training.step,
        "seconds": training.seconds,
        "batches": training.batches,
        "rng": training.rng.getstate(),
    }
    with replacing(path, sync=False) as scratch:
        save_file(tensors, scratch, metadata={"state": json.dumps(state)})


def load(path: Path, training: Training) -> bool:
    """Bring a training that has not begun to where the file left it; False, and untouched, where there is no such."""
    try:
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        version, internal, gauss = state["rng"]
        rng = (version, tuple(internal), gauss)
        random.Random().setstate(rng)
        step, seconds, batches = (
            int(state["step"]),
            float(state["seconds"]),
            [list(map(int, b)) for b in state["batches"]],
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return False
    for parameter in training.others:
        training.adamw.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    own = _tensors(training)
    if {name: tensor.shape for name, tensor in own.items()} != {name: tensor.shape for name, tensor in tensors.items()}:
        training.adamw.state.clear()
        return False
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    training.rng.setstate(rng)
    training.step, training.seconds, training.batches = step, seconds, batches
    return True


def delete(path: Path) -> None:
    """Delete the file, if it is there and can be."""
    with suppress(OSError):
        path.unlink()


def _tensors(training: Training) -> dict[str, torch.Tensor]:
    """Every tensor that changes, by a name; tied weights come once."""
    found = {f"model.{name}": parameter for name, parameter in training.model.named_parameters()}
    for index, parameter in enumerate(training.others):
        found |= {f"adamw.{index}.{name}": value for name, value in training.adamw.state[parameter].items()}
    return found | {f"muon.{index}": momentum for index, momentum in enumerate(training.muon.momenta)}
