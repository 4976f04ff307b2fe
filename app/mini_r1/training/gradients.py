"""Gradients that are not finite never reach the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class GradientGuard(TrainerCallback):
    """Skips an optimizer step whose gradient holds NaN or infinity: one such step would spoil every weight.

    Not under float16 (the loss scaler does that) or DeepSpeed (its engine owns the gradients).
    """

    def __init__(self) -> None:
        self.norm = 0.0
        """Norm of the last gradient, after clipping."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        parameters = [p for p in model.parameters() if p.grad is not None]
        if args.fp16 or not parameters:
            return
        # With an infinite limit nothing is clipped: torch has no other function for the norm.
        self.norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf).item()
        if not math.isfinite(self.norm):
            for parameter in parameters:
                parameter.grad = None  # the optimizer skips these, momentum included
