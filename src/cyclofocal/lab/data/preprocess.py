"""From a table to rows of numbers in three splits; everything that is fitted is fitted on the training rows alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cyclofocal.lab.data.config import TableData
from cyclofocal.lab.data.dataset import DataSet, Labels, Positions, Samples
from cyclofocal.lab.data.splits import draw_fraction
from cyclofocal.lab.data.tables import Table
from cyclofocal.lab.messages import several


def split_table(table: Table, data: TableData, seed: int = 0) -> DataSet:
    """Training, validation and test rows of one seed, every class in its share in each, prepared for a model.

    Args:
        table: all rows.
        data: how they are split. The test set is fold ``fold`` of a stratified cross-validation, or ``test_fraction``
            of every class; validation is ``validation_fraction`` of every class of the rest.
        seed: seed that shuffles the rows.

    Raises:
        ValueError: neither folds nor a test_fraction; a class with too few rows; names it.
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
    rows = Samples(table.labels, everything, table.title, prepare(table, train))
    return DataSet(
        table.title,
        table.classes,
        rows.select(train),
        rows.select(validation) if validation_fraction else None,
        rows.select(test),
    )


def prepare(table: Table, train: Positions) -> Tensor:
    """Rows as float32 (N, inputs), by statistics of the rows ``train`` alone.

    Numbers: missing ones become the median, with a column of its own that says so where any was missing; mean 0,
    standard deviation 1. Texts: one column per text of the training rows, "missing" being one; others are all 0.

    Raises:
        ValueError: numbers so large that they are infinite afterwards.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = table.features.select_dtypes("float64").columns
    texts = table.features.columns.difference(numbers, sort=False)
    impute = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    encode = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    transformer = ColumnTransformer(
        [("numbers", make_pipeline(impute, StandardScaler()), numbers), ("texts", encode, texts)]
    )
    with np.errstate(over="ignore", invalid="ignore"):
        transformer.fit(table.features.iloc[train])
        prepared = torch.from_numpy(np.asarray(transformer.transform(table.features), dtype=np.float32))
    if not prepared.isfinite().all():
        largest = table.features[numbers].abs().max().sort_values(ascending=False)
        raise ValueError(f"{table.title}: column {largest.index[0]!r} reaches {largest.iloc[0]:g}; rescale it")
    return prepared


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
    return several([f"{table.classes[c]!r} has {table.counts[c]}" for c in classes])
