"""Every completion to the run directory, and a tenth of them to the original's two text files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mini_r1.console import printable
from mini_r1.run.append_file import AppendFile, JsonLines

ONE_IN = 10
"""One in this many completions goes to the text files; the original drew a tenth of them."""


class CompletionLog:
    """attempts/N/completions.jsonl, completion_samples/{completion_samples,success_completion_samples}.txt."""

    def __init__(self, attempt: Path, samples: Path) -> None:
        samples.mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(attempt / "completions.jsonl")
        self._all = AppendFile(samples / "completion_samples.txt")
        self._success = AppendFile(samples / "success_completion_samples.txt")

    def write(self, step: int, records: list[dict[str, Any]]) -> None:
        """Write one step's completions."""
        self._lines.write(*records)
        # Spread over the step's prompts, and the same again after a resume.
        shown = [record for i, record in enumerate(records) if (i + step) % ONE_IN == 0]
        self._all.write("".join(map(_entry, shown)).encode())
        self._success.write("".join(_entry(record) for record in shown if record["rewards"]["equation"]).encode())

    def __enter__(self) -> CompletionLog:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in (self._lines, self._all, self._success):
            file.close()


def _entry(record: dict[str, Any]) -> str:
    rewards = " ".join(f"{name}={value:g}" for name, value in record["rewards"].items())
    head = f"step {record['step']} | numbers {record['nums']} | target {record['target']} | {rewards}"
    return f"\n\n==============\n{head} | {printable(record['reason'])}\n<think>{printable(record['completion'])}\n"
