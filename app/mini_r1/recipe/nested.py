"""The mappings inside a recipe: the generator's distribution, a built-in model's warm start, the watchers."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mini_r1.recipe import field_types as types
from mini_r1.recipe.builtin_models import BuiltinModel

# hide_input_in_errors: a token pasted into the wrong place must not come back in a traceback.
RECIPE_CONFIG = ConfigDict(
    extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), hide_input_in_errors=True
)


class GeneratorRecipe(BaseModel):
    """Distribution of generated problems; the defaults are those of the hub's data set."""

    model_config = RECIPE_CONFIG

    sizes: Annotated[list[Annotated[types.Whole, Field(ge=2, le=6)]], Field(min_length=1)] = [3, 4]
    """How many numbers a problem has, each size equally likely; 2 to 6: generating one of 7 takes seconds."""
    low: types.Count = 1
    """Smallest number drawn."""
    high: Annotated[types.Count, Field(le=1_000_000)] = 99
    """Largest number drawn."""
    target_low: Annotated[types.Whole, Field(ge=0)] = 10
    """Smallest target."""
    target_high: Annotated[types.Count, Field(le=1_000_000_000)] = 100
    """Largest target."""
    operators: types.Operators = "+-*/"
    """Operations that a solution may use; `+-` makes an easy game."""
    max_intermediate: types.Count | None = None
    """Largest intermediate result on the way to the target; null: no limit."""

    @model_validator(mode="after")
    def _check_ranges(self) -> GeneratorRecipe:
        for low, high in (("low", "high"), ("target_low", "target_high")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} ({getattr(self, low)}) is above {high} ({getattr(self, high)}): swap them")
        return self


class WarmStartRecipe(BaseModel):
    """Imitation training that brings a built-in model to where GRPO has something to reinforce."""

    model_config = RECIPE_CONFIG

    traces: Annotated[types.Whole, Field(ge=64)] = 40_000
    """Worked problems to imitate; at least two batches."""
    steps: types.Count = 1_200
    """Optimizer steps of the imitation, which is done once and cached."""
    min_accuracy: types.Share = 0.94
    """Smallest share of correct calculation steps to start GRPO with; runs from weaker models collapsed."""
    seed: types.Seed = 0
    """Random seed of weights, traces and order; apart from the run's `seed`, so that runs share one cached start."""
    learning_rate: Annotated[types.Positive, Field(le=1)] | None = None
    """Peak learning rate of the imitation; null: the model's default."""
    batch: types.Count | None = None
    """Answers per optimizer step of the imitation; null: the model's default."""
    give_up: types.Share | None = None
    """Chance that the imitated solver gives up after a failed try; null: the model's default."""
    sums: types.Share | None = None
    """Share of its tries that only add and subtract; null: the model's default."""
    layers: Annotated[types.Count, Field(le=48)] | None = None
    """Layers of the model; null: the model's default."""
    hidden_size: Annotated[types.Whole, Field(ge=32, le=2048, multiple_of=32)] | None = None
    """Width of the model; null: the model's default."""

    def applied_to(self, model: BuiltinModel) -> BuiltinModel:
        """Return the model with what is set here in place of its defaults."""
        given = self.model_dump(exclude_none=True)

        def pick(*names: str) -> dict[str, Any]:
            return {name: given[name] for name in names if name in given}

        return replace(
            model,
            **pick("layers", "hidden_size"),
            demonstrator=replace(
                model.demonstrator, **pick(*(name for name in ("give_up", "sums") if hasattr(model.demonstrator, name)))
            ),
            imitation=replace(model.imitation, **pick("learning_rate", "batch")),
        )


class WatchRecipe(BaseModel):
    """Checks during a run: `off`, `warn` (print a warning) or `stop` (save a checkpoint and exit)."""

    model_config = RECIPE_CONFIG

    not_finite: types.Action = "stop"
    """Loss or gradient norm is NaN or infinite. One such update spoils every weight."""
    kl: types.Action = "warn"
    """KL of a step is above `max_kl`."""
    max_kl: types.Positive = 10.0
    """In nats per token, mean of a step. The demo, which has a high learning rate, stays below 0.3."""
    reward_collapse: types.Action = "warn"
    """Mean reward is below `collapse_share` of the best so far: the policy collapses."""
    collapse_share: types.Share = 0.5
    """Share of the best mean reward over `window` steps that the newest mean must reach."""
    entropy: types.Action = "warn"
    """Entropy collapse: entropy is below `min_entropy`, and the model gives nearly the same answer each time."""
    min_entropy: types.NonNegative = 0.01
    """In nats per token, mean over `window` steps; 0 is a model that always takes the same token."""
    equal_groups: types.Action = "warn"
    """In more than `max_equal_groups` of the groups all completions have the same reward: no learning signal."""
    max_equal_groups: types.Share = 0.95
    """Share of the groups, over `window` steps. The demo has at most 0.3."""
    logp_gap: types.Action = "warn"
    """vLLM and the trainer differ in the log-probabilities of sampled tokens by more than `max_logp_gap`."""
    max_logp_gap: types.Positive = 0.2
    """In nats per token, mean of a step. 16-bit rounding costs a few hundredths; a failed weight sync costs more."""
    sample_size: types.Action = "warn"
    """`off_policy/sample_size` is below `min_sample_size`: few of the sampled tokens decide the gradient."""
    min_sample_size: types.Share = 0.95
    """As a share of the tokens of a step. On average 0.999 in runs that learned; 0.925 four steps before one collapsed
    (docs/overlap.md)."""
    window: types.Count = 10
    """Steps to average reward, entropy and equal groups over; a single step is too noisy."""
