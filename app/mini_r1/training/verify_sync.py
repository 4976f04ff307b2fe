"""Check after each sync that vLLM has the trained weights: greedy completions of both have to be equal.

Only with MINI_R1_VERIFY_SYNC=1, which `mini-r1 doctor --smoke` sets: it costs a generation with transformers. With
float32 weights the texts are equal to the token; 16-bit numbers round differently in two programs, and the texts may
differ from a token on that is about as likely as another.
"""

import os
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from mini_r1.generation.prompts import token_ids
from mini_r1.generation.sampler import SamplingConfig
from mini_r1.training.prepare import Policy
from mini_r1.training.rollout_engines import Engine, PolicyEngine
from mini_r1.training.world import World

VARIABLE = "MINI_R1_VERIFY_SYNC"
TOKENS = 16
"""Length of a greedy completion: enough for texts of two random models to differ."""


class SyncCheck:
    """Compares greedy completions of the policy and of the engine that got its weights, on this rank's prompts."""

    def __init__(self, policy: Engine, engine: Engine, prompts: list[list[int]]) -> None:
        self._policy = policy
        self._engine = engine
        self._prompts = prompts
        self._before: list[list[int]] | None = None

    def __call__(self, model_wrapped: Any, accelerator: Accelerator) -> dict[str, float]:
        """Return `sync/equal`, the share of the prompts whose greedy texts are equal; every rank has to call it.

        From the second call on also `sync/changed`, the share whose text differs from the last call's: if nothing
        changes, the first proves nothing.
        """
        config = SamplingConfig(TOKENS, temperature=0.0)
        sampled = (
            engine.sample(model_wrapped, accelerator, self._prompts, config, lambda rank: rank)
            for engine in (self._policy, self._engine)
        )
        trained, copied = (gather_object([each.ids for each in completions]) for completions in sampled)
        found = {"sync/equal": _share_equal(trained, copied)}
        if self._before is not None:
            found["sync/changed"] = 1.0 - _share_equal(self._before, trained)
        self._before = trained
        return found


def sync_check(engine: Engine, policy: Policy, world: World, prompts: Sequence[str]) -> SyncCheck | None:
    """Return the check if the environment asks for it and the engine has its own weights."""
    if not engine.separate or os.environ.get(VARIABLE) != "1":
        return None
    own = PolicyEngine(world, policy.eos_token_ids, policy.tokenizer.pad_token_id)
    return SyncCheck(own, engine, token_ids(policy.tokenizer, prompts))


def _share_equal(first: list[list[int]], second: list[list[int]]) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
