"""What a rule is, and what several of them ask."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tests.kubernetes.manifests import Manifest, overlay

Rule = Callable[[Sequence[Manifest]], Iterator[str]]

MULTIPLES = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
MULTIPLES |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([a-zA-Z]*)")


def quantity(value: object) -> float | None:
    """A quantity of Kubernetes as a number, None if it is none."""
    match = _QUANTITY.fullmatch(str(value))
    return float(match[1]) * MULTIPLES[match[2]] if match and match[2] in MULTIPLES else None


def with_setup(manifests: Sequence[Manifest]) -> list[Manifest]:
    """These, and what stands in the cluster before any of them."""
    return [*manifests, *overlay("setup")]


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every scalar of a manifest, with the keys that lead to it; items of lists have no key of their own."""
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
