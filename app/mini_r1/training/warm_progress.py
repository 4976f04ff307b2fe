"""The progress of a stopped warm start: everything that its next step depends on, in one file.

No pickle: tensors in safetensors, the rest as JSON in the file's header. A file that can't be read is no progress.
"""

import json
import random
from collections.abc import Sequence
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
    """A warm start in progress."""

    model: Any
    others: Sequence[torch.nn.Parameter]  # updated by AdamW, the rest by Muon
    adamw: torch.optim.AdamW
    muon: Muon
    rng: random.Random  # for the order of the traces
    batches: list[list[int]] = field(default_factory=list)  # row indices, left in this epoch; the last one is the next
    step: int = 0
    seconds: float = 0.0  # of all attempts


def save(path: Path, training: Training) -> None:
    """Replace the file atomically; raise OSError or SafetensorError if it can't be written."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in _tensors(training).items()}
    state = {name: getattr(training, name) for name in ("step", "seconds", "batches")}
    state["rng"] = training.rng.getstate()
    with replacing(path, sync=False) as scratch:
        save_file(tensors, scratch, metadata={"state": json.dumps(state)})


def load(path: Path, training: Training) -> None:
    """Restore a training that has not begun; leave it as it is if the file can't be read or is another model's."""
    try:
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        version, internal, gauss = state["rng"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return
    for parameter in training.others:
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        training.adamw.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
    own = _tensors(training)
    if {name: tensor.shape for name, tensor in own.items()} != {name: tensor.shape for name, tensor in tensors.items()}:
        training.adamw.state.clear()
        return
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    training.rng.setstate((version, tuple(internal), gauss))
    training.step, training.seconds, training.batches = state["step"], state["seconds"], state["batches"]


def _tensors(training: Training) -> dict[str, torch.Tensor]:
    """Return every tensor that changes, by name; tied weights come once."""
    found = {f"model.{name}": parameter for name, parameter in training.model.named_parameters()}
    for index, parameter in enumerate(training.others):
        found |= {f"adamw.{index}.{name}": value for name, value in training.adamw.state[parameter].items()}
    return found | {f"muon.{index}": momentum for index, momentum in enumerate(training.muon.momenta)}
