"""Group records into experiments and note their inconsistencies."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cyclofocal.lab.longtail import rarer_class
from cyclofocal.lab.metrics import Metric, metrics_of
from cyclofocal.lab.recipes.loss import ESTIMATORS, LIGHTGBM, LossSettings
from cyclofocal.lab.recipes.recipe import FLAT_DEFAULTS
from cyclofocal.lab.records import RunRecord

NOT_THE_RECIPE = ("fold",)
"""Fields of a recipe that differ within an experiment."""

DECIMALS = 11
"""Decimals of values and differences, few enough to remove rounding errors."""

Values = dict[int, dict[int, float]]
"""Values by seed and fold."""


def _defaults(kind: type) -> dict[str, Any]:
    """Default of each field, as JSON stores it."""
    return {entry.name: entry.default for entry in fields(kind) if entry.default is not MISSING}


RECIPE_DEFAULTS, LOSS_DEFAULTS = FLAT_DEFAULTS, _defaults(LossSettings)


@dataclass(frozen=True)
class Experiment:
    """Runs of one recipe.

    Attributes:
        recipe: its fields, without the fold.
        title: unique among the experiments.
        runs: by name of the loss, in order of seed and fold, each of which occurs once.
        titles: titles of the losses and references by name.
        notes: inconsistencies of these runs, as sentences.
        references: runs of the models that were fitted in place of a network, as ``runs``; where there is no loss they
            are its runs, and compared as losses are.
    """

    recipe: dict[str, Any]
    title: str
    runs: dict[str, list[RunRecord]]
    titles: dict[str, str]
    notes: tuple[str, ...]
    references: dict[str, list[RunRecord]] = field(default_factory=dict)

    def values(self, name: str, metric: Metric, adjusted: bool = False) -> Values:
        """Values of the runs of a loss or reference, in the metric's unit (per cent for percentages).

        Missing ones are left out. With ``adjusted`` those of its logits less the class prior.
        """
        scale, found = 100 if metric.percent else 1, Values()
        for run in (self.runs | self.references)[name]:
            number = (run.adjusted if adjusted else run.metrics).get(metric.key)
            if number is not None and math.isfinite(number):
                found.setdefault(run.seed, {})[fold_of(run)] = round(scale * number, DECIMALS)
        return found

    @property
    def first(self) -> RunRecord:
        """First run of the first loss."""
        return next(iter(self.runs.values()))[0]

    @property
    def boxes(self) -> bool:
        """True for detections of boxes, False for classes."""
        return self.first.is_detection

    @property
    def of_class(self) -> str:
        """Name of the result of each class, an accuracy or an average precision."""
        return "average precision" if self.boxes else "accuracy"

    @property
    def classes(self) -> list[str]:
        """Names of the classes; their numbers if the records do not contain names."""
        return self.first.classes or [str(c) for c in range(len(self.first.train_counts))]

    @cached_property
    def rarer(self) -> str:
        """Name of the rarer of two classes in training; "" for three or more classes."""
        if len(self.first.train_counts) != 2 or self.boxes:
            return ""
        found = {rarer_class(run.train_counts) for runs in self.runs.values() for run in runs}
        return self.classes[found.pop()] if len(found) == 1 else "the rarer class"

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """Metrics in the order of tables; see :func:`~cyclofocal.lab.metrics.metrics_of`."""
        return metrics_of(self.rarer, self.boxes)

    @cached_property
    def class_accuracy(self) -> dict[str, NDArray[np.float64]]:
        """Accuracy, or average precision, of every class by loss, (runs, C), in per cent.

        Losses that lack it in a record are left out.
        """
        found = {name: by_run(members, lambda run: run.per_class) for name, members in self.runs.items()}
        return {name: 100 * runs for name, runs in found.items() if runs.size}

    @cached_property
    def confusion(self) -> dict[str, NDArray[np.float64]]:
        """Confusion matrix by loss, (C, C), mean over seeds of the sum over folds, for losses that have it."""
        return {
            name: np.sum([run.confusion for run in members], axis=0) / len({run.seed for run in members})
            for name, members in self.runs.items()
            if all(run.confusion for run in members)
        }

    @cached_property
    def class_precision(self) -> dict[str, NDArray[np.float64]]:
        """Precision of every class by loss, (seeds, C), in per cent, for losses with confusion matrices in all records.

        Folds are pooled; a class that is never predicted has 0.
        """
        found = {}
        for name in self.confusion:
            by_seed: dict[int, Any] = {}
            for run in self.runs[name]:
                by_seed[run.seed] = by_seed.get(run.seed, 0) + np.array(run.confusion, dtype=np.float64)
            found[name] = np.array([100 * m.diagonal() / np.maximum(m.sum(0), 1) for m in by_seed.values()])
        return found

    @cached_property
    def folds(self) -> int:
        """Number of test folds per seed; 1 for a single test set."""
        return max(1, len({fold_of(run) for runs in self.runs.values() for run in runs}))

    @cached_property
    def overlap(self) -> float:
        """Test samples per training sample of a fold; 0 without folds, for runs do not share samples by them then."""
        if self.folds == 1:
            return 0.0
        first = self.first
        if first.test_counts:
            return sum(first.test_counts) / sum(first.train_counts)
        return 1 / ((self.folds - 1) * (1 - self.recipe.get("validation_fraction", 0.0)))


def by_run(runs: Sequence[RunRecord], values: Callable[[RunRecord], list[float]]) -> NDArray[np.float64]:
    """Values by run, (runs, values); empty if any run lacks them."""
    rows = [values(run) for run in runs]
    length = min(map(len, rows))
    return np.array([row[:length] for row in rows], dtype=np.float64)


def uses(record: RunRecord, package: str) -> bool:
    """False for LightGBM and a run without it, whose record leaves its version out."""
    return package != LIGHTGBM.estimator or record.loss.get("estimator") == LIGHTGBM.estimator


def fold_of(record: RunRecord) -> int:
    """Fold of a run; 0 without cross-validation."""
    return record.recipe.get("fold", 0)


def group_experiments(records: Sequence[RunRecord]) -> list[Experiment]:
    """Group records into experiments, in order of first appearance."""
    grouped: dict[str, list[RunRecord]] = {}
    known: dict[tuple[str, int], tuple[dict[str, Any], str]] = {}  # equal recipes come in sequence; comparing is faster
    for record in records:
        kind = record.recipe["name"], fold_of(record)
        if kind not in known or known[kind][0] != record.recipe:
            known[kind] = record.recipe, _key(record.recipe)
        grouped.setdefault(known[kind][1], []).append(record)
    recipes = [json.loads(key) for key in grouped]
    return [
        _experiment(recipe, title, members)
        for recipe, title, members in zip(recipes, _titles(recipes), grouped.values(), strict=True)
    ]


def _key(recipe: dict[str, Any]) -> str:
    content = {name: value for name, value in {**RECIPE_DEFAULTS, **recipe}.items() if name not in NOT_THE_RECIPE}
    return json.dumps(content, sort_keys=True)


def _titles(recipes: Sequence[dict[str, Any]]) -> list[str]:
    """Titles of recipes, with the differing fields if titles are equal."""
    titles = [recipe["title"] for recipe in recipes]
    return [
        title if titles.count(title) == 1 else f"{title} ({_differing_fields(recipe, recipes)})"
        for title, recipe in zip(titles, recipes, strict=True)
    ]


def _differing_fields(recipe: dict[str, Any], recipes: Sequence[dict[str, Any]]) -> str:
    others = [other for other in recipes if other["title"] == recipe["title"]]
    differ = [name for name in recipe if any(other.get(name) != recipe[name] for other in others)]
    return ", ".join(f"{name} {recipe[name]}" for name in differ)


def _experiment(recipe: dict[str, Any], title: str, records: Sequence[RunRecord]) -> Experiment:
    alike = [record for record in records if len(record.train_counts) == len(records[0].train_counts)]
    others, records = len(records) - len(alike), _split_versions(alike)
    runs: dict[str, dict[tuple[int, int], RunRecord]] = {}
    doubles: dict[str, list[tuple[int, int]]] = {}
    for record in records:
        name, cell = record.loss["name"], (record.seed, fold_of(record))
        if cell in runs.setdefault(name, {}):
            doubles.setdefault(name, []).append(cell)
        else:
            runs[name][cell] = record
    ordered = {name: [cells[cell] for cell in sorted(cells)] for name, cells in runs.items()}
    titles = {name: members[0].loss["title"] for name, members in ordered.items()}
    shown = {name: t if list(titles.values()).count(t) == 1 else f"{t} ({name})" for name, t in titles.items()}
    notes = [f"{shown[name]}: {_cells(cells)} twice; the first is used." for name, cells in doubles.items()]
    if others:
        notes.append(f"Runs with another number of classes than the first run, left out: {others}.")
    losses = {name: members for name, members in ordered.items() if not members[0].is_reference} or ordered
    references = {name: ordered[name] for name in sorted(ordered.keys() - losses.keys(), key=_reference_order)}
    found = Experiment(recipe, title, losses, shown, (), references)
    notes += [*_mixed(losses, shown), *_mixed(references, shown)]
    notes += [*_missing(found), *_folds(ordered, shown), *_never_focal(losses, shown)]
    return replace(found, notes=tuple(dict.fromkeys(notes)))


def _reference_order(name: str) -> tuple[int, str]:
    """Place of a reference among the known ones, later versions' last."""
    known = [entry.name for entry in ESTIMATORS]
    return known.index(name) if name in known else len(known), name


def _split_versions(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Rename custom losses that were edited between runs, so that each version is a separate loss."""
    digests: dict[str, set[str]] = {}
    for record in records:
        digests.setdefault(record.loss["name"], set()).add(record.loss.get("digest", ""))
    return [_by_digest(r) if len(digests[r.loss["name"]]) > 1 else r for r in records]


def _by_digest(record: RunRecord) -> RunRecord:
    name, title, digest = (record.loss.get(key, "") for key in ("name", "title", "digest"))
    renamed = {"name": f"{name}@{digest[:6]}", "title": f"{title}, SHA-256 {digest[:6]}..."}
    return replace(record, loss=record.loss | renamed)


def _cells(cells: Sequence[tuple[int, int]]) -> str:
    """Seeds, with folds under cross-validation, as text."""
    folds = any(fold for _, fold in cells)
    named = [f"{seed}.{fold}" if folds else f"{seed}" for seed, fold in sorted(set(cells))]
    some = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
    return f"{'seed.fold' if folds else 'seed'}{'s' if len(named) > 1 else ''} {some}"


def _mixed(runs: dict[str, list[RunRecord]], titles: dict[str, str]) -> list[str]:
    """Notes on versions, devices and settings that differ between runs."""
    every = [record for members in runs.values() for record in members]
    notes = []
    packages = dict.fromkeys(package for record in every for package in record.versions)
    for package in packages:
        found = sorted({record.versions.get(package, "not recorded") for record in every if uses(record, package)})
        if len(found) > 1:
            notes.append(f"Runs of different versions of {package}: {', '.join(found)}.")
    for what, found in (
        ("devices", sorted({record.device for record in every})),
        ("systems", sorted({record.system or "not recorded" for record in every})),
        ("evaluated weights", sorted({record.weights for record in every})),
    ):
        if len(found) > 1:
            notes.append(f"Runs with different {what}: {'; '.join(found)}.")
    for name, members in runs.items():
        kinds = {str({**LOSS_DEFAULTS, **record.loss}) for record in members}
        if len(kinds) > 1 and not members[0].loss.get("trials"):
            notes.append(f"{titles[name]}: runs of different settings share this name.")
    return notes


def _missing(found: Experiment) -> list[str]:
    """Notes on values that some runs lack; one that all lack (a shot group without classes) is no problem."""
    notes, runs, titles = [], found.runs | found.references, found.titles
    for metric in (metric for metric in found.metrics if not metric.further):
        lacking = {
            name: [(run.seed, fold_of(run)) for run in members if not _is_number(run.metrics.get(metric.key))]
            for name, members in runs.items()
        }
        if all(len(cells) == len(runs[name]) for name, cells in lacking.items()) and not _any_nan(runs, metric):
            continue
        notes += [
            f"{titles[name]}: {metric.title} of {_cells(cells)} is missing or not a number; left out."
            for name, cells in lacking.items()
            if cells
        ]
    return notes


def _is_number(number: float | None) -> bool:
    return number is not None and math.isfinite(number)


def _any_nan(runs: dict[str, list[RunRecord]], metric: Metric) -> bool:
    numbers = [run.metrics.get(metric.key) for members in runs.values() for run in members]
    return any(number is not None and not math.isfinite(number) for number in numbers)


def _folds(runs: dict[str, list[RunRecord]], titles: dict[str, str]) -> list[str]:
    """Notes on seeds with missing folds."""
    every = {fold_of(record) for members in runs.values() for record in members}
    notes = []
    for name, members in runs.items():
        there = {(record.seed, fold_of(record)) for record in members}
        lacking = [(seed, fold) for seed in {record.seed for record in members} for fold in every]
        if absent := [cell for cell in lacking if cell not in there]:
            notes.append(f"{titles[name]}: no run of {_cells(absent)}; its seed is the mean of the other folds.")
    return notes


def _never_focal(runs: dict[str, list[RunRecord]], titles: dict[str, str]) -> list[str]:
    """Notes on cyclical losses that never cycled, because the runs had one or two epochs."""
    return [
        f"{titles[name]}: eta is 1 in every epoch, so the focal phase was never reached; it takes 3 epochs or more."
        for name, members in runs.items()
        if all(map(_stays_at_1, members))
    ]


def _stays_at_1(run: RunRecord) -> bool:
    by_epoch = run.recipe.get("clock", "epoch") == "epoch"  # else a row has only the eta of the first step
    return by_epoch and {row.get("eta") for row in run.epochs} == {1}
