"""Rows of new tables, a chunk at a time, in the columns and the notation of the training table."""

import csv
import itertools
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclofocal.lab.data.delimited import MISSING_TEXTS, find_header, not_utf8
from cyclofocal.lab.data.encoder import TableEncoder
from cyclofocal.lab.data.notation import number_of
from cyclofocal.lab.data.tables import SUFFIXES, as_texts
from cyclofocal.lab.messages import DamagedDataError, MissingDataError, did_you_mean, preview

if TYPE_CHECKING:
    from pandas import DataFrame, Series


def check_names(names: Sequence[str], encoder: TableEncoder, title: str) -> list[str]:
    """Refuse a table without a column of the training; names of the columns that are not used.

    Raises:
        ValueError: names the missing columns, and those that may be the same under another name.
    """
    spare = [name for name in names if name not in {*encoder.columns, *encoder.dropped, encoder.target}]
    if missing := [name for name in encoder.columns if name not in names]:
        hint = did_you_mean(missing[0], spare)
        raise ValueError(
            f"{title}: no column {preview(list(map(repr, missing)))}, which the model was trained on; its columns are"
            f" {preview(names)}.{hint}"
        )
    if twice := sorted({name for name in names if names.count(name) > 1 and name in encoder.columns}):
        raise ValueError(f"{title}: more than one column is called {preview(list(map(repr, twice)))}")
    return spare


def prepare(frame: "DataFrame", encoder: TableEncoder, title: str, first_row: int = 0) -> "DataFrame":
    """Columns of the training in their kinds: numbers as float64, categories and free text as texts, times as times.

    Rows are numbered from 0, whatever the index of the frame.

    Args:
        frame: rows with any values, as pandas reads them.
        encoder: encoder of the model.
        title: name of the table in messages.
        first_row: number of the first row in messages.

    Raises:
        ValueError: no row; or a column that is missing, or holds other values than in training; names it, a row and a
            value.
    """
    from pandas import DataFrame

    frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
    check_names(list(frame.columns), encoder, title)
    if not len(frame):
        raise ValueError(f"{title}: it has no row to predict")
    found: dict[str, Any] = {}
    for name in encoder.numbers:
        found[name] = _numbers(frame[name], encoder.decimals.get(name, ""), title, first_row)
    for name, texts in encoder.categories.items():
        found[name] = _categories(frame[name], texts).array
    for name, dtype in encoder.vectorized.items():
        column = as_texts(frame[name]) if dtype == "object" else _times(frame[name], dtype, title)
        _check_dates(column, _date_format(encoder, name), title, first_row)
        found[name] = column.array
    return DataFrame(found)


def names_of_columns(path: Path, encoder: TableEncoder) -> list[str]:
    """Names of the columns of a table.

    Raises:
        MissingDataError, DamagedDataError, ValueError: no such file, or not of the format that its name says.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: the model was trained on a table; give one, which ends in {' or '.join(SUFFIXES)}")
    if not path.is_file():
        raise MissingDataError(f"{path}: no such file; a table is a .csv or .parquet file")
    if path.suffix.lower() == ".parquet":
        return _parquet_file(path).schema_arrow.names
    try:
        return find_header(path, encoder.columns[0])[1]
    except UnicodeDecodeError as error:
        raise DamagedDataError(f"{path}: {not_utf8(path, error)}") from None


def read_chunks(path: Path, encoder: TableEncoder, rows: int, further: Sequence[str] = ()) -> Iterator["DataFrame"]:
    """Rows of a table as they are in the file, a number of rows at a time.

    Args:
        path: .csv or .parquet file.
        encoder: encoder of the model, which says how columns are read.
        rows: number of rows of a chunk.
        further: names of further columns to read.

    Raises:
        DamagedDataError: a line with more values than there are names, or another format.
    """
    wanted = [*encoder.columns, *(name for name in further if name not in encoder.columns)]
    if path.suffix.lower() == ".parquet":
        return _parquet_chunks(path, wanted, rows)
    return _csv_chunks(path, encoder, wanted, rows)


def labels_of(frame: "DataFrame", encoder: TableEncoder, classes: Sequence[str], title: str) -> np.ndarray:
    """Class indices of rows, -1 without a value.

    Raises:
        ValueError: a class that the model does not know.
    """
    from pandas import Index

    texts = _categories(frame[encoder.target], list(classes)).map(lambda text: _class_name(text, classes))
    labels = Index(classes, dtype=object).get_indexer(texts.astype(object))
    strange = sorted(set(texts[(labels < 0) & texts.notna().to_numpy()]))
    if strange:
        raise ValueError(
            f"{title}: column {encoder.target!r} holds {preview(list(map(repr, strange)))}, which the model does not"
            f" know; its classes are {preview(classes)}. Correct the values, or remove the column"
        )
    return labels


def _csv_chunks(path: Path, encoder: TableEncoder, wanted: Sequence[str], rows: int) -> Iterator["DataFrame"]:
    import pandas as pd

    separator, names, skipped = find_header(path, encoder.columns[0])
    if _is_empty(path, skipped):
        raise DamagedDataError(f"{path}: it has no row to predict")
    places = {names.index(name): name for name in wanted}
    as_text = {place for place, name in places.items() if name not in encoder.numbers or name in encoder.decimals}
    read = partial(pd.read_csv, path, sep=separator, skiprows=skipped, header=0, names=list(range(len(names))))
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            reader = read(
                usecols=sorted(places),
                dtype=dict.fromkeys(as_text, str),
                na_values=MISSING_TEXTS,
                skipinitialspace=True,
                index_col=False,
                low_memory=False,
                chunksize=rows,
            )
            with reader:
                for frame in reader:
                    yield frame.rename(columns=places)
        except UnicodeDecodeError as error:
            raise DamagedDataError(f"{path}: {not_utf8(path, error)}") from error
        except (csv.Error, pd.errors.ParserError, pd.errors.ParserWarning) as error:
            raise DamagedDataError(f"{path}: not a CSV, or a row has too many values ({error})") from error


def _is_empty(path: Path, skipped: int) -> bool:
    """True if nothing follows the names of the columns."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return not any(line.strip() for line in itertools.islice(file, skipped + 1, None))


def _parquet_chunks(path: Path, wanted: Sequence[str], rows: int) -> Iterator["DataFrame"]:
    first = 0
    for batch in _parquet_file(path).iter_batches(batch_size=rows, columns=list(wanted)):
        frame = batch.to_pandas(ignore_metadata=True)  # a named index is a column, as in training
        frame.index += first
        first += len(frame)
        yield frame


def _parquet_file(path: Path) -> Any:
    if find_spec("pyarrow") is None:
        raise MissingDataError(f"{path}: reading Parquet needs pyarrow. Install with: pip install pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DamagedDataError(f"{path}: not a readable Parquet file ({error})") from error


def _numbers(column: "Series", decimal: str, title: str, first_row: int) -> np.ndarray:
    """Numbers of a column; those that are texts are read in the notation of the training table, "" if it had none."""
    from pandas import factorize
    from pandas.api.types import is_numeric_dtype

    if is_numeric_dtype(column):
        found = column.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        codes, different = factorize(column)
        found = np.array([*(_number(value, decimal) for value in different), np.nan])[codes]
        wrong = np.isnan(found) & column.notna().to_numpy()
        for row in np.flatnonzero(wrong):
            if _number(column.iloc[row], decimal, wrong=None) is None:
                mark = "comma" if decimal == "," else "point"
                raise ValueError(
                    f"{title}: column {column.name!r} must hold numbers with a decimal {mark}, as in training; row"
                    f" {first_row + row} has {str(column.iloc[row])[:60]!r}"
                )
    if len(infinite := np.flatnonzero(np.isinf(found))):
        raise ValueError(f"{title}: column {column.name!r} is infinite in row {first_row + infinite[0]}")
    return found


def _number(value: Any, decimal: str, wrong: float | None = np.nan) -> float | None:
    """Number of a value, ``wrong`` if it is none."""
    if isinstance(value, str):
        found = number_of(value.strip(), decimal or ".")
        return wrong if found is None or (not decimal and "," in value) else found
    try:
        return float(value)
    except (TypeError, ValueError):
        return wrong


def _categories(column: "Series", known: Sequence[str | None]) -> "Series":
    """Texts of a column; whole numbers and booleans in the spelling of the training table."""
    from pandas.api.types import is_float_dtype

    if is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64").astype(object)
    texts = as_texts(column)
    if {text for text in known if text is not None} <= {"True", "False"}:
        return texts.replace({text: text.capitalize() for text in ("true", "false", "TRUE", "FALSE")})
    return texts


def _class_name(text: Any, classes: Sequence[str]) -> Any:
    """Name of a class that is a whole number, written as 1.0 or 1."""
    if isinstance(text, str) and text not in classes and (number := number_of(text, ".")) is not None:
        return f"{number:.0f}" if number % 1 == 0 else text
    return text


def _date_format(encoder: TableEncoder, name: str) -> str:
    """Format in which the texts of a column were read as dates in training; "" of another column."""
    steps = encoder.vectorizer.all_processing_steps_.get(name, [])
    return next((step.format_ or "" for step in steps if type(step).__name__ == "ToDatetime"), "")


def _check_dates(column: "Series", form: str, title: str, first_row: int) -> None:
    """Refuse a text that is no date of the training's format; the encoder would take it for a missing value."""
    from pandas import to_datetime

    if not form or column.dtype != "object":
        return
    wrong = np.flatnonzero((to_datetime(column, format=form, errors="coerce").isna() & column.notna()).to_numpy())
    if len(wrong):
        raise ValueError(
            f"{title}: column {column.name!r} holds {column.iloc[wrong[0]]!r} in row {first_row + wrong[0]}, which is"
            f" no date as in training ({form}); correct it, or leave it empty if it is not known"
        )


def _times(column: "Series", dtype: str, title: str) -> "Series":
    """Times or durations in the dtype of the training table."""
    try:
        return column.astype(dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{title}: column {column.name!r} must hold times, as in training ({error})") from None
