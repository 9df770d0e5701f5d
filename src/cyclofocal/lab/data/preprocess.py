"""Encode a table as numbers and split it; all statistics are of the training rows alone."""

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cyclofocal.lab.data.config import ROLES, TableData
from cyclofocal.lab.data.dataset import DataSet, Labels, Positions, Samples
from cyclofocal.lab.data.encoder import Scaling, TableEncoder, category_texts, fit_scaling
from cyclofocal.lab.data.splits import draw_fraction, draw_whole_groups
from cyclofocal.lab.data.tables import Table, class_sizes, few_rows
from cyclofocal.lab.messages import MissingDataError, preview

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor


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
    if not data.folds and not data.test_fraction:
        raise ValueError(
            f"test_fraction is {data.test_fraction} for {table.title}; it must be between 0 and 1, or give folds"
        )
    if said := few_rows(table.labels, table.classes, data):
        raise ValueError(f"{table.title}: {said}")
    everything = np.arange(len(table))
    train, validation, test = _split_rows(table, data, seed)
    for part, drawn in {"train on": train, "validate on": validation, "test": test}.items():
        if len(drawn) or part != "validate on":
            _check_kept(table, drawn, data, part)
    train = np.union1d(train, test) if test_too else train
    encoded = encode(table, train)
    names = tuple(map(str, table.apart[data.id_column])) if data.id_column else None
    rows = Samples(table.labels, everything, table.title, encoded.inputs, names=names)
    return DataSet(
        table.title,
        table.classes,
        rows.select(train),
        rows.select(validation) if len(validation) else None,
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

    inputs: "Tensor"
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
    from torch import from_numpy

    with np.errstate(over="ignore", invalid="ignore"):
        encoder = _fit(table, table.features.iloc[train])
        inputs = from_numpy(encoder.transform(table.features))
    if not inputs.isfinite().all():
        largest = table.features[encoder.numbers].abs().max().sort_values(ascending=False)
        raise ValueError(f"{table.title}: column {largest.index[0]!r} reaches {largest.iloc[0]:g}; rescale it")
    found = _describe(encoder)
    columns = {name: found[name] for name in table.features} | dict(table.omitted)
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
        dropped=list(table.omitted),
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


def _split_rows(table: Table, data: TableData, seed: int) -> tuple[Positions, Positions, Positions]:
    """Draw the rows for training, validation and test."""
    everything = np.arange(len(table))
    if data.time_column:
        past, test = _latest(everything, table.apart[data.time_column], len(table) * data.test_fraction)
        wanted = len(past) * data.validation_fraction
        train, validation = _latest(past, table.apart[data.time_column], wanted) if wanted else (past, everything[:0])
        return train, validation, test
    rng = np.random.default_rng((seed, data.fold))
    groups = table.apart.get(data.group_column)

    def draw(rows: Positions, fraction: float) -> Positions:
        labels = table.labels[rows]
        return rows[
            draw_fraction(labels, fraction, rng)
            if groups is None
            else draw_whole_groups(labels, groups[rows], fraction, rng)
        ]

    test = _fold(table.labels, groups, data, seed) if data.folds else draw(everything, data.test_fraction)
    train, validation = np.setdiff1d(everything, test), everything[:0]
    if data.validation_fraction:
        validation = draw(train, data.validation_fraction)
    return np.setdiff1d(train, validation), validation, test


def _latest(rows: Positions, times: np.ndarray, wanted: float) -> tuple[Positions, Positions]:
    """Separate the latest of some rows, about ``wanted``, from those before; rows of one time stay together."""
    ordered = np.sort(times[rows])
    first = ordered[len(rows) - max(1, round(wanted))]
    return rows[times[rows] < first], rows[times[rows] >= first]


def _fold(labels: Labels, groups: Labels | None, data: TableData, seed: int) -> Positions:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    parts = kind(data.folds, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels, groups)
    return np.asarray(list(parts)[data.fold][1], dtype=np.intp)


def _check_kept(table: Table, rows: Positions, data: TableData, part: str) -> None:
    emptied = np.setdiff1d(np.arange(len(table.classes)), table.labels[rows])
    if len(emptied):
        sizes = {table.classes[c]: table.counts[c] for c in emptied.tolist()}
        by = "".join(
            f" by {ROLES[field]} {name!r}"
            for field in ("group_column", "time_column")
            if (name := getattr(data, field))
        )
        how = f"{data.folds} folds" if data.folds else f"test_fraction {data.test_fraction}"
        raise ValueError(
            f"{table.title}: {how} and validation_fraction {data.validation_fraction}{by} leave no row to {part} of a"
            f" class: {class_sizes(sizes)}"
        )
