"""Fetch a task's data and split it."""

import glob
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b, sha256
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Generic, TypeVar

from mini_r1.hub_outages import hub_outage

from .columns import Columns
from .data_errors import DataError
from .problem_files import (
    HUB_ID,
    README,
    SUFFIXES,
    choose_split,
    data_files,
    folder_files,
    list_splits,
    read_files,
    read_readme,
)  # fmt: skip
from .task import P, Progress, Task

T = TypeVar("T")

GENERATED = "generated"
"""The source that needs no file and no network."""
GENERATED_ROWS = 50_000
"""Rows of the generated source by default: what the original trains on."""


@dataclass(frozen=True)
class TaskData(Generic[P]):
    """Problems to train on, problems held out, and where they came from."""

    train: list[P]
    held_out: list[P]
    provenance: dict[str, object]
    """`source`, `kind` (generated, file, hub), `revision` (the hub's commit), `sha256` (of a local file), `rows`,
    `seed`, `test_fraction`, `split_by`, `generator`, `train_rows`, `held_out_rows`; None when it does not apply."""


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
    problems: Sequence[T], fraction: float, seed: int, key: Callable[[T], object]
) -> tuple[list[T], list[T]]:
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


def load_data(
    task: Task[P],
    source: str,
    *,
    revision: str | None,
    rows: int | None,
    seed: int,
    test_fraction: float,
    split_by: str,
    generator: Mapping[str, Any] | None,
    config: str | None = None,
    split: str | None = None,
    test_split: str | None = None,
    prefer: str = "train",
    columns: Columns | None = None,
    progress: Progress = lambda rows: None,
) -> TaskData[P]:
    """Load problems and split them; the same arguments give the same split in every process.

    The source is `generated`, a local file or folder, or a hub data set `owner/name`, of which `revision` is a branch,
    tag or commit. `rows` None takes all of them (generated: 50,000); a file or hub set is shuffled before. `generator`
    None is the task's own distribution. `progress` is called with the number of rows generated so far; what it raises
    ends the work. See `split_problems` for `test_fraction`, and `Task.split_key` for `split_by`.

    `columns` says where rows have the task's fields; None is under their own names.

    `config`, `split` and `test_split` choose from a folder or hub set as `problem_files` says, which has `prefer` too.
    All rows of `test_split` are held out, and rows of `split` that they hold are left out: no fraction is split off.

    Raises:
        DataError: for a source that does not exist or cannot be read, and for a bad row, naming it.
    """
    commit = digest = None
    tests: list[list[P]] = []
    if source == GENERATED:
        if config or split or test_split:
            raise DataError("generated problems have no configurations and no splits: test_fraction holds some out")
        kind = GENERATED
        problems: list[P] = []
        for problem in task.generate(rows or GENERATED_ROWS, seed, generator):
            problems.append(problem)
            progress(len(problems))
    else:
        path = Path(source)
        splits = [split, test_split] if test_split else [split]
        if path.exists():
            kind, files = "file", data_files(path, config, splits, prefer)
            digest = _sha256(file for each in files for file in each)
        elif HUB_ID.fullmatch(source) and "/" in source and not source.endswith(SUFFIXES):
            kind = "hub"
            files, commit = fetch_hub(source, revision, config, splits)
        else:
            raise DataError(
                f"the data set '{source}' is neither a file nor a folder nor a hub id (owner/name): "
                f"check the path, or use '{GENERATED}' for generated problems"
            )
        problems, *tests = [read_files(each, columns or task.fields, task.parser()) for each in files]
        Random(seed).shuffle(problems)
        problems = list(islice(problems, rows))

    def key(problem: P) -> object:
        return task.split_key(problem, split_by)

    if tests:
        held_out = tests[0]
        there = set(map(key, held_out))
        train = [problem for problem in problems if key(problem) not in there]
        if not train:
            raise DataError(f"{source}: every problem of its split '{split or prefer}' is in '{test_split}', too")
    else:
        train, held_out = split_problems(problems, test_fraction, seed, key)
    provenance: dict[str, object] = {
        "source": source,
        "kind": kind,
        "config": config,
        "split": split,
        "test_split": test_split,
        "revision": commit,
        "sha256": digest,
        "rows": len(problems),
        "seed": seed,
        "test_fraction": None if tests else test_fraction,
        "split_by": split_by,
        "generator": task.generator(generator) if kind == GENERATED else None,
        "train_rows": len(train),
        "held_out_rows": len(held_out),
        # Earlier runs, which may be resumed, have no such key.
        **({"columns": dict(columns.paths)} if columns and columns.paths else {}),
    }
    return TaskData(train, held_out, provenance)


def _sha256(files: Iterable[Path]) -> str:
    digest = sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
