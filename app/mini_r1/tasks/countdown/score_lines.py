"""One line of `mini-r1 score`: a JSON object in, the verdicts out."""

from __future__ import annotations

import json

from .problem import DataError, parse_problem
from .rewards import judge


def score_line(line: str, where: str = "input") -> dict[str, int | str]:
    """Judge the completion in one line of JSONL.

    Args:
        line: `{"completion": str, "nums": [int, ...], "target": int}`; other keys are ignored.
        where: the line's place as an error names it, for example `completions.jsonl:3`.

    Returns:
        {"format", "equation", "format_original", "equation_original"}, 0 or 1 each, and "reason" in words.

    Raises:
        DataError: for anything that is not such an object.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error})") from error
    problem = parse_problem(row, where)
    completion = row.get("completion")
    if not isinstance(completion, str):
        raise DataError(
            f"{where}: 'completion' must be a string" if "completion" in row else f"{where}: 'completion' is missing"
        )
    verdict = judge(completion, problem.nums, problem.target)
    return {
        "format": verdict.format,
        "equation": verdict.equation,
        "format_original": verdict.format_original,
        "equation_original": verdict.equation_original,
        "reason": verdict.reason,
    }
