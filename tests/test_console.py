"""Sizes as all commands print them."""

from __future__ import annotations

import pytest
from mini_r1.console import shown_bytes


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0.0 KiB"),
        (700, "0.7 KiB"),
        (104_857, "102.4 KiB"),
        (104_858, "0.1 MiB"),
        (2**30 - 2**20, "1023.0 MiB"),
        (6 * 2**30, "6.0 GiB"),
    ],
)
def test_sizes_are_in_a_unit_that_shows_them(size: int, words: str) -> None:
    assert shown_bytes(size) == words
