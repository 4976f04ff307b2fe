"""A warm start's cache on a disk that is too small for the model: one error, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
from mini_r1.errors import ExitCode, KitError
from mini_r1.recipe.fields import Recipe
from mini_r1.tasks.countdown.generator import generate
from mini_r1.training import warm_start

from tests.small_disk import PAGE, fill, make_room, small_disk


@pytest.mark.parametrize("pages", [0, 1, 3, 60, 121, 122])
def test_a_full_cache_is_one_error_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    """In the folder, the configuration, the weights, the tokenizer and the record."""
    monkeypatch.setattr(warm_start, "train", lambda *args, **options: None)
    monkeypatch.setattr(warm_start, "arithmetic_accuracy", lambda *args, **options: 1.0)
    job = warm_start.of_recipe(Recipe(model_name_or_path="builtin:demo"), list(generate(2, 1)))
    with small_disk(tmp_path / "disk", "8m") as disk:
        monkeypatch.setenv("MINI_R1_CACHE", str(disk))
        fill(disk, pages * PAGE)
        expected = f"cannot be kept in {disk}: cannot write {disk}/.*: No space left on device"
        with pytest.raises(KitError, match=expected) as caught:
            warm_start.make(job, lambda step, loss: None)
        assert caught.value.exit_code == ExitCode.RETRY
        assert "iB left). Free space on that disk" in caught.value.message
        assert list((disk / "models").iterdir()) == []
        make_room(disk)
        warm_start.make(job, lambda step, loss: None)
        assert warm_start.is_made(job.directory())
