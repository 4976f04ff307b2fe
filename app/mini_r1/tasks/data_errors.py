"""Errors in a user's data, and the checks of rows that every task shares."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from mini_r1.errors import KitError

SHOWN_COLUMNS = 10
"""Names of columns that an error lists."""


class DataError(KitError):
    """Error raised for wrong data from a user: the message names the place and what is wrong."""


def parse_json(raw: bytes, place: str, hint: str = "") -> Any:
    """Return the value of a JSON text, or raise a DataError that names `place` and ends with `hint`."""
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not valid UTF-8 ({error.reason} at byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON ({error}){hint}") from error


def refuse_missing(columns: Iterable[object], wanted: Sequence[str], place: str) -> None:
    """Raise a DataError that lists the columns unless all that are wanted are among them."""
    there = list(columns)
    for name in wanted:
        if name not in there:
            raise DataError(f"{place}: there is no column '{name}'; the columns are: {list_columns(there)}")


def list_columns(columns: Iterable[object]) -> str:
    """Return the names of columns for an error, shortened."""
    there = list(columns)
    more = f" and {len(there) - SHOWN_COLUMNS} more" if len(there) > SHOWN_COLUMNS else ""
    return (", ".join(str(column)[:40] for column in there[:SHOWN_COLUMNS]) or "none") + more
