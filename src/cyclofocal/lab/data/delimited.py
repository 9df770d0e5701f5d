"""CSV files: separated by commas, semicolons, tabs or pipes, with a line of names."""

import csv
import re
import warnings
from collections.abc import Callable
from functools import partial
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclofocal.lab.data.config import TableData
from cyclofocal.lab.data.faults import Faults
from cyclofocal.lab.data.notation import has_decimal_point
from cyclofocal.lab.data.sheet import Sheet, check_columns, named, numbers_of, read_notations, without_unnamed
from cyclofocal.lab.messages import DamagedDataError, counted, preview

if TYPE_CHECKING:
    from pandas import DataFrame

MISSING_TEXTS = ["?"]
"""Missing values of a feature, in addition to the empty field and those that pandas knows: NA, None, null, ..."""

SEPARATORS = ",;\t|"

DECLARED = re.compile(r'"?sep=([^\s"]|\t)"?\s*', re.IGNORECASE)
"""First line of Excel, which names the separator."""


def read_csv(path: Path, target: str, faults: Faults, data: TableData, on_bad_text: str = "strict") -> Sheet:
    """Read the columns of a CSV file, and note faults; the target as text, or as numbers if each is written plainly.

    Raises:
        DamagedDataError: empty, mostly not in UTF-8, or all rows longer than the line of names.
        ValueError: two columns of one name.
    """
    from pandas.errors import ParserError

    try:
        return _read_columns(path, target, faults, data, on_bad_text)
    except UnicodeDecodeError as error:
        faults.add(not_utf8(path, error), DamagedDataError)
        wrong, count = _undecodable(path)
        if len(wrong) > count / 2:
            faults.refuse()
        return read_csv(path, target, faults, data, "replace")
    except (csv.Error, ParserError) as error:
        faults.add(f"not a CSV in UTF-8 ({error})", DamagedDataError)
        faults.refuse()
        raise


def _read_columns(path: Path, target: str, faults: Faults, data: TableData, on_bad_text: str) -> Sheet:
    from pandas.errors import ParserError

    separator, names, skipped = find_header(path, target, on_bad_text)
    kept = {target, *data.roles}
    check_columns(named(names, kept), target, faults, data)
    how = {"sep": separator, "skiprows": skipped, "header": 0, "names": list(range(len(names)))}
    rows: Callable[..., DataFrame] = partial(read_rows, path, **how, low_memory=False, encoding_errors=on_bad_text)
    try:
        frame = rows(na_values=MISSING_TEXTS)
    except (ParserError, DamagedDataError):
        rows = partial(rows, skiprows=_note_long_lines(path, faults, (separator, skipped, len(names)), on_bad_text))
        frame = rows(na_values=MISSING_TEXTS)
    # Read apart, as pandas takes NA and the like for missing in every column or in none.
    wanted = sorted({names.index(name) for name in kept if name in names} | {*frame.select_dtypes("number")})
    texts = rows(usecols=wanted, dtype=str, keep_default_na=False, na_values=[""])
    texts.columns = [names[column] for column in wanted]
    frame.columns = names
    apart = {name: texts.pop(name).str.strip() for name in data.roles if name in names and name != target}
    if target in names:
        frame[target] = texts.pop(target)
    sheet = without_unnamed(frame.drop(columns=list(apart)), kept)
    sheet.apart = apart
    texts = texts[[name for name in texts if name in sheet.frame]].where(frame.notna())
    if target in names:
        _read_target(sheet, target)
    _restore_zeros(sheet, texts)
    marks = read_notations(sheet, target, faults, separator == ",")
    if separator != ",":
        _check_points(texts[[name for name in texts if frame[name].dtype == "float64"]], faults, "," in marks)
    return sheet


def _note_long_lines(path: Path, faults: Faults, form: tuple[str, int, int], on_bad_text: str) -> list[int]:
    """Note the lines that have more values than there are names; returns lines to leave out, counted from 0.

    Args:
        path: file in which pandas found a fault, perhaps another.
        faults: faults of the file.
        form: separator, number of lines before the names, and number of names.
        on_bad_text: treatment of bytes that are not UTF-8.
    """
    long, count = _long_lines(path, *form, on_bad_text)
    if not long:
        return list(range(form[1]))
    number, values = next(iter(long.items()))
    lines = counted(len(long), "of its lines has", "of its lines have")
    said = f"{lines} more values than there are names of columns (number {preview(list(long))})"
    faults.add(f"{said}; line {number} has {values} values for {form[2]} names", DamagedDataError)
    if len(long) == count:
        faults.refuse()
    return [*range(form[1]), *(line - 1 for line in long)]


def _long_lines(path: Path, separator: str, skipped: int, width: int, on_bad_text: str) -> tuple[dict[int, int], int]:
    """Find the lines that have more values than there are names; returns values by line, and the number of rows."""
    with path.open(encoding="utf-8-sig", newline="", errors=on_bad_text) as file:
        rows = csv.reader(islice(file, skipped, None), delimiter=separator, skipinitialspace=True)
        next(rows, None)
        ends = [(skipped + rows.line_num, len(row)) for row in rows if row]
    return {line: length for line, length in ends if length > width}, len(ends)


def not_utf8(path: Path, error: UnicodeDecodeError) -> str:
    """Sentence on the lines of a CSV file that are not in UTF-8, with the remedy."""
    wrong, _ = _undecodable(path)
    return f"not a CSV in UTF-8 ({error}): {len(wrong)} of its lines (number {preview(wrong)}); save it as UTF-8"


def _undecodable(path: Path) -> tuple[list[int], int]:
    """Find the lines that are not in UTF-8; returns their numbers, and the number of all lines."""
    wrong, count = [], 0
    for count, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            line.decode()
        except UnicodeDecodeError:
            wrong.append(count)
    return wrong, count


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


def find_header(path: Path, target: str, on_bad_text: str = "strict") -> tuple[str, list[str], int]:
    """Find the separator, the names of the columns, and the number of lines before them.

    Args:
        path: path of a CSV file.
        target: name of a column that decides between separators.
        on_bad_text: treatment of bytes that are not UTF-8, as of ``open``.

    Raises:
        DamagedDataError, ValueError: no names of columns.
    """
    with path.open(encoding="utf-8-sig", newline="", errors=on_bad_text) as file:
        skipped, declared = 0, None
        for line in file:
            if line.strip() and (declared or not (declared := DECLARED.fullmatch(line))):
                break
            skipped += 1
    separators = declared[1] if declared else SEPARATORS
    names = {separator: _names(path, separator, skipped, on_bad_text) for separator in separators}
    separator = max(names, key=lambda separator: (target in names[separator], len(names[separator])))
    if not any(names[separator]):
        raise DamagedDataError(f"{path}: empty; its first line must name the columns")
    if target not in names[separator] and target in names[separator][0].split() and len(names[separator]) == 1:
        raise ValueError(f"{path}: its columns are separated by spaces, it seems; separate them by commas")
    return separator, names[separator], skipped


def _names(path: Path, separator: str, skipped: int, on_bad_text: str) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="", errors=on_bad_text) as file:
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


def _check_points(texts: "DataFrame", faults: Faults, has_commas: bool) -> None:
    """Refuse 1.234, which may be 1234, unless no column has a decimal comma and one has a decimal point."""
    if has_commas or not any(has_decimal_point(column.dropna().str.strip().unique()) for _, column in texts.items()):
        for name, column in texts.items():
            with faults.noted():
                numbers_of(column, False, f"{faults.title}: column {name!r}")
