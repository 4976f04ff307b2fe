"""One reader of problems: what it takes, what it refuses and how, and which files of a folder it reads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.tasks.countdown.data import read_problems
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.data_errors import DataError
from mini_r1.tasks.problem_files import data_files
from mini_r1.tasks.task_data import TaskData, load_data
from pyarrow import csv as arrow_csv
from pyarrow import parquet

A, B = Problem((12, 7, 3), 22), Problem((5, 9, 4, 2), 20)
ROW_A, ROW_B = '{"nums": [12, 7, 3], "target": 22}', '{"nums": [5, 9, 4, 2], "target": 20}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", f"{ROW_A}\n{ROW_B}\n"),
        ("blank_lines.jsonl", f"\n{ROW_A}\n\n  \n{ROW_B}\n\n"),
        ("windows.jsonl", f"\ufeff{ROW_A}\r\n{ROW_B}\r\n"),
        ("blank_windows.jsonl", f"\ufeff\r\n{ROW_A}\r\n\r\n{ROW_B}"),
        ("UPPER.JSONL", f"{ROW_A}\n{ROW_B}\n"),
        ("floats.jsonl", '{"nums": [12.0, 7.0, 3.0], "target": 22.0}\n{"nums": [5, 9.0, 4, 2], "target": 20}\n'),
        (
            "words.jsonl",
            '{"nums": ["12", "7", "3"], "target": "22"}\n{"nums": ["5", " 9", "4.0", "+2"], "target": "20.0"}',
        ),
        ("list_as_text.jsonl", '{"nums": "[12, 7, 3]", "target": 22}\n{"nums": "[5,9,4,2]", "target": " 20 "}\n'),
        ("numpy_as_text.jsonl", '{"nums": "[12  7  3]", "target": 22}\n{"nums": "[ 5 9 4 2 ]", "target": 20}\n'),
        ("spaces.jsonl", '{"nums": "12 7 3", "target": 22}\n{"nums": "5, 9, 4, 2", "target": 20}\n'),
        ("marks.jsonl", '{"nums": "12;7;3", "target": 22}\n{"nums": "(5, 9, 4, 2)", "target": 20}\n'),
        ("quoted.jsonl", '{"nums": "[\'12\', \'7\', \'3\']", "target": 22}\n{"nums": "5,9,4,2", "target": 20}\n'),
        ("more_columns.jsonl", f'{ROW_A[:-1]}, "solution": null}}\n{ROW_B[:-1]}, "rating": 1.5}}\n'),
        ("list.json", f"[{ROW_A},\n {ROW_B}]"),
        ("data.json", f'{{"data": [{ROW_A}, {ROW_B}]}}'),
        ("windows.json", f'\ufeff{{"version": "1.0",\r\n"rows": [{ROW_A}, {ROW_B}]}}\r\n'),
        ("lines.json", f"{ROW_A}\n{ROW_B}\n"),
        ("rows.csv", 'nums,target\n"[12, 7, 3]",22\n"[5, 9, 4, 2]",20\n'),
        ("windows.csv", '\ufefftarget,nums\r\n22,12 7 3\r\n\r\n20,"5, 9, 4, 2"\r\n'),
        ("quoted.csv", '"id","nums","target"\n"a","[12.0, 7.0, 3.0]","22.0"\n"b","5 9 4 2","20"\n'),
        ("marks.csv", "nums;target\n12,7,3;22\n5,9,4,2;20"),
        ("tabs.csv", "nums\ttarget\n12,7,3\t22\n5,9,4,2\t20\n"),
    ],
)
def test_every_form_of_the_same_rows_is_read_alike(tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / name
    file.write_bytes(content.encode())
    assert read_problems(file) == [A, B]


@pytest.mark.parametrize(
    "columns",
    [
        {"nums": [[12, 7, 3], [5, 9, 4, 2]], "target": [22, 20]},
        {"nums": [[12.0, 7.0, 3.0], [5.0, 9.0, 4.0, 2.0]], "target": [22.0, 20.0]},
        {"nums": ["[12, 7, 3]", "5 9 4 2"], "target": ["22", "20"], "prompt": [None, "x"]},
        {"target": pa.array([22, 20], pa.uint8()), "nums": pa.array([[12, 7, 3], [5, 9, 4, 2]], pa.list_(pa.int16()))},
    ],
)
def test_parquet_of_any_type_is_read_alike(tmp_path: Path, columns: dict[str, object]) -> None:
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    assert read_problems(tmp_path / "rows.parquet") == [A, B]
    (tmp_path / "one").mkdir()
    parquet.write_table(pa.table(columns).slice(0, 1), tmp_path / "one" / "rows.PARQUET")
    assert read_problems(tmp_path / "one") == [A]


def test_what_other_programs_write_is_read(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"nums": [[12, 7, 3], [5, 9, 4, 2]], "target": [22, 20]})
    frame.to_csv(tmp_path / "pandas.csv")
    frame.to_json(tmp_path / "lines.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "records.json", orient="records")
    frame.to_parquet(tmp_path / "pandas.parquet")
    table = pa.table({"nums": ["12 7 3", "5 9 4 2"], "target": [22, 20]})
    arrow_csv.write_csv(table, tmp_path / "arrow.csv")
    for file in tmp_path.iterdir():
        assert read_problems(file) == [A, B], file.name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"numbers": [1], "target": 2}', ":1: there is no column 'nums'; the columns are: numbers, target"),
        ("x.jsonl", '{"question": "?", "metadata": {"numbers": [1]}}', "'nums'; the columns are: question, metadata"),
        ("x.jsonl", f'{ROW_A}\n{{"nums": [1]}}', ":2: there is no column 'target'; the columns are: nums"),
        ("x.jsonl", "{}", ":1: there is no column 'nums'; the columns are: none"),
        ("x.jsonl", json.dumps({f"c{n}": n for n in range(13)}), "c0, c1, .*, c9 and 3 more"),
        ("x.jsonl", f'{ROW_A}\n\n{{"nums": [1.5], "target": 1}}', ":3: 'nums' must hold whole numbers .*found 1.5"),
        ("x.jsonl", '{"nums": "1 x 3", "target": 1}', ":1: 'nums' must hold whole numbers .*found 'x'"),
        ("x.jsonl", '{"nums": "1,,3", "target": 1}', ":1: .*found ''"),
        ("x.jsonl", '{"nums": "", "target": 1}', ":1: 'nums' must hold 1 to 8 numbers, found 0"),
        ("x.jsonl", '{"nums": [0, 7, 3], "target": 10}', ":1: 'nums' must hold whole numbers from 1 .*found 0"),
        ("x.jsonl", '{"nums": "1 2 3 4 5 6 7 8 9", "target": 1}', ":1: 'nums' must hold 1 to 8 numbers, found 9"),
        ("x.jsonl", '{"nums": [1, true], "target": 1}', ":1: .*found true"),
        ("x.jsonl", '{"nums": [1, null], "target": 1}', ":1: .*found null"),
        ("x.jsonl", '{"nums": {"a": 1}, "target": 1}', ":1: 'nums' must be a list"),
        ("x.jsonl", '{"nums": [1], "target": "ten"}', ":1: 'target' must be a whole number .*found 'ten'"),
        ("x.jsonl", '{"nums": [1], "target": 1e400}', ":1: 'target' must be a whole number .*found inf"),
        ("x.jsonl", '{"nums": [1], "target": 1e30}', ":1: 'target' must be a whole number"),
        ("x.jsonl", f"{ROW_A}\n[[1, 2], 3]", ":2: expected an object"),
        ("x.jsonl", "\ufeff\n\n", ": no rows"),
        ("x.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "pointer of Git LFS: run `git lfs"),
        ("x.json", '{"a": [], "b": []}', "must hold one list of rows; it is an object with the keys a, b"),
        ("x.json", '{"nums": [[1], [2]], "target": [1, 2]}', ": row 1: 'nums' must hold whole numbers .*found a list"),
        ("x.json", "3", "must hold one list of rows"),
        ("x.json", f"[{ROW_A}, {ROW_A}", "not valid JSON"),
        ("x.json", f"{ROW_A}\n{{,}}", ":2: not valid JSON"),
        ("x.json", f'[{ROW_A}, {{"nums": [1], "target": null}}]', ": row 2: 'target' must be .*found null"),
        ("x.csv", "numbers,target\n1 2,3\n", ": there is no column 'nums'; the columns are: numbers, target"),
        ("x.csv", "98,44\n", ": there is no column 'nums'; the columns are: 98, 44"),
        ("x.csv", "nums,target\n12,7,3,22\n", ":2: 4 cells for 2 columns: put what has commas in quotes"),
        ("x.csv", 'nums,target\n"12 7",19\n"12 7"\n', ":3: 1 cells for 2 columns"),
        ("x.csv", 'nums,target\n"12 7",19\n\n"12 x",19\n', ":4: 'nums' must hold whole numbers"),
        ("x.csv", 'nums,target\n"12 7,19\n', "not valid CSV"),
        ("x.csv", "nums,target\n", ": no rows"),
        ("x.csv", "", ": there is no column 'nums'; the columns are: none"),
        ("x.txt", ROW_A, "unknown kind of file; .parquet, .jsonl, .json, .csv can be read"),
        ("x.jsonl.gz", ROW_A, "unknown kind of file"),
    ],
)  # fmt: skip
def test_a_bad_file_is_an_error_that_names_the_place(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content.encode())
    with pytest.raises(DataError, match=message) as caught:
        read_problems(file)
    assert caught.value.message.startswith(str(file))
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    ("name", "raw"), [("x.csv", b"nums,target\n\xff,1\n"), ("x.json", b"[\xff]"), ("x.parquet", b"junk")]
)
def test_bytes_that_are_no_text_are_an_error(tmp_path: Path, name: str, raw: bytes) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match="not valid UTF-8|not a readable Parquet file"):
        read_problems(tmp_path / name)


def test_a_parquet_file_without_a_column_names_those_that_it_has(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"numbers": [[1, 2]], "target": [3]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet: there is no column 'nums'; the columns are: numbers, target"):
        read_problems(tmp_path / "x.parquet")


# --- folders and splits ---

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Make a folder; each file has one row whose target is the number given, or is text."""

    def make(**files: int | str) -> Path:
        for name, value in files.items():
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(value, str):
                path.write_text(value)
            elif path.suffix == ".parquet":
                parquet.write_table(pa.table({"nums": [[value]], "target": [value]}), path)
            else:
                row = {"nums": [value], "target": value}
                path.write_text(f"nums,target\n{value},{value}\n" if path.suffix == ".csv" else json.dumps(row))
        return tmp_path / "set"

    return make


CLONE = {
    "README.md": "---\nlicense: mit\n---\n# Countdown\n",
    ".gitattributes": "*.parquet filter=lfs",
    ".git/objects/x.parquet": 9,
    "dataset_infos.json": "{}",
    "data/train-00000-of-00002.parquet": 1,
    "data/train-00001-of-00002.parquet": 2,
    "data/valid-00000-of-00001.parquet": 3,
    "data/test-00000-of-00001.parquet": 4,
}
CONFIGS = {
    "README.md": "---\nconfigs:\n- config_name: three\n  data_files:\n  - split: train\n    path: three/*.csv\n"
    "  - split: test\n    path: [other/t.csv]\n- config_name: four\n  data_dir: four\n---\n",
    "three/a.csv": 1, "three/b.csv": 2, "other/t.csv": 3, "four/train/x.csv": 4, "four/test/x.csv": 5, "left.csv": 6,
}  # fmt: skip
DEFAULT = {
    "README.md": "---\nconfigs:\n- {config_name: a, data_files: a.jsonl}\n- {config_name: b, data_files: [b.jsonl], "
    "default: true}\n---\n",
    "a.jsonl": 1,
    "b.jsonl": 2,
}


@pytest.mark.parametrize(
    ("files", "config", "split", "expected"),
    [
        (CLONE, None, None, [1, 2]),
        (CLONE, None, "train", [1, 2]),
        (CLONE, "default", "valid", [3]),
        (CLONE, None, "test", [4]),
        (CLONE, "x", None, "has no configuration 'x'; there are: default"),
        (CLONE, None, "validation", "has no split 'validation'; there are: test, train, valid"),
        (CLONE, None, "train[:5]", r"has no split 'train\[:5\]'; there are: test, train, valid"),
        (CONFIGS, "three", None, [1, 2]),
        (CONFIGS, "three", "test", [3]),
        (CONFIGS, "four", "train", [4]),
        (CONFIGS, "four", "test", [5]),
        (CONFIGS, "three", "dev", "has no split 'dev'; there are: train, test"),
        (CONFIGS, None, None, "has several configurations: choose one with dataset_config .*, three, four"),
        (CONFIGS, "five", None, "has no configuration 'five'; there are: three, four"),
        (DEFAULT, None, None, [2]),
        (DEFAULT, "a", "train", [1]),
        ({"train.jsonl": 1, "test.jsonl": 2, "dev.jsonl": 3}, None, None, [1]),
        ({"train.jsonl": 1, "test.jsonl": 2, "dev.jsonl": 3}, None, "validation", [3]),
        ({"train/0.csv": 1, "train/1.csv": 2, "eval/0.csv": 3}, None, None, [1, 2]),
        ({"train/0.csv": 1, "train/1.csv": 2, "eval/0.csv": 3}, None, "test", [3]),
        ({"countdown_train.json": 1, "countdown-test.json": 2}, None, "train", [1]),
        ({"rows.jsonl": 1, "more.jsonl": 2}, None, None, [2, 1]),
        ({"0000.parquet": 1}, None, "train", [1]),
        ({"all-00000-of-00001.parquet": 1}, None, None, [1]),
        ({"test.jsonl": 1}, None, None, "has no split 'train': name a file, or choose .*--split.*, test"),
        ({"dev.jsonl": 1, "test.jsonl": 2}, None, None, "choose with dataset_split .*, validation, test"),
        ({"rows.jsonl": 1, "rows.csv": 2}, None, None, "split 'train' has .csv and .jsonl files: name one file"),
        ({"rows.jsonl": 1, "sub/other.jsonl": 2, "sub/deep/x.parquet": 3}, None, None, [1]),
        ({"rows.jsonl": 1, ".hidden.jsonl": 2, "_tmp.jsonl": 3, "config.json": "{}"}, None, None, [1]),
        ({"sub/other.jsonl": 2}, None, None, "no .parquet, .jsonl, .json or .csv file in this folder: name a folder"),
        ({"notes.txt": "x"}, None, None, "no .parquet, .jsonl, .json or .csv file in this folder$"),
        ({"data-00000-of-00001.arrow": "x", "state.json": "{}"}, None, None, "written by save_to_disk: write it with"),
        ({"train-00000-of-00002.parquet": 1}, None, None, "1 of its files are not here, train-00001-of-00002.parquet"),
        (
            {"README.md": "---\nconfigs: [\n---\n", "a.jsonl": 1},
            None,
            None,
            "header of its README.md is not valid YAML",
        ),
        ({"README.md": "---\nconfigs: 3\n---\n", "a.jsonl": 1}, None, None, [1]),
        ({"README.md": "---\n# a rule, no header", "a.jsonl": 1}, None, None, [1]),
    ],
)
def test_a_configuration_and_a_split_select_exactly_their_files(
    folder: Folder, files: dict[str, int | str], config: str | None, split: str | None, expected: list[int] | str
) -> None:
    path = folder(**files)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            load(path, config=config, split=split)
        return
    assert sorted(problem.target for problem in load(path, config=config, split=split).train) == sorted(expected)


def load(path: Path | str, **options: str | None) -> TaskData:
    fixed = {"revision": None, "rows": None, "seed": 1, "test_fraction": 0.0, "split_by": "key", "generator": None}
    return load_data(CountdownTask(), str(path), **{**fixed, **options})  # type: ignore[arg-type]


def test_a_file_has_no_configuration_and_one_split(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(ROW_A)
    assert data_files(file, "default", ["train"]) == [[file]]
    for config, split in (("x", None), (None, "test")):
        with pytest.raises(DataError, match="is one file: it has no configurations, and only the split 'train'"):
            data_files(file, config, [split])
        with pytest.raises(DataError, match="generated problems have no configurations and no splits"):
            load("generated", config=config, split=split)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["train.csv", "test.csv", "dev.csv"], "test.csv"),
        (["train.csv", "dev.csv"], "train.csv"),
        (["dev.csv"], "dev.csv"),
        (["rows.csv"], "rows.csv"),
    ],
)
def test_an_evaluation_prefers_the_test_split(folder: Folder, names: list[str], chosen: str) -> None:
    path = folder(**dict.fromkeys(names, 1))
    assert data_files(path, prefer="test") == [[path / chosen]]


def test_a_test_split_is_held_out_whole_and_leaks_nothing(folder: Folder) -> None:
    path = folder(
        **{"train.csv": 'nums,target\n"1 2",3\n"3 4",7\n"5 6",11\n', "test.csv": 'nums,target\n"2 1",3\n"9 9",81\n'}
    )
    loaded = load(path, test_split="test")
    assert [problem.target for problem in loaded.held_out] == [3, 81]
    assert sorted(problem.target for problem in loaded.train) == [7, 11]
    assert (loaded.provenance["test_split"], loaded.provenance["test_fraction"]) == ("test", None)
    with pytest.raises(DataError, match="every problem of its split 'train' is in 'train', too"):
        load(path, test_split="train")


def test_reading_loads_no_heavy_package(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"nums": [[1, 2]], "target": [3]}), tmp_path / "x.parquet")
    code = (
        "import sys; from pathlib import Path; from mini_r1.tasks.countdown.data import read_problems\n"
        "read_problems(Path(sys.argv[1])); print({'torch', 'datasets', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
