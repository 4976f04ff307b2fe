"""The mappings inside a recipe: the generator's distribution, a built-in model's warm start, the trouble watchers."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mini_r1.recipe.builtin_models import BuiltinModel
from mini_r1.recipe.field_types import Count, Number, Seed, Share, Text, Whole, operator_set, yaml_off

# hide_input_in_errors: a token pasted into the wrong place must not come back in a traceback.
RECIPE_CONFIG = ConfigDict(
    extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), hide_input_in_errors=True
)

Action = Annotated[Literal["off", "warn", "stop"], BeforeValidator(yaml_off)]


class GeneratorRecipe(BaseModel):
    """The distribution of generated problems; the defaults are the hub set's own."""

    model_config = RECIPE_CONFIG

    sizes: Annotated[list[Annotated[Whole, Field(ge=2, le=6)]], Field(min_length=1)] = [3, 4]
    """How many numbers a problem has, each equally likely; 2 to 6, the exact solver's range."""
    low: Annotated[Whole, Field(ge=1)] = 1
    """Smallest number drawn."""
    high: Annotated[Whole, Field(ge=1, le=1_000_000)] = 99
    """Largest number drawn."""
    target_low: Annotated[Whole, Field(ge=0)] = 10
    """Smallest target."""
    target_high: Annotated[Whole, Field(ge=1, le=1_000_000_000)] = 100
    """Largest target."""
    operators: Annotated[Text, AfterValidator(operator_set)] = "+-*/"
    """Operations a solution may use; `+-` makes the easy game of the demo."""
    max_intermediate: Annotated[Whole, Field(ge=1)] | None = None
    """Largest value that may occur on the way to the target; null is no limit."""

    @model_validator(mode="after")
    def _ranges(self) -> GeneratorRecipe:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high}): swap them")
        if self.target_low > self.target_high:
            raise ValueError(f"target_low ({self.target_low}) is above target_high ({self.target_high}): swap them")
        return self


class WarmStartRecipe(BaseModel):
    """How a built-in model is brought to the point where GRPO has something to reinforce."""

    model_config = RECIPE_CONFIG

    traces: Annotated[Whole, Field(ge=64)] = 40_000
    """Worked problems to imitate, in rows; at least two batches."""
    steps: Count = 1_200
    """Optimizer steps of imitation, done once and cached."""
    min_accuracy: Share = 0.94
    """Smallest share of right calculation steps that GRPO may start from; runs from weaker models collapsed."""
    seed: Seed = 0
    """Of weights, traces and order; apart from `seed`, so that runs with several seeds share one cached start."""
    learning_rate: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Highest rate of the imitation; null is the model's own."""
    batch: Count | None = None
    """Answers of an optimizer step of the imitation; null is the model's own."""
    give_up: Share | None = None
    """Chance that the imitated solver gives up after a failed try; null is the model's own."""
    sums: Share | None = None
    """Share of its tries that only add and subtract; null is the model's own."""
    layers: Annotated[Whole, Field(ge=1, le=48)] | None = None
    """Layers of the model; null is its own number."""
    hidden_size: Annotated[Whole, Field(ge=32, le=2048, multiple_of=32)] | None = None
    """Width of the model; null is its own."""

    def applied_to(self, model: BuiltinModel) -> BuiltinModel:
        """The model with what is asked for here in place of its own."""
        solver, imitation = model.demonstrator, model.imitation
        return replace(
            model,
            layers=self.layers or model.layers,
            hidden_size=self.hidden_size or model.hidden_size,
            demonstrator=replace(
                solver,
                give_up=solver.give_up if self.give_up is None else self.give_up,
                sums=solver.sums if self.sums is None else self.sums,
            ),
            imitation=replace(
                imitation,
                learning_rate=self.learning_rate or imitation.learning_rate,
                batch=self.batch or imitation.batch,
            ),
        )


class WatchRecipe(BaseModel):
    """Trouble that a run watches itself for: `off`, `warn` (say so, go on) or `stop` (save a checkpoint and end)."""

    model_config = RECIPE_CONFIG

    not_finite: Action = "stop"
    """Loss or gradient norm is NaN or infinite: one such update spoils every weight for good, so this one stops."""
    kl: Action = "warn"
    """KL of a step is above `max_kl`."""
    max_kl: Annotated[Number, Field(gt=0)] = 10.0
    """In nats per token, the mean of a step; the demo, which learns at a high rate, stays below 0.3."""
    reward_collapse: Action = "warn"
    """Mean reward has fallen below `collapse_share` of the best it has been: the policy is coming apart."""
    collapse_share: Share = 0.5
    """Share of the best mean reward over `window` steps that the newest such mean may not fall below."""
    entropy: Action = "warn"
    """Entropy is below `min_entropy`: the model answers the same each time, nothing is left to choose between."""
    min_entropy: Annotated[Number, Field(ge=0)] = 0.01
    """In nats per token, the mean over `window` steps; 0 is a model that always takes the same token."""
    equal_groups: Action = "warn"
    """More than `max_equal_groups` of the groups have one reward for all their completions: they teach nothing."""
    max_equal_groups: Share = 0.95
    """Share of the groups, over `window` steps; the demo has at most 0.3, and at 0.95 one in twenty still teaches."""
    logp_gap: Action = "warn"
    """vLLM and the trainer disagree about the log-probabilities of what vLLM sampled: above `max_logp_gap`."""
    max_logp_gap: Annotated[Number, Field(gt=0)] = 0.2
    """In nats per token, the mean of a step. Two programs round 16-bit numbers differently, which costs a few
    hundredths; weights that did not arrive cost more."""
    window: Count = 10
    """Steps that reward, entropy and equal groups are averaged over: a single step is too noisy to judge by."""
