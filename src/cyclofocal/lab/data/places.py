"""Where a data set may lie, and what to say when it does not."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from cyclofocal.lab.data.errors import MissingDataError


def first_with(names: Sequence[str], folders: Iterable[Path], data_set: str, remedy: str) -> Path:
    """The first of ``folders`` that has any of ``names``.

    Raises:
        MissingDataError: none has; says which folders were looked in, and the ``remedy``.
    """
    looked_in = list(folders)
    for folder in looked_in:
        if any((folder / name).exists() for name in names):
            return folder
    places = ", ".join(map(str, looked_in))
    raise MissingDataError(f"{data_set} is not there: no {' or '.join(names)} in {places}. To get it: {remedy}")
