"""Encode a table as numbers and split it; all statistics are of the training rows alone."""

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cyclofocal.lab.data.config import TableData
from cyclofocal.lab.data.dataset import DataSet, Labels, Positions, Samples
from cyclofocal.lab.data.splits import draw_fraction
from cyclofocal.lab.data.tables import Table
from cyclofocal.lab.messages import MissingDataError, preview

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


def split_table(table: Table, data: TableData, seed: int = 0) -> DataSet:
    """Split a table into training, validation and test rows, stratified by class, and encode them.

    Args:
        table: all rows.
        data: configuration of the split. The test set is fold ``fold`` of a stratified cross-validation, or
            ``test_fraction`` of every class; validation is ``validation_fraction`` of every class of the rest.
        seed: seed that shuffles the rows.

    Raises:
        ValueError: neither folds nor a test_fraction, or a class with too few rows.
    """
    folds, validation_fraction = data.folds, data.validation_fraction
    if not folds and not data.test_fraction:
        raise ValueError(
            f"test_fraction is {data.test_fraction} for {table.title}; it must be between 0 and 1, or give folds"
        )
    _check_counts(table, max(folds, 3 if validation_fraction else 2), folds, validation_fraction)
    everything = np.arange(len(table))
    rng = np.random.default_rng((seed, data.fold))
    if folds:
        test = _fold(table.labels, seed, folds, data.fold)
    else:
        test = draw_fraction(table.labels, data.test_fraction, rng)
    train, validation = np.setdiff1d(everything, test), everything[:0]
    if validation_fraction:
        validation = train[draw_fraction(table.labels[train], validation_fraction, rng)]
        train = np.setdiff1d(train, validation)
    _check_kept(table, train, data)
    encoded = encode(table, train)
    rows = Samples(table.labels, everything, table.title, encoded.inputs)
    return DataSet(
        table.title,
        table.classes,
        rows.select(train),
        rows.select(validation) if validation_fraction else None,
        rows.select(test),
        encoded.columns,
    )


class Encoded(NamedTuple):
    """Rows as numbers.

    Attributes:
        inputs: float32 (N, features).
        columns: by column of the table, a description of how it is encoded.
    """

    inputs: Tensor
    columns: dict[str, str]


def encode(table: Table, train: Positions) -> Encoded:
    """Encode all rows by statistics of the rows ``train`` alone.

    * Numbers have mean 0 and standard deviation 1. Missing ones become the median, and a further column marks them.
    * Categories have one column per text of the training rows, "missing" being one; other texts are all 0.
    * Dates, durations and free text are encoded by skrub's ``TableVectorizer``, then treated as numbers.

    Raises:
        MissingDataError: a column of dates or free text, and skrub is not installed.
        ValueError: numbers so large that they are infinite afterwards.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import OneHotEncoder

    numbers = list(table.features.select_dtypes("float64").columns)
    categories = list(table.features.columns.difference([*numbers, *table.vectorized], sort=False))
    parts = [
        ("numbers", _scale(), numbers),
        ("categories", OneHotEncoder(handle_unknown="ignore", sparse_output=False), categories),
    ]
    if table.vectorized:
        parts.append(("vectorized", _vectorize(table), list(table.vectorized)))
    transformer = ColumnTransformer(parts)
    with np.errstate(over="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # skrub's, of texts with few different parts
        transformer.fit(table.features.iloc[train])
        inputs = torch.from_numpy(np.asarray(transformer.transform(table.features), dtype=np.float32))
    if not inputs.isfinite().all():
        largest = table.features[numbers].abs().max().sort_values(ascending=False)
        raise ValueError(f"{table.title}: column {largest.index[0]!r} reaches {largest.iloc[0]:g}; rescale it")
    found = _describe(transformer.named_transformers_, numbers, categories)
    return Encoded(inputs, {name: found[name] for name in table.features} | dict.fromkeys(table.dropped, "dropped"))


def column_summary(columns: Mapping[str, str]) -> str:
    """Summarise the encoding of columns in one line, as "age, income: number; town: 3 categories"."""
    names: dict[str, list[str]] = {}
    for name, how in columns.items():
        names.setdefault(how, []).append(name)
    return "; ".join(f"{preview(of_kind)}: {how}" for how, of_kind in names.items())


def _scale() -> "Pipeline":
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    impute = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    return make_pipeline(impute, StandardScaler())


def _vectorize(table: Table) -> "Pipeline":
    """Build skrub's encoder, with scaling. It is not used for numbers, which it would round to float32 first."""
    if find_spec("skrub") is None:
        raise MissingDataError(
            f"{table.title}: column {table.vectorized[0]!r} holds dates or free text; encoding them needs skrub."
            " Install with: pip install skrub"
        )
    from sklearn.pipeline import make_pipeline
    from skrub import StringEncoder, TableVectorizer

    text = StringEncoder(random_state=0)
    encoder = TableVectorizer(cardinality_threshold=0, high_cardinality=text, drop_null_fraction=None)
    return make_pipeline(encoder, *(step for _, step in _scale().steps))


def _describe(fitted: Mapping[str, Any], numbers: Sequence[str], categories: Sequence[str]) -> dict[str, str]:
    """Describe the encoding of each column."""
    found = dict.fromkeys(numbers, "number")
    if numbers and (indicator := fitted["numbers"][0].indicator_) is not None:
        found |= {numbers[place]: "number, missing values marked" for place in indicator.features_}
    if categories:
        encoder = fitted["categories"]
        found |= {n: f"{len(c)} categories" for n, c in zip(categories, encoder.categories_, strict=True)}
    if "vectorized" in fitted:
        encoder = fitted["vectorized"][0]
        for name, kind in encoder.column_to_kind_.items():
            formats = [step.format_ for step in encoder.all_processing_steps_[name] if getattr(step, "format_", None)]
            found[name] = _KINDS[kind].format(
                size=len(encoder.input_to_outputs_[name]), format=f" ({formats[0]})" if formats else ""
            )
    return found


_KINDS = {
    "numeric": "number",
    "datetime": "date{format}, as {size} numbers",
    "high_cardinality": "text, as {size} numbers",
}
"""Descriptions of skrub's kinds of columns."""


def _fold(labels: Labels, seed: int, folds: int, fold: int) -> Positions:
    from sklearn.model_selection import StratifiedKFold

    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels)
    return np.asarray(list(parts)[fold][1], dtype=np.intp)


def _check_counts(table: Table, least: int, folds: int, validation_fraction: float) -> None:
    small = [c for c, count in enumerate(table.counts) if count < least]
    if small:
        parts = f"{folds} folds" if folds else "a test part"
        more = " and a validation part" if validation_fraction else ""
        raise ValueError(
            f"{table.title}: {parts}{more} need {least} rows or more of every class, but {_few(table, small)}; join"
            " rare classes, remove them, or take fewer folds"
        )


def _check_kept(table: Table, train: Positions, data: TableData) -> None:
    emptied = np.setdiff1d(np.arange(len(table.classes)), table.labels[train])
    if len(emptied):
        raise ValueError(
            f"{table.title}: test_fraction {data.test_fraction} and validation_fraction {data.validation_fraction}"
            f" leave no row to train on of a class: {_few(table, emptied.tolist())}"
        )


def _few(table: Table, classes: Sequence[int]) -> str:
    return preview([f"{table.classes[c]!r} has {table.counts[c]}" for c in classes])
