"""Read, fetch, split and describe problems. A wrong row is an error that names its place; none is dropped."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

from mini_r1.hub_outages import hub_outage

from .problem import DataError, Problem, parse_json, parse_problem
from .solver import needs_multiplication_or_division, solvable

HUB_ID = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?", re.ASCII)
"""Id of a data set or a model on the hub: owner/name, or a name alone."""
SUFFIXES = (".jsonl", ".json", ".parquet")
"""Files that `read_problems` reads."""
PARQUET_BATCH = 65_536
"""Rows turned into Python objects at a time: about 20 MB."""
MOST_PARTS = 10_000
"""Most files of one data set that `missing_parts` looks for."""


def data_files(path: Path) -> list[Path]:
    """Return the files of a path: itself, or the Parquet files below a folder, in order; a DataError if there is none.

    A kind of file that is not in SUFFIXES is a DataError too.
    """
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
        if not files:
            raise DataError(f"{path}: no .parquet file in this folder")
        return files
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: unknown kind of file; {', '.join(SUFFIXES)} can be read")
    return [path]


def read_problems(path: Path) -> list[Problem]:
    """Read a .jsonl, .json (one array of rows) or .parquet file, or all Parquet files below a folder, in order.

    Raises:
        DataError: for a file that cannot be read or is empty, and for the first bad row, named `file:line` (JSONL)
            or `file: row N` (counted from 1).
    """
    problems: list[Problem] = []
    for file in data_files(Path(path)):
        read = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}[file.suffix.lower()]
        before = len(problems)
        try:
            problems.extend(read(file))
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error})") from error
        if len(problems) == before:
            raise DataError(f"{file}: no rows")
    return problems


def missing_parts(files: Iterable[Path]) -> list[str]:
    """Return the names of numbered files (`train-00000-of-00002.parquet`) that are not among the files."""
    numbered = re.compile(r"(.*)-(\d{3,})-of-(\d{3,})(\.\w+)")
    found: dict[tuple[Path, str, str, str], set[str]] = {}
    for file in files:
        match = numbered.fullmatch(file.name)
        if match:
            found.setdefault((file.parent, match[1], match[3], match[4]), set()).add(match[2])
    return [
        f"{stem}-{number:0{len(count)}}-of-{count}{ending}"
        for (_, stem, count, ending), there in sorted(found.items())
        for number in range(min(int(count), MOST_PARTS))
        if f"{number:0{len(count)}}" not in there
    ]


def fetch_hub(repo_id: str, revision: str | None) -> tuple[Path, str]:
    """Fetch a hub data set's Parquet files, or find them in the local cache; return their folder and the commit.

    `revision` is a branch, tag or commit; None is the default branch.

    Raises:
        DataError: no such data set, or it is not complete in the cache of a process that is offline.
        KitError: the hub is down, and the cache doesn't hold it.
    """
    from huggingface_hub import snapshot_download  # a local file or the generator should not pay for it

    try:
        folder = Path(
            snapshot_download(
                repo_id, repo_type="dataset", revision=revision, allow_patterns=["*.parquet", "**/*.parquet"]
            )
        )
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
    # Without a network the cache is taken as it is, even one that an interrupted fetch left.
    missing = missing_parts(folder.rglob("*.parquet"))
    if missing:
        raise DataError(
            f"of the data set '{repo_id}' {len(missing)} Parquet files are not here, {missing[0]} among them: fetch it "
            "again where there is a network (mini-r1 prefetch RECIPE)"
        )
    # The cache keeps each snapshot in a folder named after its commit.
    return folder, folder.name


def split(
    problems: Sequence[Problem], fraction: float, seed: int, by: str = "key"
) -> tuple[list[Problem], list[Problem]]:
    """Split problems into (train, held out), so that no key is in both.

    Keys are ranked by a seeded hash and the first `fraction` of them is held out, so the split depends only on the set
    of keys and the random seed, not on the order of rows or the Python version. Both parts keep the order of rows.
    A key is (sorted numbers, target), or with `by` `numbers` the sorted numbers alone. With two keys and a fraction
    > 0, at least one is on each side.
    """
    keys: list[object] = [problem.key if by == "key" else problem.numbers_key for problem in problems]
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


def _jsonl(file: Path) -> Iterator[Problem]:
    lines = file.read_bytes().split(b"\n")
    complete = lines[-1] == b""  # else the file may be truncated
    if complete:
        lines.pop()
    for number, raw in enumerate(lines, start=1):
        place = f"{file}:{number}"
        if not raw.strip():
            raise DataError(f"{place}: the line is empty")
        hint = "; the last line does not end in a newline: is the file cut off?"
        row = parse_json(raw, place, "" if complete or number < len(lines) else hint)
        yield parse_problem(row, place)


def _json(file: Path) -> Iterator[Problem]:
    rows = parse_json(file.read_bytes(), str(file))
    if not isinstance(rows, list):
        raise DataError(f"{file}: a .json file must hold one array of rows; one row a line is .jsonl")
    for number, row in enumerate(rows, start=1):
        yield parse_problem(row, f"{file}: row {number}")


def _parquet(file: Path) -> Iterator[Problem]:
    import pyarrow  # only this kind of file needs it
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            for name in ("nums", "target"):
                if name not in table.schema_arrow.names:
                    raise DataError(f"{file}: there is no column '{name}'")
            number = 0
            for batch in table.iter_batches(batch_size=PARQUET_BATCH, columns=["nums", "target"]):
                for row in batch.to_pylist():
                    number += 1
                    yield parse_problem(row, f"{file}: row {number}")
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: not a readable Parquet file ({error})") from error
