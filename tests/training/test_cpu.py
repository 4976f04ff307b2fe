"""The number of CPU threads of a built-in model: from the cores and OMP_NUM_THREADS, never from the load."""

from __future__ import annotations

import pytest
import torch
from mini_r1.recipe.fields import Recipe
from mini_r1.training import prepare


@pytest.mark.parametrize(
    ("cores", "variable", "small_model", "threads"),
    [(1, None, True, 1), (2, None, True, 2), (16, None, True, 2), (16, "1", True, None), (16, None, False, None)],
)
def test_threads_depend_on_the_cores_unless_the_user_chose(
    cores: int, variable: str | None, small_model: bool, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int | None] = [None]
    monkeypatch.setattr(prepare, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(prepare, "usable_cores", lambda: cores)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    name = "builtin:demo" if small_model else "someone/model"
    prepare.tune_cpu(Recipe(model_name_or_path=name, max_steps=1))
    assert chosen[-1] == threads
