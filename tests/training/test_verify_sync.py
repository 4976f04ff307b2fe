"""The check that vLLM has the weights that are trained, on stand-ins for both engines."""

from __future__ import annotations

from typing import Any

import pytest
from mini_r1.generation.vllm_client import Generated
from mini_r1.training.rollout_engines import SyncCheck


class StandInEngine:
    """Return the same texts until it gets others."""

    def __init__(self, *texts: list[int]) -> None:
        self.texts = list(texts)

    def sample(self, *_: Any) -> list[Generated]:
        return [Generated(ids) for ids in self.texts]


def test_equal_and_changed_texts_are_counted() -> None:
    policy, copy = StandInEngine([1, 2], [3, 4]), StandInEngine([1, 2], [3, 4])
    check: Any = SyncCheck(policy, copy, [[5], [6]])  # type: ignore[arg-type]
    assert check(None, None) == {"sync/equal": 1.0}
    policy.texts[0] = [1, 7]  # a step that did not arrive
    assert check(None, None) == pytest.approx({"sync/equal": 0.5, "sync/changed": 0.5})
    copy.texts[0] = [1, 7]
    assert check(None, None) == {"sync/equal": 1.0, "sync/changed": 0.0}
