"""What is saved besides the transformers Trainer's own checkpoint, and which checkpoint a run goes on from."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from mini_r1.errors import ExitCode, KitError
from mini_r1.manifest import Saved, seal, verify
from mini_r1.rundir import RunDir

_OF_A_RANK = re.compile(
    r"(?:^|/)(?:rng_state_|(?:bf16_|fp16_)?zero_pp_rank_)([0-9]+)(?:_mp_rank_[0-9]+.*)?\.(?:pth|pt)$"
)

BYTES_PER_TRAINED = 4 + 2 * 4 + 2
"""Of a save, for each trained parameter: float32 weights, Adam's two moments in float32, a 16-bit snapshot."""


def save_snapshot(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    run: RunDir,
    step: int,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write `snapshots/step-N`: weights in 16 bits and the tokenizer, enough to evaluate and to publish.

    Of a model with an adapter the snapshot is the adapter alone, which names its base. Weights that are not in 16 bits
    already are copied, all at once, in the host's memory.

    Args:
        model: not wrapped.
        tokenizer: saved beside the weights.
        run: where.
        step: the optimizer step just done.
        state: the weights, where the model holds only a shard of them.
    """
    scratch = run.snapshots / f".step-{step}"
    shutil.rmtree(scratch, ignore_errors=True)
    adapter = isinstance(model, PeftModel)
    # float16 models keep their type; everything else becomes bfloat16, which has float32's range.
    dtype = torch.float16 if model.dtype == torch.float16 else torch.bfloat16
    converted: dict[int, torch.Tensor] = {}  # by address: tied weights stay one tensor and are saved once
    saved = {}
    for name, tensor in (model.state_dict() if state is None else state).items():
        if adapter and "lora_" not in name:
            continue
        if tensor.data_ptr() not in converted:
            converted[tensor.data_ptr()] = tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        saved[name] = converted[tensor.data_ptr()]
    if adapter:
        model.save_pretrained(scratch, state_dict=saved, safe_serialization=True, save_embedding_layers=False)
    else:
        model.save_pretrained(scratch, state_dict=saved, safe_serialization=True)
        _write_dtype(scratch / "config.json", dtype)
    tokenizer.save_pretrained(scratch)
    seal(scratch, run.snapshots / f"step-{step}", run_id=run.run_id)


def _write_dtype(config: Path, dtype: torch.dtype) -> None:
    """save_pretrained writes the dtype of the model, not of the tensors it was given."""
    values = {**json.loads(config.read_text()), "torch_dtype": str(dtype).removeprefix("torch.")}
    config.write_text(json.dumps(values, indent=2) + "\n")


def written_by(name: str, world_size: int) -> int:
    """The rank that wrote a file of a checkpoint, by the names that transformers and DeepSpeed give.

    On a network filesystem only the writer's fsync counts, so every rank hashes its own files.
    """
    match = _OF_A_RANK.search(name)
    rank = int(match[1]) if match else 0
    return rank if rank < world_size else 0


def space_needed(run: RunDir, trained: int) -> int:
    """Bytes that one more save takes: what the last one took, or BYTES_PER_TRAINED before there is one.

    Args:
        run: where the last one is.
        trained: parameters that are trained.
    """
    newest = [*run.complete_checkpoints()[:1], *run.complete_snapshots()[:1]]
    if len(newest) == 2:
        return sum(path.stat().st_size for saved in newest for path in saved.path.rglob("*") if path.is_file())
    return BYTES_PER_TRAINED * trained


def check_space(run: RunDir, needed: int) -> None:
    """Before a save writes its first byte.

    Raises:
        KitError: the disk has less than `needed` bytes left; retryable, because the run can go on once there is space.
    """
    free = shutil.disk_usage(run.path).free
    if free >= needed:
        return
    newest = run.complete_checkpoints()[:1]
    start = f"from step {newest[0].step}" if newest else "from the beginning"
    raise KitError(
        f"a checkpoint and its snapshot need {_shown(needed)}, and the disk of {run.path} has {_shown(free)} left: "
        f"make space and start the same command again, it goes on {start}",
        ExitCode.RETRY,
    )


def checkpoint_to_resume(run: RunDir, console: Console, world_size: int) -> Saved | None:
    """The newest checkpoint whose files have the sizes and hashes of its manifest; skipped ones are named.

    Only such a checkpoint is ever read: it holds pickles (optimizer and random states), and the manifest of this very
    run is what says that they are the run's own.

    Raises:
        KitError: its state is sharded over another number of workers.
    """
    checkpoints = run.complete_checkpoints()
    for saved in checkpoints:
        fault = verify(saved, run.run_id)
        if fault is None:
            _refuse_other_shards(saved, world_size)
            return saved
        console.print(f"checkpoint of step {saved.step} is damaged and skipped: {fault}", style="yellow", markup=False)
    if checkpoints:
        console.print("no checkpoint can be used: starting from the beginning", style="yellow")
    return None


def _refuse_other_shards(saved: Saved, world_size: int) -> None:
    before = saved.facts.get("world_size", 1)
    if saved.facts.get("sharded") and before != world_size:
        raise KitError(
            f"the checkpoint of step {saved.step} was written by {before} workers with DeepSpeed ZeRO, which shards "
            f"the optimizer's state over them (DeepSpeed#5405), and there are {world_size} now: start with "
            f"{before} again, or choose another --run-dir"
        )


def _shown(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
