"""docs/exit-codes.md and mini_r1.errors say the same."""

from __future__ import annotations

import re
import signal
from pathlib import Path

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
