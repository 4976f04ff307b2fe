"""Built-in models, which the kit makes itself, and the solver that each imitates before GRPO."""

from dataclasses import dataclass, field
from typing import Any, Final

from mini_r1.tasks.countdown.traces import Demonstrator
from mini_r1.tasks.qa.arithmetic import ColumnDemonstrator

DEMO_MODEL: Final = "builtin:demo"
SCRATCH_MODEL: Final = "builtin:scratch"
ARITHMETIC_MODEL: Final = "builtin:arithmetic"
SMALL_MODEL_THREADS: Final = 2
"""Most CPU threads of a process that trains a built-in model; its tensors are too small for more."""


@dataclass(frozen=True, slots=True)
class Imitation:
    """Supervised training on the demonstrator's answers."""

    batch: int  # answers per optimizer step
    learning_rate: float  # peak of AdamW's
    max_new_tokens: int  # longest answer when its arithmetic is measured
    matrix_learning_rate: float = 0.0  # peak of Muon's, for the layers' weight matrices; 0: AdamW for them too


@dataclass(frozen=True, slots=True)
class BuiltinModel:
    """Qwen2 with random weights and its own tokenizer."""

    name: str
    layers: int
    hidden_size: int  # width of a token; the MLP is three times as wide
    head_size: int  # width of an attention head; vLLM's kernels need 32 or more
    digits: bool  # numbers are read and written digit by digit; else 0 to 99 are one token each
    vocabulary: int
    positions: int  # longest sequence, in tokens
    initializer_range: float  # standard deviation of the random weights
    demonstrator: Any  # solver whose answers are imitated, of the task's kind
    imitation: Imitation
    task: str = field(default="countdown", repr=False)  # not part of the key of a cached model


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
        BuiltinModel(
            ARITHMETIC_MODEL, layers=2, hidden_size=64, head_size=16, digits=True, vocabulary=120, positions=256,
            initializer_range=0.08,
            demonstrator=ColumnDemonstrator(give_up=0.4, broken_format=0.3),
            imitation=Imitation(batch=32, learning_rate=4e-3, max_new_tokens=48, matrix_learning_rate=0.02),
            task="qa",
        ),
    )
}  # fmt: skip
