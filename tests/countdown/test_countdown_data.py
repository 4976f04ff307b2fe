"""Reading, writing, splitting and describing problems."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.tasks.countdown.data import inspect, read_problems
from mini_r1.tasks.countdown.problem import Problem, parse_problem
from mini_r1.tasks.data_errors import DataError
from mini_r1.tasks.problem_files import missing_parts
from mini_r1.tasks.task_data import fetch_hub, split_problems

ROWS = Path(__file__).parents[1] / "assets" / "countdown_rows.jsonl"
GOOD = '{"target": 98, "nums": [44, 19, 35]}\n'

PROBLEMS = st.lists(
    st.builds(Problem, st.lists(st.integers(1, 5), min_size=2, max_size=3).map(tuple), st.integers(1, 4)), max_size=60
)


def test_the_hubs_own_rows() -> None:
    problems = read_problems(ROWS)
    assert len(problems) == 24
    assert problems[0] == Problem((44, 19, 35), 98)
    assert problems[0].key == ((19, 35, 44), 98)
    assert problems[0].numbers_key == (19, 35, 44)


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    problems = read_problems(ROWS)
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "folder" / "data").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows[:10]), tmp_path / "folder" / "data" / "train-0.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows[10:]), tmp_path / "folder" / "data" / "train-1.parquet")
    for name in ("rows.jsonl", "rows.json", "rows.parquet", "folder"):
        assert read_problems(tmp_path / name) == problems


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no rows"),
        (GOOD.encode() + b"\xff\xfe\n", ":2: not valid UTF-8"),
        (GOOD.encode() + GOOD.encode()[:20], ":2: not valid JSON .*cut off"),
        (GOOD.encode() + b"{,}\n" + GOOD.encode(), r":2: not valid JSON .*\)$"),
        (b"[" * 100_000 + b"\n", ":1: not valid JSON"),
        (b'{"target": ' + b"9" * 5000 + b', "nums": [1]}\n', ":1: "),
        (b"[1, 2]\n", ":1: expected an object"),
        (b'{"nums": [1]}\n', ":1: there is no column 'target'"),
        (b'{"target": 1}\n', ":1: there is no column 'nums'"),
        (b'{"target": 1, "nums": 1}\n', ":1: 'nums' must be a list"),
        (b'{"target": 1, "nums": []}\n', ":1: 'nums' must hold 1 to 8 numbers, found 0"),
        (b'{"target": 1, "nums": [1,1,1,1,1,1,1,1,1]}\n', ":1: 'nums' must hold 1 to 8 numbers, found 9"),
        (b'{"target": 1, "nums": [0]}\n', ":1: .*found 0"),
        (b'{"target": 1, "nums": [1000001]}\n', ":1: .*found 1000001"),
        (b'{"target": 1, "nums": [1.5]}\n', ":1: .*found 1.5"),
        (b'{"target": 1, "nums": [true]}\n', ":1: .*found true"),
        (b'{"target": 1, "nums": ["one"]}\n', ":1: .*found 'one'"),
        (b'{"target": 1, "nums": [[1]]}\n', ":1: .*found a list"),
        (b'{"target": NaN, "nums": [1]}\n', ":1: 'target' .*found nan"),
        (b'{"target": null, "nums": [1]}\n', ":1: 'target' .*found null"),
        (b'{"target": 1000000001, "nums": [1]}\n', ":1: 'target' .*found 1000000001"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_problems(file)
    assert str(error.value).startswith(str(file))


def test_windows_line_ends_and_a_missing_last_newline_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes((GOOD.strip() + "\r\n" + GOOD.strip()).encode())
    assert read_problems(file) == [Problem((44, 19, 35), 98)] * 2


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "junk.parquet").write_bytes(b"not parquet at all")
    (tmp_path / "rows.txt").write_text("98,44")
    (tmp_path / "object.json").write_text('{"nums": [1]}')
    (tmp_path / "row.json").write_text('[{"nums": [1], "target": 1}, {"nums": [1]}]')
    (tmp_path / "nothing").mkdir()
    parquet.write_table(pyarrow.table({"nums": [[1, 2]]}), tmp_path / "column.parquet")
    rows = [{"nums": [1, 2], "target": 3}, {"nums": None, "target": 3}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "row.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows).slice(0, 0), tmp_path / "empty.parquet")
    for name, message in {
        "absent.jsonl": "no such file",
        "junk.parquet": "not a readable Parquet file",
        "rows.txt": "unknown kind of file",
        "object.json": "must hold one list of rows; it is an object with the keys nums",
        "row.json": "row 2: there is no column 'target'",
        "nothing": r"no \.parquet, ",
        "column.parquet": "no column 'target'",
        "row.parquet": "row 2: 'nums' must be a list",
        "empty.parquet": "no rows",
    }.items():
        with pytest.raises(DataError, match=message):
            read_problems(tmp_path / name)


def split_key(by: str) -> Callable[[Problem], object]:
    return lambda problem: CountdownTask().split_key(problem, by)


@given(PROBLEMS, st.floats(0, 0.99), st.integers(0, 5), st.sampled_from(["key", "numbers"]), st.randoms())
def test_a_split_leaks_nothing_and_ignores_the_order_of_rows(
    problems: list[Problem], fraction: float, seed: int, by: str, rng: random.Random
) -> None:
    def keys(part: list[Problem]) -> set[object]:
        return {problem.key if by == "key" else problem.numbers_key for problem in part}

    train, held_out = split_problems(problems, fraction, seed, split_key(by))
    assert sorted(train + held_out, key=repr) == sorted(problems, key=repr)
    assert not keys(train) & keys(held_out)
    count = len(keys(problems))
    expected = round(fraction * count)
    if fraction > 0 and count > 1:
        expected = min(max(expected, 1), count - 1)
    assert len(keys(held_out)) == expected
    shuffled = rng.sample(problems, len(problems))
    again_train, again_held_out = split_problems(shuffled, fraction, seed, split_key(by))
    assert keys(again_train) == keys(train)
    assert keys(again_held_out) == keys(held_out)


def test_a_split_depends_on_the_seed() -> None:
    problems = read_problems(ROWS)
    assert split_problems(problems, 0.25, 1, split_key("key")) == split_problems(problems, 0.25, 1, split_key("key"))
    assert split_problems(problems, 0.25, 1, split_key("key")) != split_problems(problems, 0.25, 2, split_key("key"))
    assert len(split_problems(problems, 0.25, 1, split_key("key"))[1]) == 6
    assert split_problems(problems, 0.0, 1, split_key("key")) == (problems, [])


def test_inspect() -> None:
    problems = [
        Problem((1, 2), 3),
        Problem((1, 2), 3),
        Problem((2, 1), 3),
        Problem((3, 5), 15),
        Problem((3, 5, 1), 1000),
    ]
    assert inspect(problems) == {
        "rows": 5,
        "exact_duplicates": 1,
        "duplicate_keys": 2,
        "unchecked_rows": [],
        "solvable_share": 0.8,
        "needs_mul_div_share": 0.4,
        "target": {"min": 3, "max": 1000},
        "number": {"min": 1, "max": 5},
        "by_size": {
            "2": {"rows": 4, "share": 0.8, "solvable_share": 1.0, "needs_mul_div_share": 0.25},
            "3": {"rows": 1, "share": 0.2, "solvable_share": 0.0, "needs_mul_div_share": 1.0},
        },
    }


def test_a_row_whose_search_takes_too_long_is_left_out_and_named() -> None:
    hard = Problem((71, 73, 79, 83, 89, 97, 41, 43), 999_999_937)
    looked_at: list[int] = []
    facts = inspect([hard, Problem((1, 2), 3), Problem((1, 2), 7), hard], looked_at.append)
    assert facts["unchecked_rows"] == [1, 4]
    assert facts["solvable_share"] == 0.5
    assert facts["by_size"]["8"]["solvable_share"] is None  # type: ignore[index]
    assert looked_at == [1, 2, 3, 4]


def test_the_error_of_an_offline_hub_has_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*arguments: object, **options: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(DataError, match="'owner/name' at revision 'main' .*no network.*'generated'") as error:
        fetch_hub("owner/name", "main")
    assert "long story" not in str(error.value)


class Hub:
    """Stand-in for huggingface_hub: a repository of files, of which the cache has what was fetched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, files: dict[str, str | None]) -> None:
        import huggingface_hub

        self.folder, self.files, self.online, self.fetched = folder, files, True, list[str]()
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)

    def repo_info(self, repo_id: str, *, repo_type: str, revision: str) -> SimpleNamespace:
        if not self.online:
            raise ConnectionError("no network")
        assert (repo_id, repo_type, revision) == ("owner/name", "dataset", "0123abc")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.files])

    def download(self, repo_id: str, *, repo_type: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (repo_id, repo_type, revision in (None, "0123abc")) == ("owner/name", "dataset", True)
        for name in self.files if self.online else ():
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                path = self.folder / "0123abc" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self.files[name] or "")
                self.fetched.append(name)
        return str(self.folder / "0123abc")


SHARDS = {
    f"data/{name}.parquet": None for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")
}


def test_only_the_splits_that_are_read_are_fetched_from_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = Hub(monkeypatch, tmp_path, {"README.md": "# Countdown", "script.py": "", **SHARDS})
    train = [tmp_path / "0123abc" / name for name in SHARDS if "train" in name]
    assert fetch_hub("owner/name", None) == ([train], "0123abc")
    assert hub.fetched == ["README.md", *list(SHARDS)[:2]]
    with pytest.raises(DataError, match="owner/name has no split 'dev'; there are: test, train"):
        fetch_hub("owner/name", None, None, ["train", "dev"])
    hub.online = False
    assert fetch_hub("owner/name", None)[0] == [train]
    with pytest.raises(DataError, match="'owner/name' in the cache has no split 'test'; there are: train"):
        fetch_hub("owner/name", None, None, ["train", "test"])
    hub.online = True
    assert fetch_hub("owner/name", None, None, ["train", "test"])[0][1] == [tmp_path / "0123abc" / list(SHARDS)[2]]


def test_the_configurations_of_a_hub_set_are_those_of_its_readme(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    readme = "---\nconfigs:\n- {config_name: a, data_files: x/*.csv}\n- {config_name: b, data_files: y.jsonl}\n---\n"
    hub = Hub(monkeypatch, tmp_path, {"README.md": readme, "x/1.csv": "", "x/2.csv": "", "y.jsonl": "", "z.csv": ""})
    assert [path.name for path in fetch_hub("owner/name", None, "a")[0][0]] == ["1.csv", "2.csv"]
    assert hub.fetched == ["README.md", "x/1.csv", "x/2.csv"]
    with pytest.raises(
        DataError, match="owner/name has several configurations: choose one with dataset_config .*, a, b"
    ):
        fetch_hub("owner/name", None)


def test_a_hub_set_that_is_here_in_part_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = Hub(monkeypatch, tmp_path, {name: None for name in SHARDS if "00001-of-00002" not in name})
    with pytest.raises(DataError, match="1 of its files are not here, train-00001-of-00002.parquet among them"):
        fetch_hub("owner/name", None)
    hub.files = {**SHARDS}
    assert len(fetch_hub("owner/name", None)[0][0]) == 2


@pytest.mark.parametrize("name", ["0000.parquet", "train.parquet", "a-1-of-2.parquet", "x-00001-of-00002.parquet.md"])
def test_a_name_without_a_number_of_files_implies_no_others(name: str) -> None:
    assert missing_parts([Path(name)]) == []


def test_parts_are_counted_in_each_folder_and_a_made_up_number_costs_little() -> None:
    assert missing_parts([Path("a/x-00000-of-00002.parquet"), Path("b/x-00001-of-00002.parquet")]) == [
        "x-00001-of-00002.parquet", "x-00000-of-00002.parquet"
    ]  # fmt: skip
    assert len(missing_parts([Path("x-000000000-of-999999999.parquet")])) < 20_000


def test_parse_problem_ignores_other_columns_and_takes_tuples() -> None:
    assert parse_problem({"nums": (1, 2), "target": -3, "source": "x"}, "row") == Problem((1, 2), -3)
