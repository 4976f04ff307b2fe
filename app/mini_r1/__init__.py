"""Mini-R1 Kit: GRPO on the Countdown game, on a laptop, a workstation or a cluster.

The names of `__all__` are the Python API: see `mini_r1.api`, which is imported when one of them is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mini_r1.api import evaluate, load_data, load_recipe, score, train

__all__ = ["evaluate", "load_data", "load_recipe", "score", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("mini_r1.api"), name)
    raise AttributeError(f"module 'mini_r1' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
