"""The kinds of repositories that a recipe names on the hub."""

from __future__ import annotations

from typing import NamedTuple


class RepoKind(NamedTuple):
    """A kind of repository: its word in addresses and in the cache's folder names, and its key in a recipe."""

    word: str
    key: str


MODEL, DATA = RepoKind("model", "model_name_or_path"), RepoKind("dataset", "dataset_id_or_path")
TOKENIZER = RepoKind("model", "tokenizer_name_or_path")
