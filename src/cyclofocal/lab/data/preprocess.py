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
from cyclofocal.lab.data.encoder import Scaling, TableEncoder, category_texts, fit_scaling
from cyclofocal.lab.data.splits import draw_fraction
from cyclofocal.lab.data.tables import Table
from cyclofocal.lab.messages import MissingDataError, preview

if TYPE_CHECKING:
    from pandas import DataFrame


def split_table(table: Table, data: TableData, seed: int = 0, test_too: bool = False) -> DataSet:
    """Split a table into training, validation and test rows, stratified by class, and encode them.

    Args:
        table: all rows.
        data: configuration of the split. The test set is fold ``fold`` of a stratified cross-validation, or
            ``test_fraction`` of every class; validation is ``validation_fraction`` of every class of the rest.
        seed: seed that shuffles the rows.
        test_too: add the test rows to the training rows.

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
    train = np.union1d(train, test) if test_too else train
    encoded = encode(table, train)
    rows = Samples(table.labels, everything, table.title, encoded.inputs)
    return DataSet(
        table.title,
        table.classes,
        rows.select(train),
        rows.select(validation) if validation_fraction else None,
        rows.select(test),
        encoded.columns,
        encoded.encoder,
    )


class Encoded(NamedTuple):
    """Rows as numbers.

    Attributes:
        inputs: float32 (N, features).
        columns: by column of the table, a description of how it is encoded.
        encoder: encoder that was fitted to the training rows.
    """

    inputs: Tensor
    columns: dict[str, str]
    encoder: TableEncoder


def encode(table: Table, train: Positions) -> Encoded:
    """Encode all rows by statistics of the rows ``train`` alone.

    * Numbers have mean 0 and standard deviation 1. Missing ones become the median, and a further column marks them.
    * Categories have one column per text of the training rows, "missing" being one; other texts are all 0.
    * Dates, durations and free text are encoded by skrub's ``TableVectorizer``, then treated as numbers.

    Raises:
        MissingDataError: a column of dates or free text, and skrub is not installed.
        ValueError: numbers so large that they are infinite afterwards.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        encoder = _fit(table, table.features.iloc[train])
        inputs = torch.from_numpy(encoder.transform(table.features))
    if not inputs.isfinite().all():
        largest = table.features[encoder.numbers].abs().max().sort_values(ascending=False)
        raise ValueError(f"{table.title}: column {largest.index[0]!r} reaches {largest.iloc[0]:g}; rescale it")
    found = _describe(encoder)
    columns = {name: found[name] for name in table.features} | dict.fromkeys(table.dropped, "dropped")
    return Encoded(inputs, columns, encoder)


def _fit(table: Table, rows: "DataFrame") -> TableEncoder:
    """Fit the encoder of a table to some of its rows."""
    numbers = list(rows.select_dtypes("float64").columns)
    categories = list(rows.columns.difference([*numbers, *table.vectorized], sort=False))
    vectorizer, scaling = None, Scaling([], [], [], [])
    if table.vectorized:
        vectorizer = _vectorizer(table)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # skrub's, of texts with few different parts
            scaling = fit_scaling(np.asarray(vectorizer.fit_transform(rows[list(table.vectorized)])))
    return TableEncoder(
        target=table.target,
        numbers=numbers,
        decimals=table.decimals,
        scaling=fit_scaling(rows[numbers].to_numpy()),
        categories={name: category_texts(rows[name]) for name in categories},
        vectorized={name: str(rows[name].dtype) for name in table.vectorized},
        vectorizer=vectorizer,
        vectorized_scaling=scaling,
        dropped=list(table.dropped),
    )


def column_summary(columns: Mapping[str, str]) -> str:
    """Summarise the encoding of columns in one line, as "age, income: number; town: 3 categories"."""
    names: dict[str, list[str]] = {}
    for name, how in columns.items():
        names.setdefault(how, []).append(name)
    return "; ".join(f"{preview(of_kind)}: {how}" for how, of_kind in names.items())


def _vectorizer(table: Table) -> Any:
    """Build skrub's encoder. It is not used for numbers, which it would round to float32 first."""
    if find_spec("skrub") is None:
        raise MissingDataError(
            f"{table.title}: column {table.vectorized[0]!r} holds dates or free text; encoding them needs skrub."
            " Install with: pip install skrub"
        )
    from skrub import StringEncoder, TableVectorizer

    text = StringEncoder(random_state=0)
    return TableVectorizer(cardinality_threshold=0, high_cardinality=text, drop_null_fraction=None)


def _describe(encoder: TableEncoder) -> dict[str, str]:
    """Describe the encoding of each column."""
    found = dict.fromkeys(encoder.numbers, "number")
    found |= {encoder.numbers[place]: "number, missing values marked" for place in encoder.scaling.marked}
    found |= {name: f"{len(texts)} categories" for name, texts in encoder.categories.items()}
    if (fitted := encoder.vectorizer) is not None:
        for name, kind in fitted.column_to_kind_.items():
            formats = [step.format_ for step in fitted.all_processing_steps_[name] if getattr(step, "format_", None)]
            found[name] = _KINDS[kind].format(
                size=len(fitted.input_to_outputs_[name]), format=f" ({formats[0]})" if formats else ""
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
