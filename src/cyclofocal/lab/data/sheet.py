"""Columns of a file as numbers and texts, without row numbers, with a note on each changed column."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cyclofocal.lab.data.config import ROLES, TableData
from cyclofocal.lab.data.faults import Faults
from cyclofocal.lab.data.notation import ABSENT, Notation, read_numbers
from cyclofocal.lab.messages import did_you_mean, preview

if TYPE_CHECKING:
    from pandas import DataFrame, Series

UNNAMED = re.compile(r"|Unnamed: \d+(\.\d+)*|__index_level_\d+__")
"""Names of columns that were saved without a name, as row numbers are."""

IDENTIFIER = re.compile(
    r"(?:.*(?:[\W_]|(?<=[a-z])(?=I)))?(?i:id)|(?i:index|idx|row|#|nr\.?|no\.?|record|key|seq|s[lr]?[\W_]+no\.?)"
    r"|(?i:(?:.*[\W_])?[ug]uid|(?:row|case|record|id|seq|serial)[\W_]*(?:id|number|num|nr|no)\.?)"
)
"""Names of columns that identify rows, such as "index", "customer_id", "PassengerId" or "row_number"."""

NUMBERED = re.compile(r"([^\W\d_]\D*|#\s*|)([0-9]{1,40})")
"""Texts of digits, or of words and digits such as "S0012"."""

DATE = re.compile(r"\d{1,4}[-/. ](?:\d{1,2}|[A-Za-z]{3,9})[-/. ]\d{1,4}(?:[T ].*)?|\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?")
"""Texts such as "2026-01-31", "31/1/2026", "31-Jan-2026", "2026-01-31T12:00" and "12:00"."""

FEW_ROWS = 10
"""Smallest number of rows in which numbers that rise or fall from row to row are taken for row numbers."""

MOST_MISSING = 0.1
"""Largest part of the rows in which a column that numbers them may have no value."""

FIRST_TEXTS = 50
"""Number of texts that are read to see if a column holds dates."""

EXACT = 2**53
"""Largest whole number below which all have their own float64."""


NO_ROLES = TableData("")
"""Configuration of a table all of whose columns are features, with no split yet."""


@dataclass(eq=False)
class Sheet:
    """Columns of a file.

    Attributes:
        frame: numbers, and texts as in the file.
        notes: by column, a sentence on its removal or conversion.
        changes: by column, one word, if its data differ from those of ``pandas.read_csv`` or ``read_parquet``.
        missing: by column that was removed, number of rows without a value.
        apart: columns that are neither target nor features, as in the file.
        decimals: by column, the decimal mark of its texts, if they were replaced by numbers.
    """

    frame: "DataFrame"
    notes: dict[str, str] = field(default_factory=dict)
    changes: dict[str, str] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    apart: dict[str, "Series"] = field(default_factory=dict)
    decimals: dict[str, str] = field(default_factory=dict)

    def drop(self, name: str, why: str) -> None:
        """Remove the columns of that name."""
        self.missing[name] = int(self.frame[name].isna().to_numpy().sum())
        self.frame = self.frame.drop(columns=name)
        self.notes[name] = f"column {name!r} {why}"
        if self.changes.pop(name, "") != "index":
            self.changes[name] = "dropped"

    def convert(self, name: str, numbers: "Series", how: str) -> None:
        """Replace a column by numbers."""
        self.frame[name] = numbers
        self.notes[name] = f"column {name!r}: {how}"
        self.changes[name] = "numbers"


def check_columns(names: Sequence[str], target: str, faults: Faults, data: TableData = NO_ROLES) -> None:
    """Note names of columns that the file does not have; two columns of one name are refused at once.

    Args:
        names: columns of the file.
        target: column of the classes.
        faults: faults of the file.
        data: names of the columns that are no features.

    Raises:
        ValueError: two columns of one name; names them, with all faults before.
    """
    given = {"target": (target,), **{option: _names(getattr(data, role)) for role, option in ROLES.items()}}
    for option, columns in given.items():
        for column in columns:
            if column not in names:
                rule = f"it must be one of the columns {preview(names)}.{did_you_mean(column, names)}"
                faults.add(f"{option} {'has' if option == '--drop' else 'is'} {column!r}; {rule}")
            elif option != "target" and column == target:
                faults.add(f"{option} names {column!r}, which is the target; omit it")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        faults.add(f"more than one column is called {preview(list(map(repr, twice)))}")
        faults.refuse()


def _names(given: str | tuple[str, ...]) -> tuple[str, ...]:
    return given if isinstance(given, tuple) else (given,) * bool(given)


def named(names: Sequence[str], others: Collection[str]) -> list[str]:
    """Select names of columns that were saved with one, and some others."""
    return [name for name in names if name in others or not UNNAMED.fullmatch(name)]


def without_unnamed(frame: "DataFrame", others: Collection[str]) -> Sheet:
    """Remove columns that were saved without a name, except for some."""
    sheet = Sheet(frame)
    for name in sorted(set(frame.columns) - set(named(list(frame.columns), others))):
        sheet.drop(name, "was saved without a name, as row numbers are: dropped; name it if it is a feature")
    return sheet


def read_notations(sheet: Sheet, target: str, faults: Faults, point_is_decimal: bool) -> set[str]:
    """Replace texts by numbers where they are numbers in some notation; returns the decimal marks found."""
    from pandas.api.types import infer_dtype

    marks = set()
    for name, column in sheet.frame.items():
        if name == target or infer_dtype(column) != "string":
            continue
        with faults.noted():
            if found := numbers_of(column, point_is_decimal, f"{faults.title}: column {name!r}"):
                sheet.convert(name, column.str.strip().map(found.numbers).astype("float64"), _example(found.numbers))
                marks.add(found.decimal)
                sheet.decimals[name] = found.decimal
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
    if not text and not absent:
        text = next(iter(numbers))
    read = [f"{text!r} as {numbers[text]:.15g}"] if text else []
    return f"numbers, {' and '.join([*read, *(f'{a!r} as missing' for a in absent)])}"


def drop_row_numbers(sheet: Sheet, target: str) -> None:
    """Remove the columns that count or identify the rows."""
    for name in sheet.frame.columns:
        if name != target and (why := _numbers_rows(name, sheet.frame[name])):
            sheet.drop(name, f"{why}: dropped")


def _numbers_rows(name: str, column: "Series") -> str:
    """Reason why a column numbers the rows and is no feature; "" if it is one."""
    from pandas.api.types import infer_dtype, is_bool_dtype, is_numeric_dtype

    known, prefix = column.dropna(), ""
    if len(known) < 2 or len(known) < (1 - MOST_MISSING) * len(column) or is_bool_dtype(known):
        return ""
    if is_numeric_dtype(known):
        whole = known if (known % 1 == 0).all() else None
    elif infer_dtype(known := known.astype(object)) == "string":
        prefix, whole = _numbered(known)
    else:
        return ""
    if not known.is_unique:
        return ""
    where = "in every row" if len(known) == len(column) else "in every row that has one"
    if whole is not None and len(known) >= FEW_ROWS:
        if prefix:
            return f"has another number after {prefix!r} {where}, as an identifier has"
        if words := _rising(whole):
            return words
    if IDENTIFIER.fullmatch(name) and (whole is not None or _are_words(known)):
        kind = "whole number" if is_numeric_dtype(known) else "text"
        return f"has another {kind} {where}, as an identifier has"
    if whole is None and len(known) >= FEW_ROWS and _are_words(known) and not _are_dates(known):
        return f"has another text without spaces {where}, as an identifier has"
    return ""


def _are_dates(texts: "Series") -> bool:
    """True if most of the first texts look like dates or times."""
    return bool(texts.iloc[:FIRST_TEXTS].str.strip().str.fullmatch(DATE.pattern).mean() > 0.5)


def drop_constants(sheet: Sheet, target: str) -> None:
    """Remove the columns that are the same in every row."""
    for name in sheet.frame.columns:
        if name != target and (why := _is_constant(sheet.frame[name])):
            sheet.drop(name, f"{why}: dropped")


def _is_constant(column: "Series") -> str:
    """Reason why a column is constant; "" if it is not, or has values of several parts."""
    try:
        values = column.unique()
    except TypeError:
        return ""
    if len(column) < 2 or len(values) > 1:
        return ""
    if column.isna().all():
        return "has no value in any row"
    return f"is {str(values[0])!r} in every row"


def _numbered(texts: "Series") -> tuple[str, "Series | None"]:
    """Split texts into the words that all begin with and the digits behind; no digits if some differ in form."""
    from pandas import Series

    parts = [NUMBERED.fullmatch(text.strip()) for text in texts]
    found = [part for part in parts if part]
    if len(found) < len(parts) or len({part[1] for part in found}) > 1:
        return "", None
    return found[0][1], Series([int(part[2]) for part in found], dtype=object)


def _rising(whole: "Series") -> str:
    """Say that different whole numbers rise or fall from row to row; "" if they do not."""
    if not whole.is_unique or not (whole.is_monotonic_increasing or whole.is_monotonic_decreasing):
        return ""
    first, last = int(whole.iloc[0]), int(whole.iloc[-1])
    if abs(last - first) == len(whole) - 1:
        return f"counts the rows, from {first} to {last}"
    way = "rises" if first < last else "falls"
    return f"{way} from row to row, from {first} to {last}, as row numbers do (shuffle the rows if it is a feature)"


def _are_words(texts: "Series") -> bool:
    """True for texts without white space within."""
    from pandas.api.types import is_numeric_dtype

    return not is_numeric_dtype(texts) and not any(re.search(r"\s", text.strip()) for text in texts)


def exceeds_floats(column: "Series") -> bool:
    """True for whole numbers that may share their float64 with others."""
    from pandas.api.types import infer_dtype

    known = column.dropna()
    return infer_dtype(known) == "integer" and bool(known.max() > EXACT or known.min() < -EXACT)
