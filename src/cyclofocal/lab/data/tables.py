"""Read and check tables, CSV or Parquet, with one column to predict."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclofocal.lab.data.dataset import Labels
from cyclofocal.lab.data.delimited import read_csv
from cyclofocal.lab.data.parquet import read_parquet
from cyclofocal.lab.data.sheet import check_columns, drop_row_numbers, exceeds_floats
from cyclofocal.lab.messages import DamagedDataError, MissingDataError, preview

if TYPE_CHECKING:
    from pandas import DataFrame, Series

SUFFIXES = (".csv", ".parquet")

FEW_TEXTS, MOST_TEXTS = 30, 500
"""Limits of categories: more texts than the first and a tenth of the rows, or than the second, are free text."""

FEW_NUMBERS = 20
"""Limit of classes of a numeric target; more, if not whole or above a tenth of the rows, mean a regression."""


@dataclass(frozen=True, eq=False)
class Table:
    """Rows and labels of a table before encoding.

    Attributes:
        title: readable name, such as "people.csv".
        features: float64 columns of numbers, object columns of texts, and columns of times; NaN is a missing value.
        labels: class per row.
        classes: names of the classes, in label order.
        notes: a sentence on each column of the file that was dropped or converted.
        changes: columns whose data differ from those that pandas alone reads; part of the digest of the table.
        vectorized: names of the columns of dates, durations and free text, which a vectorizer encodes.
        dropped: names of the columns of the file that are not features.
        target: name of the column of the classes.
        decimals: by column, the decimal mark of numbers that pandas alone does not read.
    """

    title: str
    features: "DataFrame"
    labels: Labels
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    vectorized: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    target: str = ""
    decimals: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows per class."""
        return tuple(np.bincount(self.labels, minlength=len(self.classes)).tolist())


def read_table(path: Path, target: str) -> Table:
    """Read and check a CSV file (separated by commas, semicolons, tabs or pipes, with names) or a Parquet file.

    Args:
        path: path that ends in .csv or .parquet.
        target: name of the column of the classes.

    Raises:
        MissingDataError: no such file, or pyarrow is not installed.
        DamagedDataError: empty, or not of the format that its name says.
        ValueError: no such column, or as :func:`checked` raises it.
    """
    if not path.is_file():
        raise MissingDataError(f"{path}: no such file; a table is a .csv or .parquet file")
    sheet = read_parquet(path, target) if path.suffix.lower() == ".parquet" else read_csv(path, target)
    drop_row_numbers(sheet, target)
    if exceeds_floats(sheet.frame[target]):
        sheet.changes[target] = "digits"
    if list(sheet.frame.columns) == [target] and sheet.notes:
        raise ValueError(f"{path}: nothing is left to predict {target!r} from; {'; '.join(sheet.notes.values())}")
    table = checked(sheet.frame, target, str(path))
    categories = [table.features[name] for name in table.features if name not in table.vectorized]
    remarks = [remark for column in categories if (remark := _words_among_numbers(column) or _unread_digits(column))]
    notes = tuple(f"{path}: {note}" for note in [*sheet.notes.values(), *remarks])
    changes = tuple(sorted(f"{how} {name}" for name, how in sheet.changes.items()))
    dropped = tuple(name for name in sheet.changes if name != target and name not in table.features)
    decimals = {name: mark for name, mark in sheet.decimals.items() if name in table.features}
    return replace(table, notes=notes, changes=changes, dropped=dropped, decimals=decimals)


def checked(frame: "DataFrame", target: str, title: str) -> Table:
    """Check a data frame and build its table.

    Raises:
        ValueError: two columns of one name, no such target, a target with missing values, of one class or continuous;
            a column of lists and the like, or without a value; an infinite value. Names the column.
    """
    from pandas import DataFrame

    frame.columns = [str(name) for name in frame.columns]
    check_columns(list(frame.columns), target, title)
    if not len(frame):
        raise DamagedDataError(f"{title}: it has no row")
    labels, classes = _classes(frame[target], title)
    features = {name: _column(frame[name], title) for name in frame.columns if name != target}
    if not features:
        raise ValueError(f"{title}: it has no column but {target!r}, so nothing to predict it from")
    vectorized = tuple(name for name, column in features.items() if _needs_vectorizer(column, title))
    return Table(title, DataFrame(features), labels, classes, vectorized=vectorized, target=target)


def _classes(column: "Series", title: str) -> tuple[Labels, tuple[str, ...]]:
    """Number the classes: numbers in numeric, texts in alphabetical order; returns labels and names."""
    from pandas import factorize

    where = f"{title}: target {column.name!r}"
    _check_scalars(column, where)
    absent = np.flatnonzero(column.isna() | (column.astype(str).str.strip() == ""))
    if len(absent):
        raise ValueError(f"{where} has no value in {_rows(absent)}; remove them")
    is_number = _is_number(column)
    labels, index = factorize(column if is_number else column.astype(str).str.strip(), sort=True)
    found = index.tolist()
    if is_number:
        _check_classes_not_numbers(found, len(column), where)
    else:
        _check_not_fractions(found, len(column), where)
    if len(found) < 2:
        raise ValueError(f"{where} has one class, {found[0]!s}; there must be two or more")
    texts = map(str, index.to_numpy())  # not those of Python's floats, which a float32 does not equal
    names = [str(int(v)) if is_number and v == int(v) else text for v, text in zip(found, texts, strict=True)]
    return labels.astype(np.int64), tuple(names)


def _is_number(column: "Series") -> bool:
    """True for numbers, Python's included; False for booleans."""
    from pandas.api.types import infer_dtype

    return infer_dtype(column) in ("integer", "floating", "decimal", "mixed-integer-float")


def _check_scalars(column: "Series", where: str) -> None:
    from pandas.api.types import is_object_dtype, is_scalar

    odd = next((value for value in column if not is_scalar(value)), None) if is_object_dtype(column) else None
    if odd is not None:
        raise ValueError(
            f"{where} holds values of several parts, such as {str(odd)[:60]}; drop it, or make a column of each part"
        )


def _check_classes_not_numbers(found: Sequence[Any], rows: int, where: str) -> None:
    if not all(isinstance(value, int) or isfinite(value) for value in found):
        raise ValueError(f"{where} is infinite in some rows; the target must be classes")
    whole = all(value == int(value) for value in found)
    if len(found) > FEW_NUMBERS and (not whole or len(found) > rows / 10):
        raise ValueError(
            f"{where} has {len(found)} different numbers in {rows} rows, from {found[0]:g} to {found[-1]:g}: a"
            " regression, it seems; the target must be classes"
        )


def _check_not_fractions(found: Sequence[str], rows: int, where: str) -> None:
    """Refuse texts that are all numbers, such as 0.50 or 0,5, and not all whole."""
    from pandas import Series, to_numeric

    numbers = to_numeric(Series(found, dtype=object).str.replace(",", "."), errors="coerce")
    if numbers.notna().all() and (numbers % 1 != 0).any():
        _check_classes_not_numbers(sorted(numbers), rows, where)


def _column(column: "Series", title: str) -> "Series":
    """Convert a column to float64 or texts; times are unchanged."""
    from pandas.api.types import is_datetime64_any_dtype, is_numeric_dtype, is_timedelta64_dtype

    where = f"{title}: column {column.name!r}"
    _check_scalars(column, where)
    if column.isna().all():
        raise ValueError(f"{where} has no value at all; drop it")
    if is_datetime64_any_dtype(column) or is_timedelta64_dtype(column):
        return column
    if not is_numeric_dtype(column) and not _is_number(column):
        return as_texts(column)
    numbers = column.astype("float64") if not column.isna().any() else _with_nan(column)
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(infinite):
        raise ValueError(f"{where} is infinite in {_rows(infinite)}; leave missing values empty")
    return numbers


def _with_nan(column: "Series") -> "Series":
    """Convert numbers to float64 with NaN for all missing values of pandas."""
    from pandas import Series

    return Series(column.to_numpy(dtype="float64", na_value=np.nan), name=column.name)


def as_texts(column: "Series") -> "Series":
    """Convert values to texts, each distinct value once; NaN stays."""
    from pandas import Series, factorize

    codes, different = factorize(column)
    texts = np.array([*(str(value).strip() for value in different), np.nan], dtype=object)  # code -1 is the last
    return Series(texts[codes], name=column.name, dtype=object)


def _needs_vectorizer(column: "Series", title: str) -> bool:
    """True for times, and for more distinct texts than categories have.

    Raises:
        ValueError: mostly numbers, with some texts among them.
    """
    if column.dtype != object:
        return column.dtype != "float64"
    different = column.nunique()
    if different <= FEW_TEXTS:
        return False
    words = _words(column)
    allowed = different <= min(len(column) / 10, MOST_TEXTS)
    if allowed and (not len(words) or len(words) >= len(column) / 10):
        return False
    if 0 < len(words) < len(column) / 2:
        raise ValueError(
            f"{title}: column {column.name!r} holds numbers, but not in {_rows(words)}, such as"
            f" {column.iloc[words[0]]!r}; leave missing values empty, or drop the column"
        )
    return True


def _words(column: "Series") -> np.ndarray:
    """Find positions of texts that are no numbers."""
    from pandas import to_numeric

    return np.flatnonzero(to_numeric(column, errors="coerce").isna() & column.notna())


def _words_among_numbers(column: "Series") -> str:
    """Describe categories that are mostly numbers; "" for others."""
    if column.dtype != object or not 0 < len(words := _words(column)) < column.count() / 2:
        return ""
    texts = f"{column.iloc[words[0]]!r} is no number, in {_rows(words)}"
    return f"column {column.name!r}: categories, not numbers, for {texts}"


def _unread_digits(column: "Series") -> str:
    """Describe categories that mostly contain digits but are not read as numbers; "" for others."""
    if column.dtype != object or not len(words := _words(column)):
        return ""
    digits = column.str.contains("[0-9]", na=False)
    if digits.sum() <= column.count() / 2:
        return ""
    text = next(text for text in column.iloc[words] if re.search("[0-9]", text))
    taken = f"column {column.name!r}: texts with digits taken as categories, such as {text!r}"
    return f"{taken}; if they are amounts, write them as plain numbers"


def _rows(positions: np.ndarray) -> str:
    """Name some rows, counted from 1."""
    return f"{len(positions)} of its rows (number {preview((positions + 1).tolist())})"
