"""docs/exit-codes.md equals the table of mini_r1.errors."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mini_r1.errors import ExitCode, KitError

TABLE = Path(__file__).resolve().parent.parent / "docs" / "exit-codes.md"


def test_table_and_code_are_equal() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [(int(code), name) for code, name in rows] == [(code.value, code.name) for code in ExitCode]


def test_numbers_schedulers_rely_on() -> None:
    assert ExitCode.FINISHED == 0
    assert ExitCode.CONFIG == 78
    assert ExitCode.INTERRUPTED == 128 + signal.SIGTERM
    assert ExitCode.RETRY >= 128, "PyTorchJob's ExitCode policy retries nothing below"


def test_an_error_is_a_configuration_error_unless_it_says_otherwise() -> None:
    assert KitError("no such file").exit_code is ExitCode.CONFIG
    assert KitError("disk full", ExitCode.RETRY).exit_code is ExitCode.RETRY
    assert str(KitError("no such file")) == "no such file"


# What a thread of gloo does to a worker that is done, at a moment that a test can't choose.
ABORTS_AT_ITS_END = """
import os, sys, types
class Library:
    def __del__(self):
        os.abort()
sys.modules["torch"] = types.ModuleType("torch")
sys.modules["torch"].library = Library()
import mini_r1.cli.app
{change}
mini_r1.cli.app.main()
"""


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("", 0, "mini-r1 [OPTIONS]"),
        ("mini_r1.cli.app._run = lambda: 150", 150, ""),
        ("def defect(): raise ValueError('a defect')\nmini_r1.cli.app._run = defect", 1, "ValueError: a defect"),
    ],
)
def test_a_native_library_that_aborts_at_the_end_changes_no_exit_code(change: str, code: int, said: str) -> None:
    script = ABORTS_AT_ITS_END.format(change=change)
    done = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
