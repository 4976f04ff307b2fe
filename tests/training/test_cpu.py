"""The number of CPU threads of a built-in model: from the cores and OMP_NUM_THREADS, never from the load."""

from __future__ import annotations

import pytest
import torch
from mini_r1.training import cpu


@pytest.mark.parametrize(
    ("cores", "variable", "small_model", "threads"),
    [(1, None, True, 1), (2, None, True, 2), (16, None, True, 2), (16, "1", True, None), (16, None, False, None)],
)
def test_threads_depend_on_the_cores_unless_the_user_chose(
    cores: int, variable: str | None, small_model: bool, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int | None] = [None]
    monkeypatch.setattr(cpu, "usable_cores", lambda: cores)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    cpu.prepare(small_model)
    assert chosen[-1] == threads
