"""An experiment in numbers: means, paired differences to the reference, and whether they are shown."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cyclofocal.lab.metrics import METRICS, PRIMARY, Metric
from cyclofocal.lab.records import RunRecord
from cyclofocal.lab.report.experiment import DIGITS, Experiment, Values, experiments, fold_of
from cyclofocal.lab.report.statistics import (
    Difference,
    Estimate,
    differences,
    estimates,
    holm,
    pairs_to_resolve,
    verdict,
)

KEYS = [metric.key for metric in METRICS]


@dataclass(frozen=True)
class Versus:
    """A loss against the reference in one metric, paired by seed.

    Attributes:
        per_seed: differences, folds averaged.
        corrected_p: over ``comparisons``, those of the same family.
        verdict: "better", "worse", "unclear" or "too few".
        needed: seeds that would show a difference of this size; None where it is 0.
    """

    difference: Difference
    per_seed: tuple[float, ...]
    corrected_p: float
    comparisons: int
    verdict: str
    needed: int | None


@dataclass(frozen=True)
class Row:
    """One loss in one metric; numbers in the metric's unit (percent where it is one)."""

    metric: Metric
    loss: str
    name: str
    estimate: Estimate
    versus: Versus | None  # None: this is the reference, or there is none


@dataclass(frozen=True)
class ClassRow:
    """A class: training and test samples (of the first run), and mean accuracy by loss, in per cent.

    ``tested`` is None in records of before it was kept.
    """

    title: str
    trained: int
    tested: int | None
    accuracy: dict[str, float]


@dataclass(frozen=True)
class Summary:
    """An experiment's rows, metric by metric, the primary one first.

    Attributes:
        reference: its title; "" where it has no runs.
        primary: the metric that was declared in advance; verdicts are corrected over the losses in it alone, those in
            all other metrics over all of them together.
        seeds: of the loss that has most.
        time: of an epoch relative to the reference's, by the loss's name: median over pairs of the ratio of medians.
    """

    experiment: Experiment
    rows: tuple[Row, ...]
    reference: str
    primary: Metric
    seeds: int
    time: dict[str, float]
    notes: tuple[str, ...]

    @property
    def recipe(self) -> dict[str, Any]:
        return self.experiment.recipe

    @property
    def train_counts(self) -> list[int]:
        """Of the first run."""
        return self.experiment.first.train_counts

    @property
    def class_rows(self) -> list[ClassRow]:
        """Every class, described and not tested; none where no loss's records all have the accuracy."""
        means = {name: seeds.mean(0).tolist() for name, seeds in self.experiment.class_accuracy.items()}
        if not means:
            return []
        tested: Sequence[int | None] = self.experiment.first.test_counts or [None] * len(self.train_counts)
        named = zip(self.experiment.classes, self.train_counts, tested, strict=True)
        return [ClassRow(*of_class, {name: of[c] for name, of in means.items()}) for c, of_class in enumerate(named)]

    @property
    def class_headings(self) -> list[str]:
        """Of a table of :attr:`class_rows`."""
        losses = (self.experiment.titles[name] for name in self.experiment.class_accuracy)
        return ["class", "training samples", "test samples", *losses]

    @property
    def folds(self) -> int:
        """Test folds of each seed; 1 where there is one test set."""
        return max(1, len({fold_of(run) for runs in self.experiment.runs.values() for run in runs}))

    @property
    def metrics(self) -> list[Metric]:
        return list(dict.fromkeys(row.metric for row in self.rows))

    def of_metric(self, metric: Metric) -> list[Row]:
        return [row for row in self.rows if row.metric == metric]

    def comparisons(self, secondary: bool = False) -> int:
        """Differences that are corrected for together."""
        return sum(row.versus is not None and (row.metric != self.primary) == secondary for row in self.rows)


def summarise(records: Sequence[RunRecord], reference: str = "", metric: str = "") -> Summary:
    """The summary of one experiment.

    Args:
        records: of one recipe; folds are averaged within their seed, seeds are what the statistics count.
        reference: name of the loss that all others are compared with; "": "ce", or the first where there is none.
        metric: key of the primary metric, which must have been chosen before the runs were seen; "": the one that
            their commands name, else balanced accuracy.

    Raises:
        ValueError: no record, records of several recipes, or a metric that does not exist.
    """
    found = experiments(records)
    if len(found) != 1:
        raise ValueError(f"records are of {len(found)} experiments; a summary is of one")
    return summaries(found, reference, metric)[0]


def summaries(found: Sequence[Experiment], reference: str = "", metric: str = "") -> list[Summary]:
    """:func:`summarise` of each experiment, all at once, which is much faster."""
    declared = declared_metric(found)  # by a later version of the lab it may be unknown here, and the report says so
    primary = primary_metric(metric or (declared if declared in KEYS else PRIMARY))
    reference = reference or default_reference(found)
    drafts = [_draft(experiment, reference or next(iter(experiment.runs)), primary) for experiment in found]
    cells = [(draft, key) for draft in drafts for key in draft.values]
    means = dict(zip(map(_place, cells), estimates([_per_seed(d.values[key]) for d, key in cells]), strict=True))
    pairs = [(draft, key) for draft in drafts for key in draft.pairs]
    versus = dict(zip(map(_place, pairs), differences([list(d.pairs[key]) for d, key in pairs]), strict=True))
    return [_summary(draft, means, versus) for draft in drafts]


def primary_metric(key: str) -> Metric:
    """The metric of this key.

    Raises:
        ValueError: there is none.
    """
    for metric in METRICS:
        if metric.key == key:
            return metric
    raise ValueError(f"metric is {key!r}; it must be one of {', '.join(KEYS)}")


def declared_metric(found: Sequence[Experiment]) -> str:
    """Key of the primary metric that the runs were started with; "" if they name none, or several."""
    named = {run.primary_metric for experiment in found for runs in experiment.runs.values() for run in runs} - {""}
    return named.pop() if len(named) == 1 else ""


def default_reference(found: Sequence[Experiment]) -> str:
    """Cross-entropy, untuned if there are both; "", for the first loss of each experiment, where there is none."""
    names = {name for experiment in found for name in experiment.runs}
    return next((name for name in ("ce", "ce:tuned") if name in names), "")


Key = tuple[Metric, str]


@dataclass(frozen=True)
class _Draft:
    """What the statistics are computed from."""

    experiment: Experiment
    reference: str
    primary: Metric
    values: dict[Key, Values]
    pairs: dict[Key, tuple[float, ...]]


def _place(cell: tuple[_Draft, Key]) -> tuple[int, Key]:
    return id(cell[0]), cell[1]


def _draft(experiment: Experiment, reference: str, primary: Metric) -> _Draft:
    metrics = sorted(METRICS, key=lambda metric: metric != primary)
    names = sorted(experiment.runs, key=lambda name: name != reference)
    values = {(metric, name): experiment.values(name, metric) for metric in metrics for name in names}
    values = {key: found for key, found in values.items() if found}
    pairs = {
        (metric, name): _paired(found, values[metric, reference])
        for (metric, name), found in values.items()
        if name != reference and (metric, reference) in values
    }
    return _Draft(experiment, reference, primary, values, {key: pair for key, pair in pairs.items() if pair})


def _per_seed(values: Values) -> list[float]:
    return [statistics.fmean(values[seed].values()) for seed in sorted(values)]


def _paired(values: Values, reference: Values) -> tuple[float, ...]:
    """Mean difference of each seed over the folds that both have, without what rounding leaves of a tie."""
    found = []
    for seed in sorted(values.keys() & reference.keys()):
        folds = sorted(values[seed].keys() & reference[seed].keys())
        if folds:
            found.append(round(statistics.fmean(values[seed][f] - reference[seed][f] for f in folds), DIGITS))
    return tuple(found)


def _summary(draft: _Draft, means: dict, versus: dict) -> Summary:
    experiment, own = draft.experiment, id(draft)
    corrected: dict[Key, Versus] = {}
    for secondary in (False, True):
        keys = [key for key in draft.pairs if (key[0] != draft.primary) == secondary]
        p_values = holm([versus[own, key].p for key in keys])
        corrected |= {
            key: _versus(draft.pairs[key], versus[own, key], p, len(keys), key[0])
            for key, p in zip(keys, p_values, strict=True)
        }
    titles = experiment.titles
    rows = tuple(Row(m, titles[n], n, means[own, (m, n)], corrected.get((m, n))) for m, n in draft.values)
    there = draft.reference in experiment.runs
    notes = list(experiment.notes)
    if not there:
        notes.append(f"No run of the reference {draft.reference!r}: nothing to compare with.")
    if not any(metric == draft.primary for metric, _ in draft.values):
        notes.append(f"No run has a {draft.primary.title}: no verdict.")
    return Summary(
        experiment=experiment,
        rows=rows,
        reference=titles[draft.reference] if there else "",
        primary=draft.primary,
        seeds=max(len({run.seed for run in runs}) for runs in experiment.runs.values()),
        time=_times(experiment, draft.reference),
        notes=tuple(notes),
    )


def _versus(pairs: tuple[float, ...], difference: Difference, p: float, comparisons: int, metric: Metric) -> Versus:
    said = verdict(difference, p, comparisons, metric.higher_is_better)
    needed = pairs_to_resolve(pairs, comparisons)
    return Versus(difference, pairs, p, comparisons, said, needed)


def _times(experiment: Experiment, reference: str) -> dict[str, float]:
    seconds = {
        name: {(run.seed, fold_of(run)): statistics.median(run.epoch_seconds) for run in runs if run.epoch_seconds}
        for name, runs in experiment.runs.items()
    }
    base = seconds.get(reference, {})
    ratios = {
        name: [of[cell] / base[cell] for cell in of.keys() & base.keys() if base[cell] > 0]
        for name, of in seconds.items()
    }
    return {name: statistics.median(found) for name, found in ratios.items() if found}
