"""What every command says in the same way."""

from __future__ import annotations

import io

import pytest
from mini_r1.console import ProgressLine, shown_bytes
from rich.console import Console


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


def test_progress_begins_with_a_line_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with ProgressLine(Console(file=out), "problems", 3) as line:
        line.update(1)
        assert out.getvalue() == "problems 1/3\n"
        line.update(2)
        line.update(3, "done")
    assert out.getvalue() == "problems 1/3\nproblems 3/3  done\n"
