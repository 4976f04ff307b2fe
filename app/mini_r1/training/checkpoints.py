"""Snapshots, complete checkpoints, the disk space that they need, and the checkpoint that a run resumes from."""

import json
import os
import re
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from mini_r1.console import shown_bytes
from mini_r1.disk_errors import disk_error, disk_errors, hidden_disk_error
from mini_r1.errors import ExitCode, KitError
from mini_r1.run.files import folder_bytes
from mini_r1.run.manifest import Saved, digests, seal, tidy, verify
from mini_r1.run.run_dir import RunDir
from mini_r1.training.run_logs import LOGS, describe_lost_logs, sync_logs
from mini_r1.training.schedule import refuse_other_shards
from mini_r1.training.world import World

_OF_A_RANK = re.compile(
    r"(?:^|/)(?:rng_state_([0-9]+)\.pth|(?:bf16_)?zero_pp_rank_([0-9]+)_mp_rank_[0-9]+_(?:optim|model)_states\.pt)$"
)
"""Files that each rank writes: transformers 4.48.1's random states, and DeepSpeed 0.15.4's shards
(`engine._get_rank_zero_ckpt_name`, `engine._get_ckpt_name`)."""
CHECKPOINT_BYTES = 4 + 2 * 4
"""Bytes of a trained parameter: weight and Adam's two moments in float32. Less with 16-bit weights; ZeRO-2 adds the
model's weights."""
SNAPSHOT_BYTES = 2
"""Bytes of a trained parameter: 16 bits."""


def save_snapshot(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    run: RunDir,
    step: int,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write `snapshots/step-N`: weights in 16 bits and the tokenizer, enough to evaluate and to publish.

    The snapshot of a model with an adapter is the adapter alone. Weights are converted one by one into the host's
    memory: 2 bytes a parameter, none if they are there in 16 bits already; on a GPU it takes the largest one once
    more. `state` has the weights if the model, which is not wrapped, holds only a shard of them.
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
    options = {"save_embedding_layers": False} if adapter else {}
    model.save_pretrained(scratch, state_dict=saved, safe_serialization=True, **options)
    if not adapter:
        config = scratch / "config.json"  # has the dtype of the model, not of the tensors that are saved
        values = {**json.loads(config.read_text()), "torch_dtype": str(dtype).removeprefix("torch.")}
        config.write_text(json.dumps(values, indent=2) + "\n")
    tokenizer.save_pretrained(scratch)
    seal(scratch, run.snapshots / f"step-{step}", run_id=run.require_id())


def written_by(name: str, world_size: int) -> int:
    """Return the rank that wrote a file of a checkpoint: on a network filesystem only its fsync counts."""
    match = _OF_A_RANK.search(name)
    rank = int(match[1] or match[2]) if match else 0
    return rank if rank < world_size else 0


def seal_together(folder: Path, run: RunDir, step: int, world: World, facts: dict[str, Any]) -> None:
    """Complete a checkpoint once every rank has written its part, and delete the oldest; every rank has to call it.

    `folder`, which transformers has written, becomes `checkpoints/step-N`; `facts` are for its manifest.
    """
    world.wait()
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    own = digests(folder, [name for name in names if written_by(name, world.size) == world.rank])
    files = {name: digest for part in gather_object([own]) for name, digest in part.items()}
    if world.main:
        facts = {"world_size": world.size, **facts, LOGS: sync_logs(run)}  # synced before the manifest is written
        seal(folder, run.checkpoints / f"step-{step}", run_id=run.require_id(), files=files, **facts)
        run.prune_checkpoints()
    world.wait()


def space_needed(run: RunDir, trained: int, *, snapshot: bool = True) -> int:
    """Return the bytes that one more save takes: an old checkpoint is deleted only when the new one is complete.

    The size of the newest checkpoint and snapshot. Before there are any, (12 + 2) * `trained`, the number of trained
    parameters over all workers: an upper bound except for ZeRO-2, see CHECKPOINT_BYTES.
    """
    checkpoints, snapshots = run.complete_checkpoints(), run.complete_snapshots()
    needed = folder_bytes(checkpoints[0].path) if checkpoints else CHECKPOINT_BYTES * trained
    if snapshot:
        needed += folder_bytes(snapshots[0].path) if snapshots else SNAPSHOT_BYTES * trained
    return needed


def check_space(run: RunDir, needed: int) -> None:
    """Raise KitError, retryable, if less than `needed` bytes are left or the run directory is gone.

    Call it before a save writes its first byte. A quota is not seen here: it fails the write.
    """
    with disk_errors(run.path, lambda: next_start(run)):
        run.require_id()
    free = shutil.disk_usage(run.path).free
    if free < needed:
        raise KitError(
            f"a checkpoint and its snapshot need {shown_bytes(needed)}, and the disk of {run.path} has "
            f"{shown_bytes(free)} left. Free space on that disk, then run the same command again: {next_start(run)}.",
            ExitCode.RETRY,
        )


def next_start(run: RunDir) -> str:
    """Return what the next start does, to end an error message with."""
    with suppress(OSError):
        if os.path.isdir(run.path):
            newest = run.complete_checkpoints()[:1]
            return f"it resumes from step {newest[0].step}" if newest else "it starts from the beginning"
    return "it resumes from the last complete checkpoint"


@contextmanager
def saving(run: RunDir, main: bool) -> Iterator[None]:
    """Delete what a failed save has written, on rank 0: state.json and the log need the space for the error.

    Raises KitError, retryable, if the disk failed.
    """
    try:
        yield
    except Exception as error:
        unfinished = run.path
        with suppress(OSError):
            folders = [*run.checkpoints.glob("checkpoint-*"), *run.snapshots.glob(".step-*"), run.path]
            unfinished = folders[0]
        failed = hidden_disk_error(error, unfinished)
        # Before anything is deleted: the message has the space that was left.
        described = None if failed is None else disk_error(failed, run.path, next_start(run))
        if main:
            # torch.save's writer keeps its file open, and so its space on the disk, as long as its frames exist.
            cause: BaseException | None = error
            while cause is not None:
                traceback.clear_frames(cause.__traceback__)
                cause = cause.__context__
            with suppress(OSError):  # a disk that has become read-only; the first error has the cause
                tidy(run.checkpoints)
                tidy(run.snapshots)
        if described is None:
            raise
        raise described from error


def checkpoint_to_resume(run: RunDir, console: Console, world_size: int, zero_stage: int = 0) -> Saved | None:
    """Return the newest checkpoint whose files have the sizes and hashes of its manifest; skipped ones are reported.

    No other checkpoint is read: it holds pickles (optimizer and random states), and only the manifest of this run shows
    that the run wrote them. Raises KitError if its state is sharded in another way than the workers' now, or run.json
    is missing or damaged.
    """

    def warn(text: str) -> None:
        console.print(text, style="yellow", markup=False)

    checkpoints = run.complete_checkpoints()
    if checkpoints and not run.run_id:
        raise KitError(
            f"{run.run_file} is missing or damaged, and it identifies this run's checkpoints: put it back, "
            "or choose another --run-dir"
        )
    for saved in checkpoints:
        damage = verify(saved, run.run_id)
        if damage is None:
            refuse_other_shards(saved, world_size, zero_stage)
            run.prune_checkpoints()  # a kill may have come between the last save and its pruning
            lost = describe_lost_logs(run, saved)
            if lost is not None:
                warn(lost)
            return saved
        aside = run.set_aside(saved)
        warn(
            f"checkpoint of step {saved.step} is damaged and skipped: {damage}. It is {aside} now: delete it when you "
            "have looked at it"
        )
    if checkpoints:
        warn("no checkpoint can be used: starting from the beginning")
    return None
