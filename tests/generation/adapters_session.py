"""What test_adapters_in_vllm.py runs with .venv-vllm's Python: three attempts that train an adapter, as JSON facts.

python adapters_session.py FOLDER STEPS_OF_THE_FIRST_ATTEMPT
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from mini_r1.errors import KitError
from mini_r1.generation.vllm_client import VllmEngine
from mini_r1.generation.vllm_process import VllmProcess
from mini_r1.machine.lifeline import VLLM_DEVICE
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.reader import read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.training.rollout_engines import SharedEngine
from mini_r1.training.train import train
from rich.console import Console


class Cut(KitError):
    """Ends an attempt as an error of a device would."""


def attempt(folder: Path, name: str, *overrides: str, cut_before: int | None = None) -> RunDir:
    """Train a recipe in its run directory, to its end or until the sync before this step."""
    run, load, calls = RunDir(folder / name), SharedEngine.load, []

    def counted(engine: SharedEngine, *args: Any) -> None:
        calls.append(1)
        if len(calls) == cut_before:
            raise Cut("cut")
        load(engine, *args)

    SharedEngine.load = counted  # type: ignore[method-assign]
    try:
        recipe = load_recipe(folder / f"{name}.yaml", list(overrides))
        train(recipe, run, ["adapters_session"], Console(quiet=True))
    except Cut:
        assert cut_before
    finally:
        SharedEngine.load = load  # type: ignore[method-assign]
    return run


def rows_of(run: RunDir, number: int, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.attempts / str(number) / file).read_text().splitlines()]


def main() -> None:
    folder, first = Path(sys.argv[1]), int(sys.argv[2])
    started, post = [], VllmProcess.post
    prompts: dict[VllmProcess, int] = {}

    def counted(process: VllmProcess, message: dict[str, Any], doing: str) -> None:
        prompts[process] = prompts.get(process, 0) + len(message.get("prompts", ()))
        post(process, message, doing)

    VllmProcess.post = counted  # type: ignore[method-assign]
    begin = VllmEngine.__init__

    def begun(engine: VllmEngine, *args: Any, **kwargs: Any) -> None:
        begin(engine, *args, **kwargs)
        started.append(len(engine._processes))

    VllmEngine.__init__ = begun  # type: ignore[method-assign]
    attempt(folder, "float32", cut_before=first + 1)
    run = attempt(folder, "float32")
    os.environ[VLLM_DEVICE] = "cpu"
    short = attempt(folder, "bfloat16", "max_steps=2")
    attempts = [rows_of(run, number, "completions.jsonl") for number in (1, 2)]
    facts = {
        "float32": read_metrics(run),
        "attempts": [rows[-1]["step"] for rows in attempts],
        "repeated": [[row["completion"] for row in rows if row["step"] == first] for rows in attempts],
        "bfloat16": read_metrics(short),
        "logs": sorted(path.name for path in (run.attempts / "2").glob("vllm*.log")),
        "processes": started,
        "prompts": list(prompts.values()),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
