"""Hypothesis without a time limit for one example: a busy machine is no finding."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("countdown", deadline=None, database=None)
settings.load_profile("countdown")
