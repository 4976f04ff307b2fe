"""The engine of an evaluation: transformers, or vLLM, started once for all snapshots."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from mini_r1.errors import ExitCode, KitError
from mini_r1.evaluation.source import Problems, Source
from mini_r1.generation.completers import Completer, TransformersCompleter, VllmCompleter, vllm_device
from mini_r1.generation.model import load_tokenizer
from mini_r1.generation.prompts import render, token_ids


class Engines:
    """Completers for one model after another, as `with Engines(...) as engines`.

    vLLM needs the longest sequence at its start, hence the problems. One engine measures all models, so `adapters` is
    true if one of them is an adapter.

    Raises:
        KitError: vLLM is wanted and can't be used.
    """

    def __init__(self, wanted: str, problems: Problems, adapters: bool) -> None:
        self._wanted = wanted
        self._problems = problems
        self._device, self._why_not = vllm_device(wanted, adapters, os.environ)
        self._vllm: VllmCompleter | None = None
        self._last: Completer | None = None

    def load(self, chosen: Source, log: Callable[[str], None]) -> Completer:
        """Return what completes with this model's weights; the one before is closed.

        Raises:
            KitError: the model cannot be loaded.
        """
        if self._last is not None:
            self._last.close()
            self._last = None
        if self._why_not is not None:
            log(f"{self._why_not}: transformers generates")
            self._why_not = None
        if self._device is not None:
            vllm = self._load_vllm(chosen, self._device, log)
            if vllm is not None:
                return vllm
        self._last = TransformersCompleter.load(chosen.model, chosen.revision, chosen.tokenizer or chosen.model)
        return self._last

    def _load_vllm(self, chosen: Source, device: str, log: Callable[[str], None]) -> VllmCompleter | None:
        """Return vLLM with these weights; None if it can't run the model and `auto` was asked for."""
        if self._vllm is not None and Path(chosen.model).is_dir():
            self._vllm.take(Path(chosen.model))
            return self._vllm
        self._close_vllm()
        log("starting vLLM")
        source = chosen.tokenizer or chosen.model
        tokenizer = load_tokenizer(source, chosen.revision if source == chosen.model else None)
        prompts = token_ids(tokenizer, render(tokenizer, self._problems.asked, chosen.style))
        longest = max(map(len, prompts)) + chosen.max_new_tokens
        log_file = Path(tempfile.gettempdir()) / f"mini-r1-vllm-{os.getpid()}.log"
        if chosen.run is not None:
            log_file = chosen.run.evaluation / "vllm.log"
        try:
            self._vllm = VllmCompleter(chosen.model, chosen.revision, source, longest, device, log_file)
        except KitError as error:
            if self._wanted == "vllm" or error.exit_code == ExitCode.RETRY:
                raise
            log(f"{error.message}\nso transformers generates")
            self._device = None
        return self._vllm

    def _close_vllm(self) -> None:
        if self._vllm is not None:
            self._vllm.close()
            self._vllm = None

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._last is not None:
            self._last.close()
        self._close_vllm()
