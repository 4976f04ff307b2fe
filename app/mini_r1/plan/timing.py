"""Seconds of an optimizer step and hours of a run: an estimate from assumptions that are printed with it.

A step is the sync of the weights to vLLM, a rollout, its broadcast and scoring, its log-probabilities under the
reference, the update, and a share of a save; with `rollout_ahead: 1` the rollout takes place during score, reference,
update and save. Training needs 2 FLOPs per parameter and token forward and 4 backward
(Kaplan et al., arXiv:2001.08361, section 2.1), and 2 more if activations are calculated again. Decoding reads all
weights and the cache for each token of the batch, so the memory's bandwidth bounds it (Pope et al., arXiv:2211.05102,
section 2), and the host's work on each token. What GPUs send each other is not counted.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from mini_r1.errors import KitError
from mini_r1.plan.disk_space import DiskUse
from mini_r1.plan.memory import MAX_SEQUENCES, SAMPLER_ROWS, kv_bytes_per_token
from mini_r1.plan.training_setup import TrainingSetup
from mini_r1.recipe.fields import DEMO_MODEL
from mini_r1.values import GIB


class GpuClass(NamedTuple):
    """A GPU by its data sheet: dense bfloat16 FLOPs and bytes of memory traffic a second."""

    name: str
    from_gib: float  # least memory by which it is recognized
    flops: float
    bandwidth: float


GPU_CLASSES: Final = (
    GpuClass("H100 SXM", 64, 989e12, 3.35e12),
    GpuClass("A100 40 GB", 32, 312e12, 1.555e12),
    GpuClass("A10", 0, 125e12, 0.6e12),
)
"""NVIDIA's data sheets. The class is guessed from the memory: a plan knows nothing else of a GPU."""

TRAINING_SHARE: Final = 0.25
"""Share of the peak FLOPs in forward and backward passes. An assumption: the only figure of a GPU is 2 % for a model of
0.5B parameters, 5 % with stock TRL (bench/RESULTS.md, gpu), and larger matrices use a GPU better."""
PREFILL_SHARE: Final = 0.4  # share of the peak FLOPs while prompts are read; an assumption
BANDWIDTH_SHARE: Final = 0.6  # share of the peak bandwidth while decoding; an assumption
MEAN_COMPLETION: Final = 0.4
"""Mean completion as a share of max_completion_length: the original's were 310 to 480 of 1,024. The longest is taken as
the whole."""
MEAN_PROMPT: Final = 150  # tokens of a prompt, at most max_prompt_length
VLLM_TOKEN_S, VLLM_ROW_S = 3e-3, 1e-4
"""The host's work on each decoding step of vLLM's V0 engine, and on each running sequence in it: processor time of the
real vLLM 0.7.0 without its model's forward pass, 2.7 and 0.10 ms on a busy CPU (bench/RESULTS.md, plan_constants). A
GPU's host starts kernels instead, and prepares a step during the one before."""
SAMPLER_LAYER_S: Final = 1.57e-3
"""The host's work on each decoding step and layer of transformers' own generation: 37.8 ms a token of up to 64 rows in
24 layers on the host of an H100 (bench/RESULTS.md, gpu)."""
ADAPTER: Final = 1.9
"""Factor for an adapter on all linear layers: 175 operations a layer against 91 (bench/plan_constants.py)."""
SYNC_BYTES_S: Final = 9e9
"""Weights on their way to vLLM. An assumption, 0.7 s for 3B: out of one GPU and into another at 25 GB/s each (PCIe 4),
overlapped, and 0.35 s for vLLM's own work on its 434 tensors, measured on a CPU."""
BROADCAST_TOKEN_S: Final = 2.5e-6
"""A token and its log-probability from vLLM to the worker that uses it: JSON and pickle, on a CPU."""
SCORE_S: Final = 1.1e-3  # a completion of a worker: 64 took 0.07 s on the host of an H100 (bench/RESULTS.md, gpu)
DISK_BYTES_S: Final = 1e9  # written, hashed and flushed; an assumption
OFFLOAD_BYTES_S: Final = 1e10  # between GPU and host, and through the host's optimizer, per worker; an assumption
DEMO_COMPLETION_S: Final = 2.7e-3
"""Rollout and update of one completion of the demo, at most 96 tokens long, on one core: 116 s for 85 steps of 512
(bench/RESULTS.md)."""
DEMO_ADAPTER: Final = 1.5  # times that with an adapter
GRACE_VARIABLE: Final = "MINI_R1_GRACE_S"
"""Set in a pod to its terminationGracePeriodSeconds, which it cannot see otherwise."""


WORTH: Final = 0.1
"""Least share of a step that `rollout_ahead: 1` must save for a plan to mention it."""
PHASES: Final = ("sync", "rollout", "broadcast", "score", "reference", "update", "save")


@dataclass(frozen=True, slots=True)
class Timing:
    """An estimate, in seconds."""

    rollout: float
    update: float
    steps: int | None  # of the run; None if unknown
    assumptions: tuple[str, ...]
    sync: float = 0.0  # of the weights to vLLM
    broadcast: float = 0.0  # of vLLM's completions; a run logs it in time/rollout
    score: float = 0.0
    reference: float = 0.0
    save: float = 0.0  # share of a save in each step
    whole_save: float = 0.0
    ahead: bool = False  # whether the recipe has rollout_ahead: 1
    own_gpu: bool = False  # whether vLLM has a GPU that nothing is trained on, so that both can work at a time

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of each phase of a step, in order."""
        return {name: getattr(self, name) for name in PHASES}

    @property
    def training(self) -> float:
        """Seconds of the phases that a rollout ahead overlaps with."""
        return self.score + self.reference + self.update + self.save

    @property
    def step_s(self) -> float:
        return self.ahead_step_s if self.ahead else sum(self.phases.values())

    @property
    def ahead_step_s(self) -> float:
        """Seconds of a step with `rollout_ahead: 1`, which on one GPU for both saves none."""
        together = max(self.rollout, self.training) if self.own_gpu else self.rollout + self.training
        return self.sync + self.broadcast + together

    @property
    def bound(self) -> str:
        """The longer of the two that `rollout_ahead: 1` overlaps: rollout or update."""
        return "rollout" if self.rollout >= self.training else "update"

    @property
    def stop_s(self) -> float:
        """Most seconds from a request to stop to the end of its save: an update is finished before."""
        return self.update + self.whole_save

    @property
    def hours(self) -> float | None:
        """Hours of the run, without start and evaluation."""
        return None if self.steps is None else self.step_s * self.steps / 3600

    def to_dict(self) -> dict[str, object]:
        hours = None if self.hours is None else round(self.hours, 3)
        names = ("step_s", *(["ahead_step_s"] * self.own_gpu), *PHASES, "whole_save", "stop_s")
        seconds = {name: round(getattr(self, name), 2) for name in names}
        return {**seconds, "hours": hours, "assumptions": list(self.assumptions)}


def gpu_class(gpu_memory_gib: float | None) -> GpuClass:
    """Return the GPU that has this much memory; unknown memory counts as the largest."""
    return next(gpu for gpu in GPU_CLASSES if gpu_memory_gib is None or gpu_memory_gib >= gpu.from_gib)


def gpu_timing(setup: TrainingSetup, steps: int | None, disk: DiskUse) -> Timing:
    recipe, parameters, gpu = setup.recipe, setup.shape.parameters, gpu_class(setup.gpu_memory_gib)
    prompt = min(MEAN_PROMPT, recipe.max_prompt_length)
    completions, mean = setup.completions_per_worker, MEAN_COMPLETION * recipe.max_completion_length
    forward = 2 * parameters * completions * (prompt + mean) / (gpu.flops * TRAINING_SHARE)
    # Backward once for the inputs and once for the weights, which below an adapter are not trained.
    update = forward * (1 + (1 if recipe.use_peft else 2) + recipe.gradient_checkpointing)
    if setup.zero.offload_optimizer:
        update += 16 * parameters / setup.workers / OFFLOAD_BYTES_S
    whole_save = (disk.checkpoint + disk.snapshot) * GIB / DISK_BYTES_S
    every = recipe.save_every(steps or 1) if recipe.save_strategy == "steps" else steps or 1
    sent = parameters * (setup.compute_bytes if setup.zero.stage else setup.weight_bytes)
    return Timing(
        sync=sent / SYNC_BYTES_S if recipe.use_vllm else 0.0,
        rollout=rollout_s(setup, gpu, prompt),
        broadcast=setup.workers * completions * mean * BROADCAST_TOKEN_S if recipe.use_vllm else 0.0,
        score=completions * SCORE_S,
        reference=forward if recipe.beta else 0.0,
        update=update,
        save=whole_save / every,
        whole_save=whole_save,
        ahead=bool(recipe.rollout_ahead),
        own_gpu=recipe.use_vllm and not setup.shared_gpu,
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


def rollout_s(setup: TrainingSetup, gpu: GpuClass, prompt: int) -> float:
    """Return the seconds to read the prompts, then one decoding step for each token of the longest answer."""
    recipe, shape, each = setup.recipe, setup.shape, setup.compute_bytes
    rows = setup.rollout_rows
    longest = recipe.max_completion_length
    mean = MEAN_COMPLETION * longest
    # On average over a rollout that lasts as long as its longest completion; more than vLLM takes at once wait.
    running = min(rows * MEAN_COMPLETION, MAX_SEQUENCES if recipe.use_vllm else SAMPLER_ROWS)
    cache = running * (prompt + mean / 2) * kv_bytes_per_token(shape, each)
    read = (shape.parameters * each + cache) / (gpu.bandwidth * BANDWIDTH_SHARE)
    if recipe.use_vllm:
        host = VLLM_TOKEN_S + VLLM_ROW_S * running
        prompts = rows  # no prefix cache: it would keep the keys and values of older weights
    else:
        host = SAMPLER_LAYER_S * shape.layers * (ADAPTER if recipe.use_peft else 1.0)
        prompts = rows // recipe.num_generations
    prefill = 2 * shape.parameters * prompt * prompts / (gpu.flops * PREFILL_SHARE)
    return prefill + max(longest, rows * mean / running) * (read + host)


def demo_timing(setup: TrainingSetup, steps: int | None) -> Timing | None:
    """Return the estimate on a CPU, measured with the demo's model; None for any other."""
    recipe = setup.recipe
    if recipe.model_name_or_path != DEMO_MODEL:
        return None
    each = DEMO_COMPLETION_S * recipe.max_completion_length / 96 * (DEMO_ADAPTER if recipe.use_peft else 1.0)
    half = setup.completions_per_worker * each / 2
    assumption = (
        "measured on the demo: 2.7 ms for each completion of at most 96 tokens, on one core of an AMD EPYC; "
        "without the warm start, which takes about a minute once"
    )
    return Timing(half, half, steps, (assumption,))


def describe_ahead(timing: Timing) -> str | None:
    """Describe what `rollout_ahead` saves, or would save if it is worth WORTH; None if it saves less."""
    without, with_it = sum(timing.phases.values()), timing.ahead_step_s
    if timing.ahead:
        return f"rollout_ahead: {with_it:.1f} s a step, without it {without:.1f}; the {timing.bound} bounds it"
    if with_it > (1 - WORTH) * without:
        return None
    shorter = f"{with_it:.1f} s a step ({with_it / without - 1:.0%}), bounded by the {timing.bound}"
    return f"rollout_ahead: 1 would take {shorter}: docs/overlap.md has what it changes"


def describe_stop(timing: Timing) -> str:
    """Describe how long a run needs from a request to stop to the end of its save."""
    return f"{timing.stop_s:.0f} s (update {timing.update:.0f}, save {timing.whole_save:.0f})"


def grace_warning(timing: Timing | None, environment: Mapping[str, str], option_s: float | None = None) -> str | None:
    """Return a warning if the option or the pod leaves a run less time to stop than it needs.

    Raises KitError for what is not a number of seconds.
    """
    text = environment.get(GRACE_VARIABLE, "") if option_s is None else str(option_s)
    if not text:
        return None
    source = f"terminationGracePeriodSeconds ({GRACE_VARIABLE})" if option_s is None else "the grace period (--grace)"
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise KitError(f"{source} is {text!r}: it must be a number of seconds, 0 or more")
    if timing is None or seconds >= timing.stop_s:
        return None
    return (
        f"the run needs up to {describe_stop(timing)} to stop, and {source} is {seconds:g} s: a run that is killed "
        f"before it has saved repeats the steps since its last checkpoint: set {source} to "
        f"{math.ceil(timing.stop_s / 10) * 10} s or more, or bound the loss with save_minutes or a smaller save_steps"
    )
