"""Every completion to the run directory, and a tenth of them to the seed's two text files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

from mini_r1.console import printable
from mini_r1.rundir import JsonLines

ONE_IN = 10
"""One in this many completions goes to the text files; the seed drew a tenth of them."""


class CompletionLog:
    """attempts/N/completions.jsonl, completion_samples/{completion_samples,success_completion_samples}.txt."""

    def __init__(self, attempt: Path, samples: Path) -> None:
        samples.mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(attempt / "completions.jsonl")
        self._all = _append(samples / "completion_samples.txt")
        self._success = _append(samples / "success_completion_samples.txt")

    def write(self, step: int, records: list[dict[str, Any]]) -> None:
        """Write one step's completions."""
        self._lines.write(*records)
        for i, record in enumerate(records):
            if (i + step) % ONE_IN == 0:  # spread over the step's prompts, and the same again after a resume
                entry = _entry(record)
                self._all.write(entry)
                if record["rewards"]["equation"]:
                    self._success.write(entry)
        self._all.flush()
        self._success.flush()

    def __enter__(self) -> CompletionLog:
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in (self._lines, self._all, self._success):
            handle.close()


def _entry(record: dict[str, Any]) -> str:
    rewards = " ".join(f"{name}={value:g}" for name, value in record["rewards"].items())
    head = f"step {record['step']} | numbers {record['nums']} | target {record['target']} | {rewards}"
    return f"\n\n==============\n{head} | {printable(record['reason'])}\n<think>{printable(record['completion'])}\n"


def _append(path: Path) -> TextIO:
    return path.open("a", encoding="utf-8", newline="\n")
