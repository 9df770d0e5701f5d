"""Read and check tables, CSV or Parquet, with one column to predict."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclofocal.lab.data.config import TableData
from cyclofocal.lab.data.dataset import Labels
from cyclofocal.lab.data.delimited import read_csv
from cyclofocal.lab.data.faults import Faults
from cyclofocal.lab.data.parquet import read_parquet
from cyclofocal.lab.data.sheet import NO_ROLES, check_columns, drop_constants, drop_row_numbers, exceeds_floats
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
        omitted: columns of the file that are not features, each with the reason in a word or two.
        missing: by column that is no feature, number of rows without a value.
        apart: values of the columns that the configuration names as no features: groups and times as numbers.
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
    omitted: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, int] = field(default_factory=dict)
    apart: Mapping[str, np.ndarray] = field(default_factory=dict)
    target: str = ""
    decimals: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows per class."""
        return tuple(np.bincount(self.labels, minlength=len(self.classes)).tolist())


def read_table(path: Path, target: str, data: TableData = NO_ROLES) -> Table:
    """Read and check a CSV file (separated by commas, semicolons, tabs or pipes, with names) or a Parquet file.

    All faults are in one error, as far as one does not hide the others.

    Args:
        path: path that ends in .csv or .parquet.
        target: name of the column of the classes.
        data: names of the columns that are no features, and the split for which every class must have rows.

    Raises:
        MissingDataError: no such file, or pyarrow is not installed.
        DamagedDataError: empty, or not of the format that its name says.
        ValueError: no such column, too few rows of a class, or as :func:`checked` raises it.
    """
    if not path.is_file():
        raise MissingDataError(f"{path}: no such file; a table is a .csv or .parquet file")
    faults = Faults(str(path))
    read = read_parquet if path.suffix.lower() == ".parquet" else read_csv
    sheet = read(path, target, faults, data)
    drop_row_numbers(sheet, target)
    drop_constants(sheet, target)
    if target in sheet.frame and exceeds_floats(sheet.frame[target]):
        sheet.changes[target] = "digits"
    if list(sheet.frame.columns) == [target] and (sheet.notes or sheet.apart):
        said = [*sheet.notes.values(), *(f"column {name!r} is no feature ({data.roles[name]})" for name in sheet.apart)]
        faults.add(f"nothing is left to predict {target!r} from; {'; '.join(said)}")
        faults.refuse()
    apart = {name: _part(column, name, data, faults) for name, column in sheet.apart.items()}
    table = _table(sheet.frame, target, faults, data)
    categories = [table.features[name] for name in table.features if name not in table.vectorized]
    remarks = [remark for column in categories if (remark := _words_among_numbers(column) or _unread_digits(column))]
    notes = tuple(f"{path}: {note}" for note in [*sheet.notes.values(), *remarks])
    changes = tuple(sorted(f"{how} {name}" for name, how in sheet.changes.items()))
    dropped = {name: "dropped" for name in sheet.changes if name != target and name not in table.features}
    omitted = dropped | {name: role for name, role in data.roles.items() if name in apart}
    missing = sheet.missing | {name: int(column.isna().sum()) for name, column in sheet.apart.items()}
    decimals = {name: mark for name, mark in sheet.decimals.items() if name in table.features}
    known = replace(table, notes=notes, changes=changes, decimals=decimals)
    return replace(known, omitted=omitted, missing=missing, apart=apart)


def checked(frame: "DataFrame", target: str, title: str) -> Table:
    """Check a data frame and build its table.

    Raises:
        ValueError: two columns of one name, no such target, a target with missing values, of one class or continuous;
            a column of lists and the like, or without a value; an infinite value. Names the column.
    """
    frame.columns = [str(name) for name in frame.columns]
    return _table(frame, target, Faults(title), NO_ROLES)


def _table(frame: "DataFrame", target: str, faults: Faults, data: TableData) -> Table:
    """Build the table of a data frame, or raise all its faults and those that were found before."""
    from pandas import DataFrame

    title = faults.title
    if not faults:
        check_columns(list(frame.columns), target, faults)
    if not len(frame):
        faults.add("it has no row", DamagedDataError)
        faults.refuse()
    labels, classes = np.empty(0, np.int64), tuple[str, ...]()
    if target in frame:
        with faults.noted():
            labels, classes = _classes(frame[target], faults)
        if said := few_rows(labels, classes, data):
            faults.add(said)
    features, vectorized = {}, []
    for name in frame.columns.drop(target, errors="ignore"):
        with faults.noted():
            features[name] = _column(frame[name], title)
            if _needs_vectorizer(features[name], title):
                vectorized.append(name)
    if target in frame and len(frame.columns) == 1:
        faults.add(f"it has no column but {target!r}, so nothing to predict it from")
    faults.refuse()
    return Table(title, DataFrame(features), labels, classes, vectorized=tuple(vectorized), target=target)


def _part(column: "Series", name: str, data: TableData, faults: Faults) -> np.ndarray:
    """Values of a column that is no feature: groups as whole numbers, times as numbers, others as they are."""
    if name not in (data.group_column, data.time_column):
        return column.to_numpy()
    role = data.roles[name] if name != data.group_column else "group"
    absent = np.flatnonzero(column.isna())
    if len(absent):
        faults.add(f"column {name!r} has no value in {_rows(absent)}, but it is the {role}; fill in or remove them")
        return np.zeros(len(column))
    if name == data.group_column:
        return np.unique(column.astype(str).to_numpy(dtype=str), return_inverse=True)[1]
    with faults.noted():
        return _times(column, f"{faults.title}: column {name!r}")
    return np.zeros(len(column))


def _times(column: "Series", where: str) -> np.ndarray:
    """Read numbers or dates as numbers that rise with the time.

    Raises:
        ValueError: a text is neither a number nor a date of ISO 8601.
    """
    from pandas import to_datetime, to_numeric
    from pandas.api.types import is_numeric_dtype

    numbers = column if is_numeric_dtype(column) else to_numeric(column.astype(str), errors="coerce")
    if numbers.notna().all():
        return numbers.to_numpy(dtype="float64")
    dates = to_datetime(column, format="ISO8601", errors="coerce", utc=True)
    wrong = np.flatnonzero(dates.isna())
    if len(wrong):
        raise ValueError(
            f"{where} is the time, but neither a number nor a date in {_rows(wrong)}, such as"
            f" {str(column.iloc[wrong[0]])!r}; write dates as 2026-01-31"
        )
    return dates.astype("int64").to_numpy()


def few_rows(labels: Labels, classes: tuple[str, ...], data: TableData) -> str:
    """Say which classes have too few rows for the split; "" if none has."""
    least = max(data.folds, 3 if data.validation_fraction else 2) if data.folds or data.test_fraction else 0
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    small = {name: count for name, count in zip(classes, counts, strict=True) if count < least}
    if not small:
        return ""
    parts = f"{data.folds} folds" if data.folds else "a test part"
    more = " and a validation part" if data.validation_fraction else ""
    return (
        f"{parts}{more} need {least} rows or more of every class, but {class_sizes(small)}; join rare classes, remove"
        " them, or take fewer folds"
    )


def class_sizes(sizes: Mapping[str, int]) -> str:
    """List some classes with their rows, as "'rare' has 3"."""
    return preview([f"{name!r} has {count}" for name, count in sizes.items()])


def _classes(column: "Series", faults: Faults) -> tuple[Labels, tuple[str, ...]]:
    """Number the classes: numbers in numeric, texts in alphabetical order; returns labels and names."""
    from pandas import factorize

    where = f"{faults.title}: target {column.name!r}"
    _check_scalars(column, where)
    is_absent = column.isna() | (column.astype(str).str.strip() == "")
    if is_absent.any():
        faults.add(f"target {column.name!r} has no value in {_rows(np.flatnonzero(is_absent))}; remove them")
        column = column[~is_absent]
    if not len(column):
        return np.empty(0, np.int64), ()
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
