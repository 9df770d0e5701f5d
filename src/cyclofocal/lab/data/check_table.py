"""Check a table: columns that give the answer away, rows that are there twice, and a page on all of it."""

from dataclasses import dataclass, field

import numpy as np

from cyclofocal.lab.data.config import TableData
from cyclofocal.lab.data.dataset import DataSet, Samples
from cyclofocal.lab.data.preprocess import split_table
from cyclofocal.lab.data.tables import Table
from cyclofocal.lab.metrics import one_against_rest

LEAK = 0.999
"""Smallest AUROC of a single column, on rows that it was not fitted on, that is taken for a leak."""

LEAK_FOLDS = 5
"""Number of folds of this check, and of the rows that a class needs for it."""

LEAK_ROWS = 2000
"""Largest number of rows that this check draws."""

LEAK_LEAVES = 256
"""Largest number of leaves of the tree of a column."""

LISTED_CLASSES = 20
"""Largest number of classes that a page lists."""


class LeakWarning(UserWarning):
    """Warning of a column that predicts the target alone."""


@dataclass(frozen=True)
class TableReport:
    """Page on a table.

    Attributes:
        title: name of the table.
        target: column of the classes; "" if the file names it.
        counts: rows by class.
        columns: by column of the file, its encoding or why it is no feature.
        missing: rows without a value, by column.
        notes: sentences on dropped and converted columns, and on features that may be identifiers.
        leaks: AUROC of the columns that predict the target alone.
        copies: sentences on equal rows.
    """

    title: str
    target: str
    counts: dict[str, int]
    columns: dict[str, str]
    missing: dict[str, int]
    notes: tuple[str, ...] = ()
    leaks: dict[str, float] = field(default_factory=dict)
    copies: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows, listed = sum(self.counts.values()), sorted(self.counts.items(), key=lambda pair: -pair[1])
        more = f" and {len(listed) - LISTED_CLASSES} more" if len(listed) > LISTED_CLASSES else ""
        sizes = ", ".join(f"{name} {count:,}" for name, count in listed[:LISTED_CLASSES])
        width, target = max(map(len, self.columns)), f" and the target {self.target}" if self.target else ""
        lines = [
            f"{self.title}: {rows:,} rows, {len(self.columns)} columns{target}",
            f"{len(listed)} classes, the largest {listed[0][1] / listed[-1][1]:.1f} times the smallest: {sizes}{more}",
            "columns:",
            *(f"  {name:{width}}  {how}{self._missing(name, rows)}" for name, how in self.columns.items()),
        ]
        remarks = [*self.notes, *(leak_sentence(self.title, *leak) for leak in self.leaks.items()), *self.copies]
        return "\n".join([*lines, *(remarks or ["no identifier, constant, leak or copy found"])])

    def _missing(self, name: str, rows: int) -> str:
        count = self.missing.get(name, 0)
        return f"; {count:,} missing ({100 * count / rows:.1f} %)" if count else ""


def check_table(table: Table, data: TableData) -> TableReport:
    """Describe a table as a training run with seed 0 sees it.

    Args:
        table: all rows.
        data: target, split, and columns that are no features.

    Raises:
        MissingDataError, ValueError: as :func:`~cyclofocal.lab.data.preprocess.split_table` raises them.
    """
    split = split_table(table, data)
    return TableReport(
        table.title,
        data.target,
        dict(zip(table.classes, table.counts, strict=True)),
        split.columns,
        {**{str(name): int(count) for name, count in table.features.isna().sum().items()}, **table.missing},
        (*table.notes, *possible_identifiers(table)),
        find_leaks(table),
        (*repeated_rows(table), *shared_rows(split)),
    )


def find_leaks(table: Table) -> dict[str, float]:
    """Find the columns that predict the target alone; returns their mean one-against-rest AUROC.

    A decision tree of one column is fitted to four fifths of the rows and judged by the others, five times. Of larger
    tables 2,000 rows are drawn. Classes of fewer than five rows are left out.
    """
    rng = np.random.default_rng(0)
    drawn = np.sort(rng.permutation(len(table))[:LEAK_ROWS])
    counts = np.bincount(table.labels[drawn], minlength=len(table.classes))
    drawn = drawn[counts[table.labels[drawn]] >= LEAK_FOLDS]
    classes, labels = np.unique(table.labels[drawn], return_inverse=True)
    if len(classes) < 2:
        return {}
    scores = {name: _auroc(_as_numbers(table, name)[drawn], labels) for name in table.features}
    return {name: score for name, score in scores.items() if score >= LEAK}


def _as_numbers(table: Table, name: str) -> np.ndarray:
    """Numbers in the order of the values of a column; NaN, or -1 for texts, is a missing one."""
    from pandas import factorize

    column = table.features[name]
    if column.dtype == "float64":
        return (column / max(1, column.abs().max())).to_numpy()  # in the range of float32, which a tree takes
    return factorize(column, sort=True)[0].astype("float64")


def _auroc(values: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    tree = DecisionTreeClassifier(max_leaf_nodes=LEAK_LEAVES, random_state=0)
    folds = StratifiedKFold(LEAK_FOLDS, shuffle=True, random_state=0)
    if np.isnan(values).all():
        return 0.0
    rows = values[:, None]
    fitted, held_out = next(folds.split(rows, labels))
    p = tree.fit(rows[fitted], labels[fitted]).predict_proba(rows[held_out])
    first = float(one_against_rest(p, labels[held_out]).mean(0)[0])
    if first < 1 - LEAK_FOLDS * (1 - LEAK) * 2:  # most columns, for a fifth of the time
        return first
    p = cross_val_predict(tree, rows, labels, cv=folds, method="predict_proba")
    return float(one_against_rest(p, labels).mean(0)[0])


def leak_sentence(title: str, name: str, auroc: float) -> str:
    """Warn of a column that predicts the target alone."""
    return (
        f"WARNING: {title}: column {name!r} alone predicts the target (AUROC {auroc:.4f} on held-out rows), so it may"
        f" hold the answer. If it is not known when a prediction is made, leave it out: --drop {name!r}. If it says"
        f" which rows belong together: --group {name!r}"
    )


def possible_identifiers(table: Table) -> list[str]:
    """Sentences on features that have another whole number in every row."""
    return [
        f"{table.title}: column {name!r} has another whole number in every row and is used as a feature; if it names"
        f" the rows, leave it out: --id {name!r}"
        for name, column in table.features.items()
        if column.dtype == "float64" and column.is_unique and (column % 1 == 0).all()
    ]


def repeated_rows(table: Table) -> list[str]:
    """Sentences on rows that equal an earlier one in all features."""
    from pandas import Series

    copies = table.features.duplicated()
    same_class = table.features.assign(**{_unused(table): Series(table.labels)}).duplicated()
    found = {
        "equal an earlier one in all features and the class": int(same_class.sum()),
        "equal an earlier one in all features, but are of another class": int((copies & ~same_class).sum()),
    }
    return [f"{table.title}: {count} of {len(table)} rows {what}" for what, count in found.items() if count]


def _unused(table: Table) -> str:
    """Name that no column has."""
    return "".join(map(str, table.features.columns)) + "class"


def shared_rows(data: DataSet) -> list[str]:
    """Sentences on validation and test rows that equal a training row in all encoded features and the class."""
    known = set(_rows_as_bytes(data.train))
    lines = []
    for name, part in data.splits.items():
        if part is None or part is data.train:
            continue
        if count := sum(row in known for row in _rows_as_bytes(part)):
            lines.append(
                f"{data.title}: {count} of {len(part)} {name} rows equal a training row in all features and the class"
                " (split of seed 0), so the result is too good if new rows will be others: remove the copies, or name"
                " the column of rows that belong together with --group"
            )
    return lines


def _rows_as_bytes(rows: Samples) -> list[bytes]:
    assert rows.inputs is not None
    content = np.concatenate([rows.inputs.numpy(), rows.labels[:, None].astype(np.float32)], axis=1)
    return [row.tobytes() for row in content]
