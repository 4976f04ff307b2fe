"""The inputs that a recipe may name on the hub."""

from __future__ import annotations

from typing import NamedTuple


class RepoKind(NamedTuple):
    """An input: its name, the hub's type of its repository, and its key in a recipe."""

    input: str
    type: str
    key: str


MODEL = RepoKind("model", "model", "model_name_or_path")
TOKENIZER = RepoKind("tokenizer", "model", "tokenizer_name_or_path")
DATA = RepoKind("data", "dataset", "dataset_id_or_path")
