"""Summarise an experiment: means, paired differences to the reference, and verdicts."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cyclofocal.lab.metrics import METRICS, PRIMARY, Metric
from cyclofocal.lab.records import RunRecord
from cyclofocal.lab.report.experiment import DECIMALS, Experiment, Values, fold_of, group_experiments
from cyclofocal.lab.report.statistics import (
    Difference,
    Estimate,
    estimate,
    holm,
    paired_difference,
    required_pairs,
    verdict,
)

KEYS = [metric.key for metric in METRICS]


@dataclass(frozen=True)
class PairedComparison:
    """A loss against the reference in one metric, paired by seed.

    Attributes:
        loss: title of the loss.
        name: its name.
        per_seed: differences, folds averaged.
        corrected_p: Holm-corrected over the comparisons of the family.
        family_size: number of these comparisons.
        verdict: one of :data:`~cyclofocal.lab.report.statistics.VERDICTS`.
        needed: seeds required to detect a difference of this size; None if it is 0.
    """

    metric: Metric
    loss: str
    name: str
    difference: Difference
    per_seed: tuple[float, ...]
    corrected_p: float
    family_size: int
    verdict: str
    needed: int | None

    @property
    def estimate(self) -> Estimate:
        """Mean difference and its interval."""
        return self.difference.estimate

    @property
    def direction(self) -> str:
        """ "better" or "worse"; "" for a difference that is not significant."""
        return {"significantly better": "better", "significantly worse": "worse"}.get(self.verdict, "")


@dataclass(frozen=True)
class LossResult:
    """Result of one loss in one metric, in the metric's unit (per cent if it is a percentage)."""

    metric: Metric
    loss: str
    name: str
    estimate: Estimate
    comparison: PairedComparison | None  # None: this is the reference, or there is none


@dataclass(frozen=True)
class ClassResult:
    """Training and test samples of a class in the first run, and its mean accuracy by loss, in per cent.

    ``tested`` is None if the records do not contain it.
    """

    title: str
    trained: int
    tested: int | None
    accuracy: dict[str, float]


@dataclass(frozen=True)
class Summary:
    """Results of an experiment, metric by metric, the primary one first.

    Attributes:
        reference: its title; "" if it has no runs.
        primary: metric declared in advance. Its verdicts are corrected over the losses; those of all other metrics are
            corrected together.
        seeds: largest number of seeds of any loss.
        time: relative time of an epoch by name of the loss: median over pairs of the ratio of medians.
    """

    experiment: Experiment
    rows: tuple[LossResult, ...]
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
        """Training samples per class in the first run."""
        return self.experiment.first.train_counts

    @property
    def class_results(self) -> list[ClassResult]:
        """Results of each class, described and not tested; empty if no loss has the accuracy in all its records."""
        means = {name: seeds.mean(0).tolist() for name, seeds in self.experiment.class_accuracy.items()}
        if not means:
            return []
        tested: Sequence[int | None] = self.experiment.first.test_counts or [None] * len(self.train_counts)
        named = zip(self.experiment.classes, self.train_counts, tested, strict=True)
        return [ClassResult(*of_class, {name: of[c] for name, of in means.items()}) for c, of_class in enumerate(named)]

    @property
    def folds(self) -> int:
        """Number of test folds per seed; 1 for a single test set."""
        return max(1, len({fold_of(run) for runs in self.experiment.runs.values() for run in runs}))

    @property
    def metrics(self) -> list[Metric]:
        return list(dict.fromkeys(row.metric for row in self.rows))

    def of_metric(self, metric: Metric) -> list[LossResult]:
        return [row for row in self.rows if row.metric == metric]

    def compared(self, metric: Metric) -> list[PairedComparison]:
        """Comparisons of every loss with the reference in one metric."""
        return [row.comparison for row in self.of_metric(metric) if row.comparison]

    def comparisons(self, secondary: bool = False) -> int:
        """Number of differences in a family, which are corrected together."""
        return sum(row.comparison is not None and (row.metric != self.primary) == secondary for row in self.rows)


def summarise(records: Sequence[RunRecord], reference: str = "", metric: str = "") -> Summary:
    """Summarise one experiment.

    Args:
        records: runs of one recipe; folds are averaged within their seed, and the statistics count seeds.
        reference: name of the loss that all others are compared with; default: "ce", else the first.
        metric: key of the primary metric, which must be chosen before the runs are seen; default: the one in the
            records, else balanced accuracy.

    Raises:
        ValueError: no record, records of several recipes, or a metric that does not exist.
    """
    found = group_experiments(records)
    if len(found) != 1:
        raise ValueError(f"records are of {len(found)} experiments; a summary is of one")
    return summaries(found, reference, metric)[0]


def summaries(found: Sequence[Experiment], reference: str = "", metric: str = "") -> list[Summary]:
    """:func:`summarise` of each experiment, all against one reference and in one primary metric."""
    declared = declared_metric(
        found
    )  # a later version of the lab may name one that is unknown here; the report mentions it
    primary = primary_metric(metric or (declared if declared in KEYS else PRIMARY))
    reference = reference or default_reference(found)
    return [_summary(experiment, reference or next(iter(experiment.runs)), primary) for experiment in found]


def primary_metric(key: str) -> Metric:
    """Return the metric of this key.

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
    """Name of cross-entropy, untuned if both exist; "" without it, for the first loss of each experiment."""
    names = {name for experiment in found for name in experiment.runs}
    return next((name for name in ("ce", "ce:tuned") if name in names), "")


def _summary(experiment: Experiment, reference: str, primary: Metric) -> Summary:
    families = ([primary], [metric for metric in METRICS if metric != primary])
    rows = tuple(row for family in families for row in _family_rows(experiment, reference, family))
    titles, there, notes = experiment.titles, reference in experiment.runs, list(experiment.notes)
    if not there:
        notes.append(f"No run of the reference {reference!r}: nothing to compare with.")
    if not any(row.metric == primary for row in rows):
        notes.append(f"No run has a {primary.title}: no verdict.")
    return Summary(
        experiment=experiment,
        rows=rows,
        reference=titles[reference] if there else "",
        primary=primary,
        seeds=max(len({run.seed for run in runs}) for runs in experiment.runs.values()),
        time=_times(experiment, reference),
        notes=tuple(notes),
    )


def _family_rows(experiment: Experiment, reference: str, family: Sequence[Metric]) -> list[LossResult]:
    """Results of every loss in the metrics of a family, whose p values are corrected together."""
    names = sorted(experiment.runs, key=lambda name: name != reference)
    values = {(metric, name): experiment.values(name, metric) for metric in family for name in names}
    values = {key: found for key, found in values.items() if found}
    pairs = {
        (metric, name): _paired(found, values.get((metric, reference), {}))
        for (metric, name), found in values.items()
        if name != reference
    }
    differences = {key: paired_difference(per_seed) for key, per_seed in pairs.items() if per_seed}
    corrected = holm([found.p for found in differences.values()])
    comparison = {
        (metric, name): PairedComparison(
            metric=metric,
            loss=experiment.titles[name],
            name=name,
            difference=found,
            per_seed=pairs[metric, name],
            corrected_p=p,
            family_size=len(differences),
            verdict=verdict(found, p, len(differences), metric.higher_is_better),
            needed=required_pairs(pairs[metric, name], len(differences)),
        )
        for ((metric, name), found), p in zip(differences.items(), corrected, strict=True)
    }
    return [
        LossResult(metric, experiment.titles[name], name, estimate(_per_seed(found)), comparison.get((metric, name)))
        for (metric, name), found in values.items()
    ]


def _per_seed(values: Values) -> list[float]:
    return [statistics.fmean(values[seed].values()) for seed in sorted(values)]


def _paired(values: Values, reference: Values) -> tuple[float, ...]:
    """Mean difference of each seed over the folds that both have, rounded so that ties are exactly 0."""
    found = []
    for seed in sorted(values.keys() & reference.keys()):
        folds = sorted(values[seed].keys() & reference[seed].keys())
        if folds:
            found.append(round(statistics.fmean(values[seed][f] - reference[seed][f] for f in folds), DECIMALS))
    return tuple(found)


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
