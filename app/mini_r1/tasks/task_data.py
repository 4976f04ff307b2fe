"""Fetch a task's data and split it."""

import glob
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from mini_r1.hub_outages import hub_outage

from .data_errors import DataError
from .problem_files import README, choose_split, folder_files, list_splits, read_readme

P = TypeVar("P")


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
    problems: Sequence[P], fraction: float, seed: int, key: Callable[[P], object]
) -> tuple[list[P], list[P]]:
    """Split problems into (train, held out), so that no key is in both.

    Keys are ranked by a seeded hash and the first `fraction` of them is held out, so the split depends only on the set
    of keys and the random seed, not on the order of rows or the Python version. Both parts keep the order of rows.
    With two keys and a fraction > 0, at least one is on each side.
    """
    keys = [key(problem) for problem in problems]
    distinct = set(keys)
    count = round(fraction * len(distinct))
    if fraction > 0 and len(distinct) > 1:
        count = min(max(count, 1), len(distinct) - 1)
    ranked = sorted(distinct, key=lambda each: blake2b(f"{seed}|{each}".encode(), digest_size=16).digest())
    held_out_keys = set(ranked[:count])
    train = [problem for problem, each in zip(problems, keys, strict=True) if each not in held_out_keys]
    held_out = [problem for problem, each in zip(problems, keys, strict=True) if each in held_out_keys]
    return train, held_out
