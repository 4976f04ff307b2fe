"""What a rule is, and what several of them ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tests.kubernetes.manifests import Manifest, overlay

Rule = Callable[[Sequence[Manifest]], Iterator[str]]


def with_setup(manifests: Sequence[Manifest]) -> list[Manifest]:
    """These, and the objects of overlays/namespace and overlays/setup, which exist before any of them."""
    return [*manifests, *overlay("namespace"), *overlay("setup")]


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every scalar of a manifest, with the keys that lead to it; items of lists have no key."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, path)
    else:
        yield path, value


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector of this kit's form (matchLabels alone) finds these labels."""
    assert set(selector) <= {"matchLabels"}, selector
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
