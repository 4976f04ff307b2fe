"""Does vLLM have the weights that are trained? Greedy text of both tells, after each sync.

Only where MINI_R1_VERIFY_SYNC=1 asks for it, as `mini-r1 doctor --smoke` does: it costs a generation with transformers.
Weights in float32 make the texts equal to the token; 16-bit numbers round differently in two programs and may part
where two tokens are about as likely.
"""

from __future__ import annotations

import os
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from mini_r1.generation.sampler import SamplingConfig
from mini_r1.training.rollout_engines import Engine, Sampled

VARIABLE = "MINI_R1_VERIFY_SYNC"
TOKENS = 16
"""Of each greedy completion: enough for texts of two random models to part."""


class SyncCheck:
    """Compares greedy completions of the policy and of the engine that got its weights.

    Args:
        policy: samples from the weights that are trained.
        engine: samples from its copy of them.
        prompts: token ids of this rank's; the same at every call.
    """

    def __init__(self, policy: Engine, engine: Engine, prompts: list[list[int]]) -> None:
        self._policy = policy
        self._engine = engine
        self._prompts = prompts
        self._before: list[list[int]] | None = None

    def __call__(self, model_wrapped: Any, accelerator: Accelerator) -> dict[str, float]:
        """Compare; every rank has to call it.

        Returns:
            `sync/equal`, the share of the prompts whose greedy texts are equal, and `sync/changed`, the share whose
            text is not that of the last call: where nothing changes, equal says nothing. Absent in the first call.
        """
        config = SamplingConfig(TOKENS, temperature=0.0)
        trained, copied = (
            gather_object(_ids(engine.sample(model_wrapped, accelerator, self._prompts, config, lambda rank: rank)))
            for engine in (self._policy, self._engine)
        )
        found = {"sync/equal": _share_equal(trained, copied)}
        if self._before is not None:
            found["sync/changed"] = 1.0 - _share_equal(self._before, trained)
        self._before = trained
        return found


def wanted() -> bool:
    """Whether the environment asks for the check."""
    return os.environ.get(VARIABLE) == "1"


def _ids(sampled: list[Sampled]) -> list[list[int]]:
    return [each.ids for each in sampled]


def _share_equal(first: list[list[int]], second: list[list[int]]) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
