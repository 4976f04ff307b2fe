"""What is saved besides the transformers Trainer's own checkpoint, and which checkpoint a run goes on from."""

from __future__ import annotations

import json
import shutil
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from mini_r1.rundir import RunDir, Saved, seal, verify


def save_snapshot(model: Any, tokenizer: PreTrainedTokenizerBase, run: RunDir, step: int) -> None:
    """Write `snapshots/step-N`: weights in 16 bits and the tokenizer, enough to evaluate and to publish."""
    scratch = run.snapshots / f".step-{step}"
    shutil.rmtree(scratch, ignore_errors=True)
    # float16 models keep their type; everything else becomes bfloat16, which has float32's range.
    dtype = torch.float16 if model.dtype == torch.float16 else torch.bfloat16
    converted: dict[int, torch.Tensor] = {}  # by address: tied weights stay one tensor and are saved once
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in converted:
            converted[tensor.data_ptr()] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        state[name] = converted[tensor.data_ptr()]
    model.save_pretrained(scratch, state_dict=state, safe_serialization=True)
    config = scratch / "config.json"  # save_pretrained writes the dtype of the model, not of the tensors it was given
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "torch_dtype": str(dtype).removeprefix("torch.")}, indent=2)
        + "\n"
    )
    tokenizer.save_pretrained(scratch)
    seal(scratch, run.snapshots / f"step-{step}")


def checkpoint_to_resume(run: RunDir, console: Console) -> Saved | None:
    """The newest checkpoint whose files have the sizes and hashes of its manifest; skipped ones are named.

    Only such a checkpoint is ever read: it holds pickles (optimizer and random states), and the manifest of this very
    run is what says that they are the run's own.
    """
    for saved in run.complete_checkpoints():
        fault = verify(saved)
        if fault is None:
            return saved
        console.print(f"checkpoint of step {saved.step} is damaged and skipped: {fault}", style="yellow", markup=False)
    return None
