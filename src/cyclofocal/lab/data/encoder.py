"""Encode rows of a table as numbers: fitted to the training rows, stored as JSON, applied to any rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pandas import DataFrame, Series

_Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Scaling:
    """Fill missing numbers, mark them, and scale; as :func:`fit_scaling` fits it.

    Attributes:
        medians: number in place of a missing one, per column.
        marked: places of the columns whose missing values get a further column of 0 and 1.
        mean, scale: subtrahend and divisor of every column, the further ones included.
    """

    medians: list[float]
    marked: list[int]
    mean: list[float]
    scale: list[float]

    def apply(self, numbers: _Floats) -> _Floats:
        """Scaled columns (N, columns + marked), in the dtype of ``numbers`` (N, columns)."""
        missing = np.isnan(numbers)
        filled = np.where(missing, np.asarray(self.medians, dtype=numbers.dtype), numbers)
        found = np.hstack([filled, missing[:, self.marked].astype(numbers.dtype)])
        found -= np.asarray(self.mean, dtype=numbers.dtype)
        found /= np.asarray(self.scale, dtype=numbers.dtype)
        return found


def fit_scaling(numbers: _Floats) -> Scaling:
    """Fit scikit-learn's ``SimpleImputer`` (median, with indicators) and ``StandardScaler``; the numbers they found."""
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import StandardScaler

    if not numbers.shape[1]:
        return Scaling([], [], [], [])
    impute = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    scaler = StandardScaler().fit(impute.fit_transform(numbers))
    marked = [] if impute.indicator_ is None else impute.indicator_.features_.tolist()
    return Scaling(impute.statistics_.tolist(), marked, scaler.mean_.tolist(), scaler.scale_.tolist())


@dataclass(frozen=True, eq=False)
class TableEncoder:
    """Encoding of the columns of a table, fitted to its training rows; :meth:`to_json` without the vectorizer.

    Attributes:
        target: name of the column of the classes, which is no feature.
        numbers: columns of numbers.
        decimals: by column, the decimal mark, for numbers that pandas alone does not read, such as "1.250,5".
        scaling: scaling of these columns.
        categories: by column, its texts in training; None stands for a missing value.
        vectorized: columns of dates, durations and free text, with their dtypes; "object" is text.
        vectorizer: skrub's fitted ``TableVectorizer`` of these columns; None without such.
        vectorized_scaling: scaling of its output.
        dropped: names of the columns of the file that are not features.
    """

    target: str
    numbers: list[str]
    decimals: dict[str, str]
    scaling: Scaling
    categories: dict[str, list[str | None]]
    vectorized: dict[str, str]
    vectorizer: Any
    vectorized_scaling: Scaling
    dropped: list[str]

    @property
    def columns(self) -> list[str]:
        """Names of all features, in the order of the encoding."""
        return [*self.numbers, *self.categories, *self.vectorized]

    def transform(self, features: "DataFrame") -> NDArray[np.float32]:
        """Encoded rows, (N, inputs); numbers that exceed float32 are infinite.

        Args:
            features: columns of float64, of texts, and of what the vectorizer was fitted to; NaN is a missing value.
        """
        parts: list[_Floats] = [self.scaling.apply(features[self.numbers].to_numpy(dtype=np.float64))]
        parts += [_one_hot(features[name], texts) for name, texts in self.categories.items()]
        if self.vectorized:
            parts.append(self.vectorized_scaling.apply(vectorize(self.vectorizer, features[list(self.vectorized)])))
        with np.errstate(over="ignore", invalid="ignore"):
            return np.hstack([part.astype(np.float32) for part in parts])

    def unknown(self, features: "DataFrame") -> dict[str, list[str]]:
        """By column, texts that do not occur in training; they are encoded as zeros."""
        found = {
            name: sorted(set(features[name].dropna().unique()) - set(texts)) for name, texts in self.categories.items()
        }
        return {name: texts for name, texts in found.items() if texts}

    def newly_missing(self, features: "DataFrame") -> dict[str, int]:
        """Number of missing values by column, for columns of numbers or categories that lacked none in training.

        Such a number is encoded as the median of the training rows, such a text as none of the categories.
        """
        complete = [name for place, name in enumerate(self.numbers) if place not in self.scaling.marked]
        complete += [name for name, texts in self.categories.items() if None not in texts]
        return {name: count for name in complete if (count := int(features[name].isna().sum()))}

    def to_json(self) -> dict[str, Any]:
        """All but the vectorizer."""
        content = {name: value for name, value in vars(self).items() if name != "vectorizer"}
        return content | {name: vars(content[name]) for name in ("scaling", "vectorized_scaling")}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], vectorizer: Any) -> "TableEncoder":
        """Build the encoder of :meth:`to_json`."""
        scalings = {name: Scaling(**content[name]) for name in ("scaling", "vectorized_scaling")}
        return cls(**{**content, **scalings, "vectorizer": vectorizer})


def vectorize(vectorizer: Any, features: "DataFrame") -> _Floats:
    """Output of skrub's vectorizer."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of texts with few different parts
        return np.asarray(vectorizer.transform(features))


def category_texts(column: "Series") -> list[str | None]:
    """Texts of a column in alphabetical order; None at the end if a value is missing."""
    texts: list[str | None] = sorted(column.dropna().unique())
    return [*texts, None] if column.isna().any() else texts


def _one_hot(column: "Series", texts: Sequence[str | None]) -> _Floats:
    """A column of 0 and 1 per text; all 0 for others."""
    from pandas import Index

    known = [text for text in texts if text is not None]
    codes = Index(known, dtype=object).get_indexer(column.astype(object))
    codes[column.isna().to_numpy()] = len(known) if len(known) < len(texts) else -1
    return (codes[:, None] == np.arange(len(texts))).astype(np.float64)
