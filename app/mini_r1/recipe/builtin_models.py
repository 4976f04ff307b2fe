"""The models that the kit makes itself, and the solver each of them imitates before GRPO: sizes and numbers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DEMO_MODEL: Final = "builtin:demo"
SCRATCH_MODEL: Final = "builtin:scratch"
SMALL_MODEL_THREADS: Final = 2
"""Most CPU threads of a process that trains a built-in model: its tensors are too small for more."""


@dataclass(frozen=True, slots=True)
class Demonstrator:
    """A solver that is honest but impatient; what it writes is imitated.

    Attributes:
        operators: what its tries are made of.
        sums: share of tries that only add and subtract.
        largest_value: that a try may reach on its way; a problem's own `max_intermediate` may be smaller.
        give_up: chance of giving up after a failed try: the impatience that GRPO has to unlearn.
        max_tries: in one answer, such that they fit the recipe's `max_completion_length`.
        broken_format: share of answers whose tags are broken, so that the format reward has something to teach.
    """

    operators: str
    sums: float
    largest_value: int
    give_up: float
    max_tries: int
    broken_format: float = 0.3


@dataclass(frozen=True, slots=True)
class Imitation:
    """Supervised training on the demonstrator's answers.

    Attributes:
        batch: answers of an optimizer step.
        learning_rate: of AdamW, at its highest.
        matrix_learning_rate: of Muon for the layers' weight matrices, at its highest; 0: AdamW for them too.
        max_new_tokens: of the answers that its arithmetic is measured on.
    """

    batch: int
    learning_rate: float
    max_new_tokens: int
    matrix_learning_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class BuiltinModel:
    """A Qwen2 with random weights and a tokenizer of its own.

    Attributes:
        name: in a recipe, as `model_name_or_path`.
        layers: of the decoder.
        hidden_size: width of a token; the MLP's is three times that.
        head_size: width of an attention head; vLLM's kernels want 32 or more.
        digits: numbers are read and written digit by digit; else 0 to 99 are a token each.
        vocabulary: tokens of its tokenizer.
        positions: longest sequence, in tokens.
        initializer_range: standard deviation of the random weights.
        demonstrator: whom it imitates before GRPO.
        imitation: how.
    """

    name: str
    layers: int
    hidden_size: int
    head_size: int
    digits: bool
    vocabulary: int
    positions: int
    initializer_range: float
    demonstrator: Demonstrator
    imitation: Imitation


BUILTIN_MODELS: Final = {
    model.name: model
    for model in (
        BuiltinModel(
            DEMO_MODEL, layers=2, hidden_size=64, head_size=16, digits=False, vocabulary=217, positions=512,
            # Wider than the usual 0.02: at width 64 that start is so flat that the first hundred steps are lost.
            initializer_range=0.08,
            # 7 tries of about 11 tokens fit max_completion_length 96 of the demo recipe.
            demonstrator=Demonstrator("+-*", sums=0.0, largest_value=99, give_up=0.5, max_tries=7),
            # Found by trying: batches of 64 at 3e-3 calculated worse after the same time, Muon at 0.04 after 600 steps.
            imitation=Imitation(batch=32, learning_rate=4e-3, max_new_tokens=96, matrix_learning_rate=0.02),
        ),
        BuiltinModel(
            SCRATCH_MODEL, layers=6, hidden_size=384, head_size=32, digits=True, vocabulary=127, positions=1024,
            initializer_range=0.03,
            # 16 tries of about 19 tokens fit max_completion_length 384 of its recipe.
            demonstrator=Demonstrator("+-*/", sums=0.65, largest_value=200, give_up=0.3, max_tries=16),
            imitation=Imitation(batch=256, learning_rate=1e-3, max_new_tokens=320),
        ),
    )
}  # fmt: skip
"""By name."""
