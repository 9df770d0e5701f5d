"""Columns as a file has them: numbers and texts, without row numbers, and a word on each that was changed."""

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
"""The name of a column that was saved without one, as row numbers are: in the file, or after it was read again."""

IDENTIFIER = re.compile(r"(?i:index|idx|row)|(?:.*(?:[\W_]|(?<=[a-z])(?=I)))?(?i:id)")
"""The name of a column that tells rows apart, such as "index", "customer_id" or "PassengerId"."""

FEW_ROWS = 10
"""In fewer rows numbers may count up by chance."""

EXACT = 2**53
"""Whole numbers beyond it share their float64 with others."""


@dataclass(eq=False)
class Sheet:
    """Columns of a file.

    Attributes:
        frame: numbers, and texts as they are written.
        notes: by column, a sentence for people: it was dropped, or converted.
        changes: by column, one word, if its data are not those that ``pandas.read_csv`` or ``read_parquet`` gives.
    """

    frame: "DataFrame"
    notes: dict[str, str] = field(default_factory=dict)
    changes: dict[str, str] = field(default_factory=dict)

    def drop(self, name: str, why: str) -> None:
        """Leave out the columns of that name."""
        self.frame = self.frame.drop(columns=name)
        self.notes[name] = f"column {name!r} {why}"
        if self.changes.pop(name, "") != "index":
            self.changes[name] = "dropped"

    def convert(self, name: str, numbers: "Series", how: str) -> None:
        """Put numbers in the place of a column."""
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
    """The names of columns that were not saved without one."""
    return [name for name in names if name == target or not UNNAMED.fullmatch(name)]


def without_unnamed(frame: "DataFrame", target: str) -> Sheet:
    """The columns that were not saved without a name."""
    sheet = Sheet(frame)
    for name in sorted(set(frame.columns) - set(named(list(frame.columns), target))):
        sheet.drop(name, "was saved without a name, as row numbers are: dropped; name it if it is a feature")
    return sheet


def read_notations(sheet: Sheet, target: str, title: str, point_is_decimal: bool) -> set[str]:
    """Put numbers in the place of texts that are numbers in some notation; the decimal marks that were found."""
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
    """The different texts of a column as numbers; None where they are no numbers.

    Raises:
        ValueError: what :func:`~cyclofocal.lab.data.notation.read_numbers` finds; begins with ``where``.
    """
    try:
        return read_numbers(column.dropna().str.strip().unique().tolist(), point_is_decimal)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from None


def _example(numbers: dict[str, float]) -> str:
    """Some texts and their numbers, in words."""
    text = next((text for text, number in numbers.items() if text not in (*ABSENT, f"{number:g}")), "")
    absent = [text for text in numbers if text in ABSENT]
    read = [f"{text!r} as {numbers[text]:.15g}"] if text else []
    return f"numbers, {' and '.join([*read, *(f'{a!r} as missing' for a in absent)])}"


def drop_row_numbers(sheet: Sheet, target: str) -> None:
    """Leave out the columns that count the rows or tell them apart."""
    for name in sheet.frame.columns:
        if name != target and (why := _numbers_rows(name, sheet.frame[name])):
            sheet.drop(name, f"{why}: dropped")


def _numbers_rows(name: str, column: "Series") -> str:
    """The reason why a column is the number of a row and no feature; "" if it is one."""
    """Why a column is no feature but the number of a row; "" where it is not."""
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
