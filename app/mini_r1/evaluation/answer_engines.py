"""The engine of an evaluation: transformers, or vLLM, started once for all snapshots."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from mini_r1.errors import ExitCode, KitError
from mini_r1.evaluation.source import Problems, Source
from mini_r1.generation.completers import Completer, TransformersCompleter, VllmCompleter, vllm_device
from mini_r1.generation.model import load_tokenizer
from mini_r1.generation.prompts import render, token_ids


class Engines:
    """Completers for one model after another; close it at the end. A KitError if vLLM is wanted and can't be used.

    vLLM needs the longest sequence at its start, hence the problems.
    """

    def __init__(self, wanted: str, problems: Problems) -> None:
        self._wanted = wanted
        self._problems = problems
        self._device, self._why_not = vllm_device(wanted, os.environ)
        self._current: Completer | None = None

    def load(self, chosen: Source, log: Callable[[str], None]) -> Completer:
        """Close the model before and return what completes with this one; a KitError if it can't be loaded."""
        if isinstance(self._current, VllmCompleter) and Path(chosen.model).is_dir():
            self._current.take(Path(chosen.model))
            return self._current
        self.close()
        if self._why_not is not None:
            log(f"{self._why_not}: transformers generates")
            self._why_not = None
        if self._device is not None:
            self._current = self._start_vllm(chosen, self._device, log)
        if self._current is None:
            self._current = TransformersCompleter.load(chosen.model, chosen.revision, chosen.tokenizer or chosen.model)
        return self._current

    def _start_vllm(self, chosen: Source, device: str, log: Callable[[str], None]) -> VllmCompleter | None:
        """Return vLLM with these weights; None if it can't run the model and `auto` was asked for."""
        log("starting vLLM")
        own = chosen.tokenizer in ("", chosen.model)
        tokenizer = load_tokenizer(chosen.tokenizer or chosen.model, chosen.revision if own else None)
        prompts = token_ids(tokenizer, render(chosen.task, tokenizer, self._problems.asked, chosen.style))
        longest = max(map(len, prompts)) + chosen.sampling.max_new_tokens
        log_file = Path(tempfile.gettempdir()) / f"mini-r1-vllm-{os.getpid()}.log"
        if chosen.run is not None:
            log_file = chosen.run.evaluation / "vllm.log"
        try:
            return VllmCompleter(
                chosen.model, chosen.revision, tokenizer, longest, device, log_file, chosen.sampling.stop
            )
        except KitError as error:
            if self._wanted == "vllm" or error.exit_code == ExitCode.RETRY:
                raise
            log(f"{error.message}\nso transformers generates")
            self._device = None
            return None

    def close(self) -> None:
        """Free the memory, or end vLLM."""
        if self._current is not None:
            self._current.close()
            self._current = None
