"""Read problems: files, folders and hub sets, with the configurations and splits that they have.

Names of files mean what they mean to the `datasets` library, which is not used: it takes seconds to import. A wrong row
is an error that names its place; none is dropped.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from .columns import Columns
from .data_errors import DataError, parse_json

P = TypeVar("P")

HUB_ID = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?", re.ASCII)
"""Id of a data set or a model on the hub: owner/name, or a name alone."""
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
"""Files that `read_files` reads."""
README = "README.md"
"""The file whose header names the configurations of a data set, as on the hub."""
ONLY_CONFIG = "default"
"""The configuration of a data set whose README.md names none."""
NOT_ROWS = frozenset({"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""Files without rows that huggingface's libraries write."""
KEYWORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words in the name of a file or folder, and the split that they mean. Source: datasets 3.1.0, data_files.py."""
PARQUET_BATCH = 65_536
"""Rows turned into Python objects at a time: about 20 MB."""
MOST_PARTS = 10_000
"""Most files of one data set that `missing_parts` looks for."""
LFS_POINTER = b"version https://git-lfs"

_SHARD = re.compile(r"(?:.*/)?(\w[\w.]*)-\d{3,}-of-\d{3,}\.\w+$")
_KEYWORD = re.compile(rf".*?[-._ 0-9/]({'|'.join(KEYWORDS)})(?=[-._ 0-9/])", re.IGNORECASE)
_HEADER = re.compile(r"\ufeff?---\s*\n(.*?)\n---\s*(?:\n|$)", re.DOTALL)

Splits = dict[str, list[str]]
"""The files of each split of one configuration, by their names inside the data set."""


# --- which files ---


def list_splits(names: Iterable[str], readme: str, config: str | None, place: str) -> Splits:
    """Return the splits of a configuration: as the header of README.md names them, else by the files' own names.

    `names` are those of all files, `place` is what an error calls the data set. A DataError for a configuration that
    there is not, or if `config` is None and there are several and none is the default.
    """
    files = sorted(name for name in names if _is_data(name))
    configs = _read_configs(readme, place)
    known = list(configs) or [ONLY_CONFIG]
    defaults = [
        name for name in known if name == ONLY_CONFIG or configs[name].get("default") is True or len(known) == 1
    ]
    if config is None and not defaults:
        raise DataError(
            f"{place} has several configurations: choose one with dataset_config (`data inspect`: --config), "
            f"{', '.join(known)}"
        )
    chosen = config or defaults[0]
    if chosen not in known:
        raise DataError(f"{place} has no configuration '{chosen}'; there are: {', '.join(known)}")
    entry = configs.get(chosen, {})
    folder = str(PurePosixPath(str(entry.get("data_dir") or ".")))
    inside = [name for name in files if folder == "." or name.startswith(f"{folder}/")]
    if not (data_files := entry.get("data_files")):
        return _splits_by_name(inside)
    if not isinstance(data_files, list) or not all(isinstance(each, dict) for each in data_files):
        data_files = [{"split": "train", "path": data_files}]
    splits: Splits = {}
    for each in data_files:
        patterns = each.get("path")
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            matching = _compile_glob(str(PurePosixPath(folder, str(pattern))))
            splits.setdefault(str(each.get("split", "train")), []).extend(filter(matching.fullmatch, files))
    return splits


def choose_split(splits: Splits, split: str | None, place: str, prefer: str = "train") -> list[str]:
    """Return the files of a split; by default those of `prefer`, else of `train`, else of the only one.

    To train on, a single split is not taken if its name is a test's.

    Raises:
        DataError: with the splits that there are, and for a split with several kinds of files.
    """
    fit = [name for name in splits if prefer != "train" or KEYWORDS.get(name, "train") == "train"]
    names = [name for name in (prefer, "train") if name in splits] or (fit if len(splits) == 1 else [])
    name = split or next(iter(names), None)
    if not any(splits.values()):
        raise DataError(f"{place}: no data here; {', '.join(SUFFIXES)} files can be read")
    if name is None:
        raise DataError(
            f"{place} has no split '{prefer}': name a file, or choose with dataset_split (`data inspect`: --split), "
            f"{', '.join(splits)}"
        )
    if not splits.get(name):
        raise DataError(f"{place} has no split '{name}'; there are: {', '.join(k for k, v in splits.items() if v)}")
    if len(kinds := {Path(file).suffix.lower() for file in splits[name]}) > 1:
        raise DataError(f"{place}: split '{name}' has {' and '.join(sorted(kinds))} files: name one file")
    return splits[name]


def data_files(
    path: Path, config: str | None = None, splits: Sequence[str | None] = (None,), prefer: str = "train"
) -> list[list[Path]]:
    """Return the files of each split of a local file or folder; a DataError for one that is not there.

    Of a folder without a README.md that names its files, only the folder is searched, `data` in it, and folders that
    are named like a split.
    """
    if path.is_dir():
        return folder_files(path, config, splits, str(path), prefer=prefer)
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not _is_data(path.name):
        raise DataError(f"{path}: unknown kind of file; {', '.join(SUFFIXES)} can be read")
    if config not in (None, ONLY_CONFIG) or set(splits) - {None, "train"}:
        raise DataError(f"{path} is one file: it has no configurations, and only the split 'train'")
    return [[path] for _ in splits]


def folder_files(
    folder: Path,
    config: str | None,
    splits: Sequence[str | None],
    place: str,
    *,
    prefer: str = "train",
    deep: bool = False,
) -> list[list[Path]]:
    """Return the files of each split of a folder, with `deep` also from any folder in it; see `data_files`."""
    readme = read_readme(folder)
    names = _local_names(folder, deep=deep or bool(_read_configs(readme, place)))
    if not any(map(_is_data, names)):
        if any(folder.glob("*.arrow")) or any(folder.glob("*/*.arrow")):
            raise DataError(f"{place} was written by save_to_disk: write it with to_parquet, and name that file")
        others = sorted({file.parent for file in folder.glob("*/*") if _is_data(file.name)})
        hint = f": name a folder in it, such as {others[0]}" if others else ""
        raise DataError(f"{place}: no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file in this folder{hint}")
    found = list_splits(names, readme, config, place)
    chosen = [choose_split(found, split, place, prefer) for split in splits]
    if missing := missing_parts(Path(name) for each in chosen for name in each):
        raise DataError(
            f"{place}: {len(missing)} of its files are not here, {missing[0]} among them: copy it again, "
            "or fetch it (`mini-r1 prefetch RECIPE`)"
        )
    return [[folder / name for name in each] for each in chosen]


def _local_names(folder: Path, *, deep: bool) -> list[str]:
    """Return the names of the files of a folder that may belong to its data set, see `data_files`."""
    try:
        return [
            file.relative_to(folder).as_posix()
            for file in (folder.rglob("*") if deep else _walk(folder))
            if file.is_file()
        ]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error


def read_readme(folder: Path) -> str:
    """Return the text of a folder's README.md; empty if there is none."""
    try:
        return (folder / README).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


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


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if not path.is_dir():
            yield path
        elif path.name.lower() == "data" or path.name.lower() in KEYWORDS:
            yield from _walk(path)


def _is_data(name: str) -> bool:
    parts = name.split("/")
    return parts[-1] not in NOT_ROWS and name.lower().endswith(SUFFIXES) and not any(p[:1] in "._" for p in parts)


def _splits_by_name(files: Sequence[str]) -> Splits:
    """Group files by their numbered names, else by the words in their names, else as one split `train`."""
    for expression in (_SHARD, _KEYWORD):
        splits: Splits = {}
        for name in files:
            if found := expression.match(f"/{name}"):
                splits.setdefault(found[1] if expression is _SHARD else KEYWORDS[found[1].lower()], []).append(name)
        if splits:
            return splits
    return {"train": list(files)}


def _read_configs(readme: str, place: str) -> dict[str, dict[str, Any]]:
    """Return the configurations in the header of a README.md, by name."""
    import yaml

    header = _HEADER.match(readme)
    if header is None:
        return {}
    try:
        values = yaml.safe_load(header[1])
    except yaml.YAMLError as error:
        raise DataError(
            f"{place}: the header of its {README} is not valid YAML ({' '.join(str(error).split())})"
        ) from error
    entries = values.get("configs") if isinstance(values, dict) else None
    found = entries if isinstance(entries, list) else []
    return {str(entry.get("config_name", ONLY_CONFIG)): entry for entry in found if isinstance(entry, dict)}


def _compile_glob(pattern: str) -> re.Pattern[str]:
    """Return the expression of a pattern: `*` stays in a folder, `**` does not."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(words.get(part, re.escape(part)) for part in parts))


# --- rows ---


def read_files(
    files: Iterable[Path], columns: Columns, parse: Callable[[object, str], P], most: int | None = None
) -> list[P]:
    """Read files in order, by their suffixes; `parse` gets the fields of each row, and its place.

    `most` is the largest number of rows to read of each file.

    Raises:
        DataError: for a file that cannot be read or is empty, and for the first bad row, named `file:line` or, where
            rows have no lines, `file: row N` (counted from 1).
    """
    problems: list[P] = []
    for file in files:
        read = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}[file.suffix.lower()]
        before = len(problems)
        try:
            with file.open("rb") as handle:
                if handle.read(len(LFS_POINTER)) == LFS_POINTER:
                    raise DataError(f"{file}: only a pointer of Git LFS: run `git lfs pull` in that folder")
            rows = islice(read(file, columns), most)
            problems.extend(parse(columns.pick(row, place), place) for row, place in rows)
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
        if len(problems) == before:
            raise DataError(f"{file}: no rows")
    return problems


Rows = Iterator[tuple[object, str]]
"""Rows of a file, not yet checked, and the place of each."""


def _jsonl(file: Path, columns: Columns) -> Rows:
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            # The byte order mark that Windows programs write.
            line = raw.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else raw.strip()
            cut = "" if raw.endswith(b"\n") else "; the last line does not end in a newline: is the file cut off?"
            if line:
                yield parse_json(line, f"{file}:{number}", cut), f"{file}:{number}"


def _json(file: Path, columns: Columns) -> Rows:
    text = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        rows = parse_json(text, str(file))
    except DataError:
        if not text.lstrip().startswith(b"{"):
            raise
        yield from _jsonl(file, columns)  # one object a line, which `datasets` and pandas write with this suffix too
        return
    if isinstance(rows, Mapping):
        lists = [value for value in rows.values() if value and _is_rows(value)]
        if columns.are_in(rows):
            lists = [[rows]]
        if len(lists) != 1:
            keys = ", ".join(map(str, list(rows)[:10]))
            raise DataError(f"{file}: must hold one list of rows; it is an object with the keys {keys}")
        rows = lists[0]
    if not isinstance(rows, list):
        raise DataError(f"{file}: must hold one list of rows")
    for number, row in enumerate(rows, start=1):
        yield row, f"{file}: row {number}"


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(row, Mapping) for row in value)


def _csv(file: Path, columns: Columns) -> Rows:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        try:
            header = next(lines, "")
            mark = next((mark for mark in ",;\t" if mark in header), ",")
            names = [name.strip() for name in next(csv.reader([header], delimiter=mark), [])]
            reader = csv.reader(lines, delimiter=mark, strict=True)
            for cells in reader:
                place = f"{file}:{reader.line_num + 1}"
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(names):
                    quote = ": put what has commas in quotes" if len(cells) > len(names) and mark == "," else ""
                    raise DataError(f"{place}: {len(cells)} cells for {len(names)} columns{quote}")
                yield dict(zip(names, cells, strict=True)), place
            columns.pick(dict.fromkeys(names), str(file))  # of a file without rows
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: not valid UTF-8 ({error.reason})") from error
        except csv.Error as error:
            raise DataError(f"{file}: not valid CSV ({error})") from error


def _parquet(file: Path, columns: Columns) -> Rows:
    import pyarrow  # only this kind of file needs it
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            outer, number = columns.outer(names := table.schema_arrow.names), 0
            first = next((batch.to_pylist()[0] for batch in table.iter_batches(1, columns=outer)), dict.fromkeys(names))
            if not columns.are_in(first):
                columns.pick(next((batch.to_pylist()[0] for batch in table.iter_batches(1)), first), str(file))
            for batch in table.iter_batches(batch_size=PARQUET_BATCH, columns=outer):
                for row in batch.to_pylist():
                    number += 1
                    yield row, f"{file}: row {number}"
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: not a readable Parquet file ({error})") from error


def write_rows(file: Path, suffix: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows, at least one and all with the same columns, in the form of a suffix out of SUFFIXES."""
    if suffix == ".parquet":
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(list(rows)), file)
        return
    with file.open("w", encoding="utf-8", newline="") as handle:
        if suffix == ".json":
            json.dump(rows, handle)
        elif suffix == ".csv":
            csv.writer(handle).writerows([list(rows[0]), *(list(row.values()) for row in rows)])
        else:
            handle.writelines(json.dumps(row) + "\n" for row in rows)
