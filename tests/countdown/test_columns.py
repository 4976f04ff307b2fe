"""`dataset_columns`: fields of the task in columns of other names, also nested; and the error that proposes it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from mini_r1.tasks.countdown.problem import COLUMNS, Problem, parse_problem
from mini_r1.tasks.data_errors import DataError
from mini_r1.tasks.problem_files import read_files
from pyarrow import parquet

A, B = Problem((30, 100, 93), 23), Problem((4, 5, 9, 2), 20)
FLAT = [{"numbers": [30, 100, 93], "answer": 23}, {"numbers": [4, 5, 9, 2], "answer": 20}]
"""Rows as each public form has them, here with the same two problems."""
VERL = [
    {
        "data_source": "countdown", "ability": "math", "extra_info": {"split": "train", "index": index},
        "prompt": [{"role": "user", "content": "…"}],
        "reward_model": {"style": "rule", "ground_truth": {"target": row["answer"], "numbers": row["numbers"]}},
    }
    for index, row in enumerate(FLAT)
]  # fmt: skip
GYM = [
    {
        "question": f"Reach {row['answer']}.", "answer": "30 + 93 - 100",
        "metadata": {"source_index": index, "numbers": row["numbers"], "target": row["answer"]},
    }
    for index, row in enumerate(FLAT)
]  # fmt: skip
TEXT = [{"input": "30,100,93", "goal": "23"}, {"input": "[4, 5, 9, 2]", "goal": 20}]
IN_TEXT = [{"id": 7, "info": json.dumps({"numbers": row["numbers"], "target": row["answer"]})} for row in FLAT]
DOTTED = [{"task.nums": row["numbers"], "task.target": row["answer"]} for row in FLAT]
FORMS = {
    "other names": (FLAT, {"nums": "numbers", "target": "answer"}),
    "one other name": ([{**row, "target": row["answer"]} for row in FLAT], {"nums": "numbers"}),
    "verl": (VERL, {"nums": "reward_model.ground_truth.numbers", "target": "reward_model.ground_truth.target"}),
    "reasoning-gym": (GYM, {"nums": "metadata.numbers", "target": "metadata.target"}),
    "numbers as text": (TEXT, {"nums": "input", "target": "goal"}),
    "JSON as text": (IN_TEXT, {"nums": "info.numbers", "target": "info.target"}),
    "dots in names": (DOTTED, {"nums": "task.nums", "target": "task.target"}),
}


def read(file: Path, mapping: dict[str, str]) -> list[Problem]:
    return read_files([file], COLUMNS.mapped(mapping), parse_problem)


def write(folder: Path, rows: list[dict[str, object]], suffix: str) -> Path:
    file = folder / f"rows{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), file)
    elif suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_a_mapping_reads_every_form_and_its_absence_proposes_it(tmp_path: Path, form: str, suffix: str) -> None:
    rows, mapping = FORMS[form]
    if form == "numbers as text" and suffix == ".parquet":
        rows = [{key: str(value) for key, value in row.items()} for row in rows]  # a column has one type
    file = write(tmp_path, rows, suffix)
    assert read(file, mapping) == [A, B]
    with pytest.raises(DataError) as caught:
        read(file, {})
    pairs = ", ".join(f"{field}: {path}" for field, path in mapping.items())
    options = " ".join(f"--column {field}={path}" for field, path in mapping.items())
    assert f"there is no column 'nums'; the columns are: {', '.join(map(str, rows[0]))}. " in caught.value.message
    assert caught.value.message.endswith(f"Set dataset_columns: {{{pairs}}} (`data inspect`, `evaluate`: {options})")


def test_a_csv_file_has_mapped_columns_too(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("id;numbers;answer\na;30,100,93;23\nb;4,5,9,2;20\n")
    assert read(file, {"nums": "numbers", "target": "answer"}) == [A, B]
    with pytest.raises(DataError, match=r"Set dataset_columns: \{nums: numbers, target: answer\}"):
        read(file, {})


@pytest.mark.parametrize(
    ("row", "mapping", "sentence"),
    [
        ({"numbers": [1], "target": 2}, {"nums": "number"},
         "there is no column 'number', which dataset_columns names for 'nums'; the columns are: numbers, target. "
         "Set dataset_columns: {nums: numbers} (`data inspect`, `evaluate`: --column nums=numbers)"),
        (GYM[0], {"nums": "metadata.numbers"}, "there is no column 'target'; the columns are: question, answer, "
         "metadata. Set dataset_columns: {nums: metadata.numbers, target: metadata.target}"),
        (GYM[0], {"nums": "metadata.nums", "target": "metadata.target"}, "no column 'metadata.nums', which "
         "dataset_columns names for 'nums'; the columns are: question, answer, metadata. Set dataset_columns"),
        ({"nums": [1], "target": 2}, {"nums": "nums.first"}, "the columns are: nums, target. The columns have the "
         "fields' own names: take dataset_columns out"),
        ({"nums": [1], "result": "3 x"}, {}, "there is no column 'target'; the columns are: nums, result"),
        ({"a": 1, "b": 2, "nums": [3]}, {}, "there is no column 'target'; the columns are: a, b, nums"),
        ({"numbers": [1], "answer": 2}, {"nums": "numbers", "target": "answer", "answers": "x"},
         "'answers' is not a field of the task: its fields are nums and target"),
    ],
)  # fmt: skip
def test_a_wrong_mapping_names_what_is_there(
    tmp_path: Path, row: dict[str, object], mapping: dict[str, str], sentence: str
) -> None:
    file = write(tmp_path, [row], ".jsonl")
    with pytest.raises(DataError) as caught:
        read(file, mapping)
    assert sentence in caught.value.message
    assert caught.value.exit_code == 78
    assert ("Set " in caught.value.message) == ("Set " in sentence)


def test_a_bad_value_in_a_mapped_column_names_its_place(tmp_path: Path) -> None:
    file = write(tmp_path, [FLAT[0], {"numbers": [0, 1], "answer": 3}], ".jsonl")
    with pytest.raises(DataError, match=r"rows.jsonl:2: 'nums' must hold whole numbers from 1 .*found 0"):
        read(file, {"nums": "numbers", "target": "answer"})


def test_hostile_nesting_is_an_error_in_bounded_work(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": ' * 400 + "1" + "}" * 400 + "\n")
    with pytest.raises(DataError, match="no column 'nums'; the columns are: a$"):
        read(file, {})
    file.write_text(json.dumps({"a": '{"b": ' * 5000}))
    with pytest.raises(DataError, match="no column 'a.b', which"):
        read(file, {"nums": "a.b"})


def test_a_file_with_the_own_names_of_the_fields_needs_no_mapping(tmp_path: Path) -> None:
    columns = COLUMNS.mapped({"nums": "numbers", "target": "answer"})

    def found(rows: list[dict[str, object]]) -> list[Problem]:
        file = write(tmp_path, rows, ".jsonl")
        return columns.own_names_first(lambda columns: read_files([file], columns, parse_problem))

    assert found(FLAT) == found([{"nums": A.nums, "target": A.target}, {"nums": B.nums, "target": B.target}]) == [A, B]
    with pytest.raises(DataError, match="no column 'numbers', which dataset_columns names"):
        found([{"x": 1}])
