"""The processes of tests/training/workers.py, started by several threads."""

from __future__ import annotations

import threading
import time
from multiprocessing import connection, forkserver
from pathlib import Path

import pytest

from tests.training.workers import Workers


def test_a_start_in_another_thread_takes_no_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, reads = forkserver.read_signed, threading.Event()

    def read_slowly(descriptor: int) -> int:
        reads.set()
        time.sleep(0.1)
        code: int = read(descriptor)
        return code

    def start_another() -> None:
        with Workers(None, time.sleep, 0, folder=tmp_path):
            pass

    with Workers(None, time.sleep, 0, folder=tmp_path) as workers:
        connection.wait([workers._processes[0].sentinel])
        monkeypatch.setattr(forkserver, "read_signed", read_slowly)
        another = threading.Thread(target=start_another)
        another.start()
        reads.wait(10)
        assert [ended.code for ended in workers.wait()] == [0]
        another.join()
