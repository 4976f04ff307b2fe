"""Fetch, split and describe problems."""

import glob
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path

from mini_r1.hub_outages import hub_outage

from .problem import DataError, Problem
from .problem_files import README, choose_split, folder_files, list_splits, read_readme
from .solver import needs_multiplication_or_division, solvable


def fetch_hub(
    repo_id: str, revision: str | None, config: str | None = None, splits: Sequence[str | None] = (None,)
) -> tuple[list[list[Path]], str]:
    """Fetch a hub data set's splits, or find them in the local cache; return the files of each, and the commit.

    `revision` is a branch, tag or commit; None is the default branch. See `problem_files.list_splits` for the others.

    Raises:
        DataError: no such data set or split, or the cache of a process that is offline doesn't hold it completely.
        KitError: the hub is down, and the cache doesn't hold it.
    """
    from huggingface_hub import HfApi, snapshot_download  # a local file or the generator should not pay for it

    fetch = partial(snapshot_download, repo_id, repo_type="dataset")
    try:
        folder = Path(fetch(revision=revision, allow_patterns=[README]))
        try:
            facts = HfApi().repo_info(repo_id, repo_type="dataset", revision=folder.name)
        except OSError:  # no network: the cache is taken as it is, even one that an interrupted fetch left
            pass
        else:
            found = list_splits((each.rfilename for each in facts.siblings or ()), read_readme(folder), config, repo_id)
            names = [name for split in splits for name in choose_split(found, split, repo_id)]
            fetch(revision=folder.name, allow_patterns=[glob.escape(name) for name in names])
    # Errors of the hub, of the network and of a bad name are all one of these.
    except (OSError, ValueError) as error:
        outage = hub_outage(error, f"the data set {repo_id}")
        if outage is not None:
            raise outage from error
        first_line = (str(error).strip().splitlines() or [""])[0][:200]
        at = f" at revision '{revision}'" if revision else ""
        raise DataError(
            f"the data set '{repo_id}'{at} could not be fetched from the hub ({type(error).__name__}: {first_line}). "
            "Without a network, fetch it before where there is one (mini-r1 prefetch RECIPE), or name a local .parquet "
            "or .jsonl file, or 'generated' for problems of the same distribution"
        ) from error
    place = f"the data set '{repo_id}' in the cache"
    # The cache keeps each snapshot in a folder named after its commit.
    return folder_files(folder, config, splits, place, deep=True), folder.name


def split_problems(
    problems: Sequence[Problem], fraction: float, seed: int, by: str = "key"
) -> tuple[list[Problem], list[Problem]]:
    """Split problems into (train, held out), so that no key is in both.

    Keys are ranked by a seeded hash and the first `fraction` of them is held out, so the split depends only on the set
    of keys and the random seed, not on the order of rows or the Python version. Both parts keep the order of rows.
    A key is (sorted numbers, target), or with `by` `numbers` the sorted numbers alone. With two keys and a fraction
    > 0, at least one is on each side.
    """
    keys = _keys(problems, by)
    distinct = set(keys)
    count = round(fraction * len(distinct))
    if fraction > 0 and len(distinct) > 1:
        count = min(max(count, 1), len(distinct) - 1)
    held_out_keys = set(
        sorted(distinct, key=lambda key: blake2b(f"{seed}|{key}".encode(), digest_size=16).digest())[:count]
    )
    train = [problem for problem, key in zip(problems, keys, strict=True) if key not in held_out_keys]
    held_out = [problem for problem, key in zip(problems, keys, strict=True) if key in held_out_keys]
    return train, held_out


def without(problems: Sequence[Problem], held_out: Sequence[Problem], by: str) -> list[Problem]:
    """Return the problems whose key is not held out, see `split_problems`."""
    there = set(_keys(held_out, by))
    return [problem for problem, key in zip(problems, _keys(problems, by), strict=True) if key not in there]


def _keys(problems: Sequence[Problem], by: str) -> list[object]:
    return [problem.key if by == "key" else problem.numbers_key for problem in problems]


def inspect(problems: Sequence[Problem], progress: Callable[[int], None] = lambda rows: None) -> dict[str, object]:
    """Describe a set of problems, at least one; `progress` is called with the number of rows read so far.

    Returns:
        `rows`; `exact_duplicates` (rows whose numbers, in this order, and target came before); `duplicate_keys` (rows
        whose sorted numbers and target came before); `unchecked_rows` (those, from 1, whose search took too many steps,
        see `solver.solvable`); `solvable_share` (0..1, of the other rows, or None) and `needs_mul_div_share` (0..1, of
        all rows); `target` and `number` (each {"min", "max"}); `by_size` ({"3": {"rows", "share", "solvable_share",
        "needs_mul_div_share"}, ...}).
    """
    facts: dict[tuple[tuple[int, ...], int], tuple[bool | None, bool]] = {}
    for row, problem in enumerate(problems, start=1):
        if problem.key not in facts:
            facts[problem.key] = solvable(problem), needs_multiplication_or_division(problem)
        progress(row)

    def shares(rows: Sequence[Problem]) -> dict[str, object]:
        known = [found for row in rows if (found := facts[row.key][0]) is not None]
        return {
            "solvable_share": sum(known) / len(known) if known else None,
            "needs_mul_div_share": sum(facts[row.key][1] for row in rows) / len(rows),
        }

    by_size: dict[str, object] = {}
    for size in sorted({len(problem.nums) for problem in problems}):
        rows = [problem for problem in problems if len(problem.nums) == size]
        by_size[str(size)] = {"rows": len(rows), "share": len(rows) / len(problems), **shares(rows)}
    targets = [problem.target for problem in problems]
    numbers = {number for problem in problems for number in problem.nums}
    return {
        "rows": len(problems),
        "exact_duplicates": len(problems) - len(set(problems)),
        "duplicate_keys": len(problems) - len(facts),
        "unchecked_rows": [row for row, one in enumerate(problems, start=1) if facts[one.key][0] is None],
        **shares(problems),
        "target": {"min": min(targets), "max": max(targets)},
        "number": {"min": min(numbers), "max": max(numbers)},
        "by_size": by_size,
    }
