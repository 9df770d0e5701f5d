"""Columns of a file as numbers and texts, without row numbers, with a note on each changed column."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cyclofocal.lab.data.notation import ABSENT, Notation, read_numbers
from cyclofocal.lab.messages import did_you_mean, preview

if TYPE_CHECKING:
    from pandas import DataFrame, Series

UNNAMED = re.compile(r"|Unnamed: \d+(\.\d+)*|__index_level_\d+__")
"""Names of columns that were saved without a name, as row numbers are."""

IDENTIFIER = re.compile(r"(?i:index|idx|row)|(?:.*(?:[\W_]|(?<=[a-z])(?=I)))?(?i:id)")
"""Names of columns that identify rows, such as "index", "customer_id" or "PassengerId"."""

FEW_ROWS = 10
"""Smallest number of rows in which numbers that count up are taken for row numbers."""

EXACT = 2**53
"""Largest whole number below which all have their own float64."""


@dataclass(eq=False)
class Sheet:
    """Columns of a file.

    Attributes:
        frame: numbers, and texts as in the file.
        notes: by column, a sentence on its removal or conversion.
        changes: by column, one word, if its data differ from those of ``pandas.read_csv`` or ``read_parquet``.
    """

    frame: "DataFrame"
    notes: dict[str, str] = field(default_factory=dict)
    changes: dict[str, str] = field(default_factory=dict)

    def drop(self, name: str, why: str) -> None:
        """Remove the columns of that name."""
        self.frame = self.frame.drop(columns=name)
        self.notes[name] = f"column {name!r} {why}"
        if self.changes.pop(name, "") != "index":
            self.changes[name] = "dropped"

    def convert(self, name: str, numbers: "Series", how: str) -> None:
        """Replace a column by numbers."""
        self.frame[name] = numbers
        self.notes[name] = f"column {name!r}: {how}"
        self.changes[name] = "numbers"


def check_columns(names: Sequence[str], target: str, title: str) -> None:
    """Refuse two columns of one name, and a target that is none of them.

    Raises:
        ValueError: names the columns.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{title}: more than one column is called {preview(list(map(repr, twice)))}")
    if target not in names:
        hint = did_you_mean(target, names)
        raise ValueError(f"{title}: target is {target!r}; it must be one of the columns {preview(names)}.{hint}")


def named(names: Sequence[str], target: str) -> list[str]:
    """Select names of columns that were saved with one."""
    return [name for name in names if name == target or not UNNAMED.fullmatch(name)]


def without_unnamed(frame: "DataFrame", target: str) -> Sheet:
    """Remove columns that were saved without a name."""
    sheet = Sheet(frame)
    for name in sorted(set(frame.columns) - set(named(list(frame.columns), target))):
        sheet.drop(name, "was saved without a name, as row numbers are: dropped; name it if it is a feature")
    return sheet


def read_notations(sheet: Sheet, target: str, title: str, point_is_decimal: bool) -> set[str]:
    """Replace texts by numbers where they are numbers in some notation; returns the decimal marks found."""
    from pandas.api.types import infer_dtype

    marks = set()
    for name, column in sheet.frame.items():
        if name == target or infer_dtype(column) != "string":
            continue
        if found := numbers_of(column, point_is_decimal, f"{title}: column {name!r}"):
            sheet.convert(name, column.str.strip().map(found.numbers).astype("float64"), _example(found.numbers))
            marks.add(found.decimal)
    return marks


def numbers_of(column: "Series", point_is_decimal: bool, where: str) -> Notation | None:
    """Read the texts of a column as numbers; None if they are no numbers.

    Raises:
        ValueError: as :func:`~cyclofocal.lab.data.notation.read_numbers` raises it; begins with ``where``.
    """
    try:
        return read_numbers(column.dropna().str.strip().unique().tolist(), point_is_decimal)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from None


def _example(numbers: dict[str, float]) -> str:
    """Describe a conversion by some texts and their numbers."""
    text = next((text for text, number in numbers.items() if text not in (*ABSENT, f"{number:g}")), "")
    absent = [text for text in numbers if text in ABSENT]
    read = [f"{text!r} as {numbers[text]:.15g}"] if text else []
    return f"numbers, {' and '.join([*read, *(f'{a!r} as missing' for a in absent)])}"


def drop_row_numbers(sheet: Sheet, target: str) -> None:
    """Remove the columns that count or identify the rows."""
    for name in sheet.frame.columns:
        if name != target and (why := _numbers_rows(name, sheet.frame[name])):
            sheet.drop(name, f"{why}: dropped")


def _numbers_rows(name: str, column: "Series") -> str:
    """Reason why a column numbers the rows and is no feature; "" if it is one."""
    from pandas.api.types import is_bool_dtype, is_integer_dtype, is_numeric_dtype

    if not is_numeric_dtype(column) or is_bool_dtype(column) or column.isna().any() or len(column) < 2:
        return ""
    values = column.to_numpy(dtype="int64" if is_integer_dtype(column) else "float64")
    if not (np.isfinite(values) & (values == np.rint(values))).all():
        return ""
    steps = np.diff(values)
    if len(values) >= FEW_ROWS and abs(steps[0]) == 1 and (steps == steps[0]).all():
        return f"counts the rows, from {int(column.iloc[0])} to {int(column.iloc[-1])}"
    if IDENTIFIER.fullmatch(name) and column.is_unique:
        return "has another whole number in every row, as an identifier has"
    return ""


def exceeds_floats(column: "Series") -> bool:
    """True for whole numbers that may share their float64 with others."""
    from pandas.api.types import infer_dtype

    known = column.dropna()
    return infer_dtype(known) == "integer" and bool(known.max() > EXACT or known.min() < -EXACT)
