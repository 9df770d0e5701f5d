"""CSV files: separated by commas, semicolons, tabs or pipes, with a line of names."""

import csv
import re
import warnings
from functools import partial
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclofocal.lab.data.notation import has_decimal_point
from cyclofocal.lab.data.sheet import Sheet, check_columns, named, numbers_of, read_notations, without_unnamed
from cyclofocal.lab.messages import DamagedDataError

if TYPE_CHECKING:
    from pandas import DataFrame

MISSING_TEXTS = ["?"]
"""Missing values of a feature, in addition to the empty field and those that pandas knows: NA, None, null, ..."""

SEPARATORS = ",;\t|"

DECLARED = re.compile(r'"?sep=([^\s"]|\t)"?\s*', re.IGNORECASE)
"""First line of Excel, which names the separator."""


def read_csv(path: Path, target: str) -> Sheet:
    """Read the columns of a CSV file; the target as text, or as numbers if every text is the plain form of one.

    Raises:
        DamagedDataError: empty, not in UTF-8, or with rows longer than the line of names.
        ValueError: no such target, two columns of one name, numbers in a notation that is not clear; names the column.
    """
    from pandas.errors import ParserError

    try:
        separator, names, skipped = find_header(path, target)
        check_columns(named(names, target), target, str(path))
        places, place = list(range(len(names))), names.index(target)
        rows = partial(read_rows, path, sep=separator, skiprows=skipped, header=0, names=places, low_memory=False)
        frame = rows(na_values=MISSING_TEXTS)
        # Read apart, as pandas takes NA and the like for missing in every column or in none.
        wanted = sorted({place, *frame.select_dtypes("number")})
        texts = rows(usecols=wanted, dtype=str, keep_default_na=False, na_values=[""])
        texts.columns = [names[column] for column in wanted]
        frame.columns = names
        frame[target] = texts.pop(target)
        sheet = without_unnamed(frame, target)
        texts = texts[[name for name in texts if name in sheet.frame]].where(frame.notna())
        _read_target(sheet, target)
        _restore_zeros(sheet, texts)
        marks = read_notations(sheet, target, str(path), separator == ",")
        if separator != ",":
            _check_points(texts[[name for name in texts if frame[name].dtype == "float64"]], str(path), "," in marks)
    except (UnicodeDecodeError, csv.Error, ParserError) as error:
        raise DamagedDataError(f"{path}: not a CSV in UTF-8 ({error})") from error
    return sheet


def read_rows(path: Path, **how: Any) -> "DataFrame":
    """Read rows by ``pandas.read_csv``, and refuse rows that it would cut.

    Raises:
        DamagedDataError: rows of more values than there are names; pandas drops them, or takes them for other names.
    """
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            frame: DataFrame = pd.read_csv(path, skipinitialspace=True, index_col=False, **how)
        except pd.errors.ParserWarning:
            raise DamagedDataError(f"{path}: its rows have more values than there are names of columns") from None
    return frame


def find_header(path: Path, target: str) -> tuple[str, list[str], int]:
    """Find the separator, the names of the columns, and the number of lines before them.

    Args:
        path: path of a CSV file.
        target: name of a column that decides between separators.

    Raises:
        DamagedDataError, ValueError: no names of columns.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        skipped, declared = 0, None
        for line in file:
            if line.strip() and (declared or not (declared := DECLARED.fullmatch(line))):
                break
            skipped += 1
    names = {separator: _names(path, separator, skipped) for separator in (declared[1] if declared else SEPARATORS)}
    separator = max(names, key=lambda separator: (target in names[separator], len(names[separator])))
    if not any(names[separator]):
        raise DamagedDataError(f"{path}: empty; its first line must name the columns")
    if target not in names[separator] and target in names[separator][0].split() and len(names[separator]) == 1:
        raise ValueError(f"{path}: its columns are separated by spaces, it seems; separate them by commas")
    return separator, names[separator], skipped


def _names(path: Path, separator: str, skipped: int) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(islice(file, skipped, None), delimiter=separator, skipinitialspace=True)
        return [name.strip() for name in next(rows, [])]


def _read_target(sheet: Sheet, target: str) -> None:
    """Replace texts by numbers if all are the plain form of one."""
    from pandas import Series, to_numeric

    texts = sheet.frame[target].str.strip()
    texts = texts.mask(texts == "")
    numbers = {text: _plain_number(text) for text in texts.dropna().unique()}
    if None not in numbers.values() and len(set(numbers.values())) == len(numbers):
        texts = Series([numbers.get(text, np.nan) for text in texts], dtype=object)
    elif to_numeric(Series(list(numbers)), errors="coerce").notna().all():
        sheet.changes[target] = "text"
    sheet.frame[target] = texts


def _plain_number(text: str) -> int | float | None:
    """Return the number that Python prints as ``text``; None if there is none."""
    kinds: tuple[type[int], type[float]] = (int, float)
    for kind in kinds:
        try:
            number = kind(text)
        except ValueError:
            continue
        if str(number) == text and (kind is int or isfinite(number)):
            return number
    return None


def _restore_zeros(sheet: Sheet, texts: "DataFrame") -> None:
    """Restore the texts of whole numbers with leading zeros, which are codes."""
    for name, column in texts.items():
        stripped = column.str.strip()
        known = stripped.dropna()
        padded = known[known.str.fullmatch("0[0-9]+")]
        if len(padded) and known.str.fullmatch("[0-9]+").all():
            sheet.frame[name] = stripped.astype(object)
            sheet.notes[name] = f"column {name!r}: texts, not numbers, for {padded.iloc[0]!r} begins with a zero"
            sheet.changes[name] = "text"


def _check_points(texts: "DataFrame", title: str, has_commas: bool) -> None:
    """Refuse 1.234, which may be 1234, unless no column has a decimal comma and one has a decimal point."""
    if has_commas or not any(has_decimal_point(column.dropna().str.strip().unique()) for _, column in texts.items()):
        for name, column in texts.items():
            numbers_of(column, False, f"{title}: column {name!r}")
