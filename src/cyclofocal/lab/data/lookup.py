"""Find samples again by their positions or paths, to show them after training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cyclofocal.lab.data.config import DEFAULTS, PublishedData, TableData, TimmData, data_config
from cyclofocal.lab.data.dataset import Samples
from cyclofocal.lab.data.digits import all_digits
from cyclofocal.lab.data.load import load, load_table
from cyclofocal.lab.data.tables import Table
from cyclofocal.lab.messages import DamagedDataError, MissingDataError

MAX_COLUMNS = 40
"""Most columns of a row that are shown."""

LONGEST_VALUE = 60
"""Most characters of a value that are shown."""


class SampleLookup:
    """Test images of a data set, or rows of a table, by the ids of stored predictions.

    Args:
        stored: fields of a recipe, as records hold them.
        root: folder of data sets.

    Raises:
        MissingDataError: the data are not there, or only another library could read them.
        DamagedDataError: they are not those of the digest, or cannot be read.
        TypeError, ValueError: this version of the program does not read such data.
    """

    def __init__(self, stored: Mapping[str, Any], root: Path) -> None:
        given = {name: stored[name] for name in DEFAULTS if name in stored}
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        self.data = data_config(stored["source"], **given)
        self.category_ids: tuple[int, ...] = ()
        self.source = self._read(root)
        self._places: dict[Any, int] | None = None

    def _read(self, root: Path) -> Table | Samples:
        if isinstance(self.data, TimmData):
            raise MissingDataError(f"{self.data.source} is read by another library, which might download it")
        if isinstance(self.data, TableData):
            return load_table(self.data)
        if isinstance(self.data, PublishedData) and self.data.draws_test_set:
            return all_digits()
        data = load(self.data, root)
        self.category_ids = data.category_ids
        return data.test

    @property
    def columns(self) -> list[str]:
        """Names of the features of a table, at most :data:`MAX_COLUMNS`; empty for images."""
        return list(self.source.features)[:MAX_COLUMNS] if isinstance(self.source, Table) else []

    @property
    def n_hidden_columns(self) -> int:
        """Number of features of a table beyond :data:`MAX_COLUMNS`."""
        return max(0, self.source.features.shape[1] - MAX_COLUMNS) if isinstance(self.source, Table) else 0

    def check(self, ids: NDArray[Any], labels: NDArray[np.integer]) -> None:
        """Check that samples are there and of the classes that they had.

        Args:
            ids: (N,), positions or paths.
            labels: (N,).

        Raises:
            DamagedDataError: at least one is not.
        """
        places = np.array([self._place(sample) for sample in ids.tolist()])
        wrong = (places < 0) | (self.source.labels[places] != labels)
        if wrong.any():
            raise DamagedDataError(f"{self.source.title} has changed: {wrong.sum()} of {len(ids)} samples differ")

    def name(self, sample: int | str) -> str:
        """Name of a sample: its path, or such as "image 17" or "row P031"."""
        if isinstance(self.source, Samples):
            return self.source.name(self._place(sample)).removesuffix(f" of {self.source.title}")
        named = self.data.id_column if isinstance(self.data, TableData) else ""
        return f"row {self.source.apart[named][self._place(sample)] if named else sample}"

    def image(self, sample: int | str) -> Image.Image | None:
        """The image in mode L or RGB; None for a row of a table.

        Raises:
            UnreadableImageError: it cannot be decoded.
        """
        return self.source.image(self._place(sample)) if isinstance(self.source, Samples) else None

    def values(self, sample: int | str) -> list[str]:
        """Values of :attr:`columns` of a row as short texts, "" for missing ones; empty for an image."""
        if not isinstance(self.source, Table):
            return []
        row = self.source.features.iloc[self._place(sample)]
        return [_short(row[name]) for name in self.columns]

    def _place(self, sample: int | str) -> int:
        """Index of a sample in the source; -1 if it is not there."""
        if isinstance(self.source, Table):
            return sample if isinstance(sample, int) and 0 <= sample < len(self.source) else -1
        if self._places is None:
            self._places = _indices(self.source, isinstance(sample, str))
        return self._places.get(sample, -1)


def _indices(samples: Samples, by_name: bool) -> dict[Any, int]:
    keys: Sequence[Any] = (
        [samples.name(index) for index in range(len(samples))] if by_name else samples.positions.tolist()
    )
    return {key: index for index, key in enumerate(keys)}


def _short(value: Any) -> str:
    """A value as text, cut to :data:`LONGEST_VALUE` characters; numbers with six digits."""
    if value is None or value != value:  # NaN, and pandas' missing times
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
