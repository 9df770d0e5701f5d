"""Parquet files."""

from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cyclofocal.lab.data.config import TableData
from cyclofocal.lab.data.faults import Faults
from cyclofocal.lab.data.sheet import Sheet, check_columns, read_notations, without_unnamed
from cyclofocal.lab.messages import DamagedDataError, MissingDataError

if TYPE_CHECKING:
    from pandas import DataFrame


def read_parquet(path: Path, target: str, faults: Faults, data: TableData) -> Sheet:
    """Read the columns of a Parquet file, and the named levels of its index, and note faults.

    Raises:
        MissingDataError: pyarrow is not installed.
        DamagedDataError: not such a file.
        ValueError: two columns of one name.
    """
    from pandas.api.types import infer_dtype

    if find_spec("pyarrow") is None:
        raise MissingDataError(f"{path}: reading Parquet needs pyarrow. Install with: pip install pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        frame = parquet.read_table(path).to_pandas()
    except (pyarrow.ArrowException, OSError) as error:
        raise DamagedDataError(f"{path}: not a readable Parquet file ({error})") from error
    sheet = _with_index(frame, (target, *data.roles))
    check_columns(list(sheet.frame.columns), target, faults, data)
    sheet.apart = {name: sheet.frame.pop(name) for name in data.roles if name in sheet.frame and name != target}
    for name, column in sheet.frame.items():
        if infer_dtype(column) == "decimal":
            sheet.convert(name, column if name == target else column.astype("float64"), "decimals are read as numbers")
    read_notations(sheet, target, faults, point_is_decimal=True)
    return sheet


def _with_index(frame: "DataFrame", kept: Collection[str]) -> Sheet:
    """Turn the named levels of the index into columns."""
    from pandas import RangeIndex

    index = frame.index
    named = [str(name) for name in index.names if name is not None]
    if unnamed := [level for level, name in enumerate(index.names) if name is None]:
        frame = frame.reset_index(unnamed, drop=True)
    if named:
        frame = frame.reset_index(allow_duplicates=True)
    frame.columns = [str(name) for name in frame.columns]
    sheet = without_unnamed(frame, kept)
    if unnamed and not isinstance(index, RangeIndex):
        sheet.notes[""] = "its index has no name, as row numbers have none: dropped; name it if it is a feature"
    for name in named:
        sheet.notes[name], sheet.changes[name] = f"its index {name!r} is read as a column", "index"
    return sheet
