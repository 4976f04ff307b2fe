"""Describe a set of problems, and read and write its rows."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mini_r1.tasks.problem_files import data_files, read_files, write_rows

from .problem import COLUMNS, Problem, parse_problem
from .solver import needs_multiplication_or_division, solvable


def read_problems(path: Path) -> list[Problem]:
    """Read a file, or the training rows of a folder; errors are those of `data_files` and `read_files`."""
    return read_files(data_files(Path(path))[0], COLUMNS, parse_problem)


def write_problems(file: Path, suffix: str, problems: Sequence[Problem]) -> None:
    """Write problems in the form of a suffix; see `write_rows`."""
    write_rows(file, suffix, [{"target": problem.target, "nums": list(problem.nums)} for problem in problems])


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
