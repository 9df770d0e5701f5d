"""Tables of numbers and categories, CSV or Parquet, with one column to predict."""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclofocal.lab.data.errors import DamagedDataError, MissingDataError, did_you_mean, several
from cyclofocal.lab.data.images import Labels

if TYPE_CHECKING:
    from pandas import DataFrame, Series

SUFFIXES = (".csv", ".parquet")

MISSING = ["?"]
"""A missing value in a CSV, beside the empty field and what pandas takes for one: NA, None, null, ..."""

FEW_TEXTS, MOST_TEXTS = 30, 500
"""A column with more different texts than the first and than a tenth of its rows, or than the second, is free text."""

FEW_NUMBERS = 20
"""A numeric target with more different values, not whole or more than a tenth of the rows, is one for regression."""


@dataclass(frozen=True, eq=False)
class Table:
    """Rows to learn from, as they were read.

    Attributes:
        title: for people, such as "people.csv".
        features: float64 columns of numbers and object columns of texts; NaN is a missing value.
        labels: class per row.
        classes: their names, in label order.
    """

    title: str
    features: "DataFrame"
    labels: Labels
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows per class."""
        return tuple(np.bincount(self.labels, minlength=len(self.classes)).tolist())


def read_table(path: Path, target: str) -> Table:
    """A CSV (separated by commas, semicolons or tabs, with a line of names) or Parquet file, checked.

    Args:
        path: ends in .csv or .parquet.
        target: the column that holds the classes.

    Raises:
        MissingDataError: no such file, or no pyarrow to read Parquet with.
        DamagedDataError: empty, or not of the format that its name says.
        ValueError: no such column, or what :func:`checked` finds.
    """
    if not path.is_file():
        raise MissingDataError(f"{path}: no such file; a table is a .csv or .parquet file")
    frame = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    return checked(frame, target, str(path))


def checked(frame: "DataFrame", target: str, title: str) -> Table:
    """The table in a data frame; every column of numbers or of few texts.

    Raises:
        ValueError: two columns of one name, no such target, a target with missing values, of one class or continuous;
            a column that is all missing, free text, or neither numbers nor texts; an infinite value. Names the column.
    """
    from pandas import DataFrame

    frame.columns = [str(name) for name in frame.columns]
    if twice := sorted({name for name in frame.columns if list(frame.columns).count(name) > 1}):
        raise ValueError(f"{title}: more than one column is called {several(list(map(repr, twice)))}")
    if target not in frame.columns:
        raise ValueError(_no_such_target(target, list(frame.columns), title))
    if not len(frame):
        raise DamagedDataError(f"{title}: it has no row")
    labels, classes = _classes(frame[target], title)
    features = {name: _column(frame[name], title) for name in frame.columns if name != target}
    if not features:
        raise ValueError(f"{title}: it has no column but {target!r}, so nothing to predict it from")
    return Table(title, DataFrame(features), labels, classes)


def _read_csv(path: Path) -> "DataFrame":
    import pandas as pd

    try:
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline()
        if not header.strip():
            raise DamagedDataError(f"{path}: empty; its first line must name the columns")
        separator = max(",;\t", key=header.count)
        names = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str, skipinitialspace=True).iloc[0]
        frame = read_rows(path, sep=separator, na_values=MISSING)
    except (UnicodeDecodeError, pd.errors.ParserError) as error:
        raise DamagedDataError(f"{path}: not a CSV in UTF-8 ({error})") from error
    frame.columns = names.fillna("").str.strip()  # pandas has renamed a second column of the same name
    return frame


def read_rows(path: Path, **how: Any) -> "DataFrame":
    """What ``pandas.read_csv`` reads, every row to its end.

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


def _read_parquet(path: Path) -> "DataFrame":
    if find_spec("pyarrow") is None:
        raise MissingDataError(f"{path}: reading Parquet needs pyarrow. Install with: pip install pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        frame: DataFrame = parquet.read_table(path).to_pandas().reset_index(drop=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise DamagedDataError(f"{path}: not a readable Parquet file ({error})") from error
    return frame


def _no_such_target(target: str, columns: list[str], title: str) -> str:
    hint = did_you_mean(target, columns)
    return f"{title}: target is {target!r}; it must be one of the columns {several(columns)}.{hint}"


def _classes(column: "Series", title: str) -> tuple[Labels, tuple[str, ...]]:
    """Label of every row, and the classes' names: numbers in their order, texts in the alphabet's."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    name, absent = column.name, np.flatnonzero(column.isna())
    if len(absent):
        raise ValueError(f"{title}: target {name!r} has no value in {_rows(absent)}; remove them")
    is_number = is_numeric_dtype(column) and not is_bool_dtype(column)
    values = column.to_numpy(dtype="float64") if is_number else column.astype(str).str.strip().to_numpy(dtype=object)
    found, labels = np.unique(values, return_inverse=True)
    if is_number:
        _check_classes_not_numbers(found, len(column), f"{title}: target {name!r}")
    if len(found) < 2:
        raise ValueError(f"{title}: target {name!r} has one class, {found[0]!s}; there must be two or more")
    names = [str(int(value)) if is_number and value == int(value) else str(value) for value in found.tolist()]
    return labels.astype(np.int64), tuple(names)


def _check_classes_not_numbers(found: np.ndarray, rows: int, where: str) -> None:
    if not np.isfinite(found).all():
        raise ValueError(f"{where} is infinite in some rows; the target must be classes")
    whole = bool((found == np.rint(found)).all())
    if len(found) > FEW_NUMBERS and (not whole or len(found) > rows / 10):
        raise ValueError(
            f"{where} has {len(found)} different numbers in {rows} rows, from {found[0]:g} to {found[-1]:g}: a"
            " regression, it seems; the target must be classes"
        )


def _column(column: "Series", title: str) -> "Series":
    """The column as float64, or as texts."""
    from pandas.api.types import is_datetime64_any_dtype, is_numeric_dtype, is_timedelta64_dtype

    where = f"{title}: column {column.name!r}"
    if column.isna().all():
        raise ValueError(f"{where} has no value at all; drop it")
    if is_datetime64_any_dtype(column) or is_timedelta64_dtype(column):
        raise ValueError(f"{where} holds times; turn them into numbers, or drop it")
    if not is_numeric_dtype(column):
        texts = _as_texts(column)
        _check_few_texts(texts, where)
        return texts
    numbers = column.astype("float64") if not column.isna().any() else _with_nan(column)
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(infinite):
        raise ValueError(f"{where} is infinite in {_rows(infinite)}; leave what is missing empty")
    return numbers


def _with_nan(column: "Series") -> "Series":
    """Numbers with NaN for pandas' other ways to say missing."""
    from pandas import Series

    return Series(column.to_numpy(dtype="float64", na_value=np.nan), name=column.name)


def _as_texts(column: "Series") -> "Series":
    """Each different value is turned into a text once; NaN stays."""
    from pandas import Series, factorize

    codes, different = factorize(column)
    texts = np.array([*(str(value).strip() for value in different), np.nan], dtype=object)  # code -1 is the last
    return Series(texts[codes], name=column.name, dtype=object)


def _check_few_texts(column: "Series", where: str) -> None:
    from pandas import to_numeric

    different = column.nunique()
    if different <= FEW_TEXTS:
        return
    numbers = to_numeric(column, errors="coerce")
    broken = np.flatnonzero(numbers.isna() & column.notna())
    allowed = different <= min(len(column) / 10, MOST_TEXTS)
    if allowed and len(broken) >= len(column) / 10:
        return
    if len(broken) < len(column) / 2:
        raise ValueError(
            f"{where} holds numbers, but not in {_rows(broken)}, such as {column.iloc[broken[0]]!r}; leave what is"
            " missing empty, or drop the column"
        )
    raise ValueError(
        f"{where} has {different} different texts in {len(column)} rows, such as {column.dropna().iloc[0]!r}: free text"
        f" or a name, it seems; drop it, or encode it as numbers or as {FEW_TEXTS} categories at most"
    )


def _rows(positions: np.ndarray) -> str:
    """Some rows in words, as people count them."""
    return f"{len(positions)} of its rows (number {several((positions + 1).tolist())})"
