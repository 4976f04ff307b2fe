"""The scripts of bench/gpu as modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from tests.conftest import REPO

BENCH = REPO / "bench"
GPU = BENCH / "gpu"


@contextmanager
def gpu_benches(*names: str) -> Iterator[Any]:
    """Import these scripts. Afterwards neither their folders nor their modules are left: a script changes the path."""
    path, modules = sys.path.copy(), set(sys.modules)
    sys.path.insert(0, str(GPU))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(f"{BENCH}/"):
                del sys.modules[name]
