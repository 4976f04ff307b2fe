"""Seconds of an optimizer step and hours of a run: an estimate from assumptions that are printed with it.

A step is a rollout, its log-probabilities under the reference, the update, and a share of a save. Training needs 2
FLOPs for each parameter and token forward and 4 backward (Kaplan et al., arXiv:2001.08361, section 2.1), and 2 more
where activations are calculated again. Decoding reads all weights and the cache for each token of the batch, so the
memory's bandwidth bounds it (Pope et al., arXiv:2211.05102, section 2), and the host's work on each token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mini_r1.errors import KitError
from mini_r1.plan.disk_space import DiskUse
from mini_r1.plan.memory import GIB, SAMPLER_ROWS, compute_bytes, kv_bytes_per_token
from mini_r1.plan.shapes import ModelShape
from mini_r1.plan.vllm_memory import MAX_SEQUENCES
from mini_r1.recipe.fields import DEMO_MODEL, Recipe


@dataclass(frozen=True, slots=True)
class GpuClass:
    """A GPU by its data sheet.

    Attributes:
        name: of the model.
        from_gib: the least memory that is taken for it.
        flops: dense bfloat16, a second.
        bandwidth: of its memory, bytes a second.
    """

    name: str
    from_gib: float
    flops: float
    bandwidth: float


GPU_CLASSES: Final = (
    GpuClass("H100 SXM", 64, 989e12, 3.35e12),
    GpuClass("A100 40 GB", 32, 312e12, 1.555e12),
    GpuClass("A10", 0, 125e12, 0.6e12),
)
"""NVIDIA's data sheets. Which one is meant is guessed from the memory: a plan knows nothing else of a GPU."""

TRAINING_SHARE: Final = 0.25
"""Of the peak FLOPs, forward and backward, in transformers' own layers with padding."""
PREFILL_SHARE: Final = 0.4
"""Of the peak FLOPs while prompts are read."""
BANDWIDTH_SHARE: Final = 0.6
"""Of the peak bandwidth while decoding."""
MEAN_COMPLETION: Final = 0.4
"""Mean completion as a share of max_completion_length: the original's were 310 to 480 of 1,024. The longest is taken as
the whole."""
MEAN_PROMPT: Final = 150
"""Tokens of a prompt, at most max_prompt_length."""
VLLM_TOKEN_S, VLLM_ROW_S = 5e-3, 8e-5
"""The host's work on each decoding step of vLLM's V0 engine, and on each running sequence of it."""
SAMPLER_LAYER_S: Final = 8e-4
"""The host's work on each decoding step and layer of transformers' own generation."""
ADAPTER: Final = 1.5
"""Work of small tensors with an adapter beside each linear layer."""
DISK_BYTES_S: Final = 1e9
"""Written, hashed and flushed."""
OFFLOAD_BYTES_S: Final = 1e10
"""Between GPU and host, and through the host's optimizer, for each worker."""
DEMO_COMPLETION_S: Final = 2.7e-3
"""For each completion of the demo, at most 96 tokens long, rollout and update, on one core: 116 s for 85 steps of 512
(bench/RESULTS.md)."""

GRACE_VARIABLE: Final = "MINI_R1_GRACE_S"
"""Set in a pod to its terminationGracePeriodSeconds, which it cannot see otherwise."""


@dataclass(frozen=True, slots=True)
class Timing:
    """An estimate.

    Attributes:
        rollout, reference, update, save: seconds of one step's parts; of a save its share in each step.
        whole_save: seconds of one save.
        steps: of the run; None where they are not known.
        assumptions: in words.
    """

    rollout: float
    reference: float
    update: float
    save: float
    whole_save: float
    steps: int | None
    assumptions: tuple[str, ...]

    @property
    def step_s(self) -> float:
        """Seconds of an optimizer step."""
        return self.rollout + self.reference + self.update + self.save

    @property
    def stop_s(self) -> float:
        """Seconds from a request to stop to the end of its save, at most: an update is finished before."""
        return self.update + self.whole_save

    @property
    def hours(self) -> float | None:
        """Of the run, without start and evaluation."""
        return None if self.steps is None else self.step_s * self.steps / 3600

    def to_dict(self) -> dict[str, object]:
        """For --json."""
        parts = {name: round(getattr(self, name), 2) for name in ("rollout", "reference", "update", "save")}
        hours = None if self.hours is None else round(self.hours, 3)
        return {
            "step_s": round(self.step_s, 2),
            **parts,
            "hours": hours,
            "whole_save": round(self.whole_save, 2),
            "stop_s": round(self.stop_s, 2),
            "assumptions": list(self.assumptions),
        }


def gpu_class(gpu_memory_gib: float | None) -> GpuClass:
    """The GPU that a memory of this size speaks of; unknown is taken for the largest."""
    return next(gpu for gpu in GPU_CLASSES if gpu_memory_gib is None or gpu_memory_gib >= gpu.from_gib)


def gpu_timing(
    recipe: Recipe,
    shape: ModelShape,
    workers: int,
    *,
    steps: int | None,
    storage: DiskUse,
    offloaded: bool,
    gpu_memory_gib: float | None,
    rollouts: int = 1,
) -> Timing:
    """The estimate on GPUs.

    Args:
        recipe: what runs.
        shape: of its model.
        workers: training GPUs, N.
        steps: of the run.
        storage: what a save writes.
        offloaded: whether the optimizer is in the host's memory.
        gpu_memory_gib: tells the class of GPU.
        rollouts: in each step, one after another: 1 here, the accumulation in stock TRL 0.14.0.
    """
    gpu = gpu_class(gpu_memory_gib)
    own = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * recipe.num_generations
    prompt = min(MEAN_PROMPT, recipe.max_prompt_length)
    tokens = own * (prompt + MEAN_COMPLETION * recipe.max_completion_length)
    forward = 2 * shape.parameters * tokens / (gpu.flops * TRAINING_SHARE)
    update = forward * (4 if recipe.gradient_checkpointing else 3)
    if offloaded:
        update += 16 * shape.parameters / workers / OFFLOAD_BYTES_S
    rows = own * workers if recipe.use_vllm else own
    rollout = rollouts * _rollout(recipe, shape, gpu, rows / rollouts, prompt)
    whole_save = (storage.checkpoint + storage.snapshot) * GIB / DISK_BYTES_S
    every = recipe.save_steps if recipe.save_strategy == "steps" else steps or 1
    return Timing(
        rollout=rollout,
        reference=forward if recipe.beta else 0.0,
        update=update,
        save=whole_save / every,
        whole_save=whole_save,
        steps=steps,
        assumptions=(
            f"{gpu.name}: {gpu.flops / 1e12:.0f} TFLOPS, {gpu.bandwidth / 1e12:.2f} TB/s; of these "
            f"{TRAINING_SHARE:.0%} in training, {PREFILL_SHARE:.0%} in reading prompts, "
            f"{BANDWIDTH_SHARE:.0%} in decoding",
            f"prompts of {prompt} tokens, completions of {MEAN_COMPLETION:.0%} of max_completion_length, the longest "
            "of a rollout all of it",
            f"{DISK_BYTES_S / 1e9:.0f} GB/s to the disk; without start and evaluation",
        ),
    )


def _rollout(recipe: Recipe, shape: ModelShape, gpu: GpuClass, rows: float, prompt: int) -> float:
    """Seconds of one call of the generator: reading the prompts, then a step for each token of the longest answer."""
    each = compute_bytes(recipe, shape)
    weights = shape.parameters * each
    longest = recipe.max_completion_length
    mean = MEAN_COMPLETION * longest
    # On average over a rollout that lasts as long as its longest completion; more than vLLM takes at once wait.
    running = min(rows * MEAN_COMPLETION, MAX_SEQUENCES if recipe.use_vllm else SAMPLER_ROWS)
    cache = running * (prompt + mean / 2) * kv_bytes_per_token(shape, each)
    read = (weights + cache) / (gpu.bandwidth * BANDWIDTH_SHARE)
    if recipe.use_vllm:
        host = VLLM_TOKEN_S + VLLM_ROW_S * running
    else:
        host = SAMPLER_LAYER_S * shape.layers * (ADAPTER if recipe.use_peft else 1.0)
    prefill = 2 * shape.parameters * prompt * rows / recipe.num_generations / (gpu.flops * PREFILL_SHARE)
    return prefill + max(longest, rows * mean / running) * (read + host)


def demo_timing(recipe: Recipe, steps: int | None) -> Timing | None:
    """The estimate on a CPU: measured on the demo, and for the demo's model alone."""
    if recipe.model_name_or_path != DEMO_MODEL:
        return None
    own = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * recipe.num_generations
    seconds = own * DEMO_COMPLETION_S * recipe.max_completion_length / 96 * (ADAPTER if recipe.use_peft else 1.0)
    return Timing(
        rollout=seconds * 0.5,
        reference=0.0,
        update=seconds * 0.5,
        save=0.0,
        whole_save=0.0,
        steps=steps,
        assumptions=(
            "measured on the demo: 2.7 ms for each completion of at most 96 tokens, on one core of an AMD EPYC; "
            "without the warm start, which takes about a minute once",
        ),
    )


def given_grace(environment: Mapping[str, str], asked: float | None = None) -> tuple[float, str] | None:
    """Return the seconds that a run is given, and what gives them; None where nobody says.

    Args:
        environment: of this process.
        asked: of the option --grace, which counts first.

    Raises:
        KitError: not a number of seconds.
    """
    if asked is not None:
        if not (math.isfinite(asked) and asked >= 0):
            raise KitError(f"--grace {asked:g}: must be seconds, 0 or more")
        return asked, "the grace period (--grace)"
    text = environment.get(GRACE_VARIABLE, "")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise KitError(f"{GRACE_VARIABLE} is {text!r}: set it to the pod's terminationGracePeriodSeconds, or unset it")
    return seconds, f"terminationGracePeriodSeconds ({GRACE_VARIABLE})"


def time_to_stop(timing: Timing) -> str:
    """Return how long a run needs from a request to stop to the end of its save."""
    return f"{timing.stop_s:.0f} s (update {timing.update:.0f}, save {timing.whole_save:.0f})"


def grace_warning(timing: Timing | None, given: tuple[float, str] | None) -> str | None:
    """Return a sentence where a run is given less time to stop than it needs, None where it has enough."""
    if timing is None or given is None or given[0] >= timing.stop_s:
        return None
    seconds, what = given
    return (
        f"asked to stop, the run needs up to {time_to_stop(timing)}, and {what} is {seconds:g} s: a run that is killed "
        f"before it has saved repeats the steps since its last checkpoint: {grace_advice(timing, what)}"
    )


def grace_advice(timing: Timing, what: str) -> str:
    """Return what to set where `what` is too short."""
    return (
        f"set {what} to {math.ceil(timing.stop_s / 10) * 10} s or more, or bound the loss with save_minutes or a "
        "smaller save_steps"
    )
