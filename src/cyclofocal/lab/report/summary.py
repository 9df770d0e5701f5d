"""Summarise an experiment: means, paired differences to the reference, and verdicts."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cyclofocal.lab.metrics import (
    BOX_METRICS,
    EVERY_METRIC,
    PRIMARY,
    RANKED,
    Metric,
    default_margin,
    default_metric,
)
from cyclofocal.lab.records import RunRecord
from cyclofocal.lab.report.experiment import DECIMALS, Experiment, Values, fold_of, group_experiments
from cyclofocal.lab.report.statistics import (
    ALPHA,
    Difference,
    Estimate,
    equivalence_p,
    estimate,
    holm,
    paired_difference,
    required_pairs,
    verdict,
)

KEYS = [metric.key for metric in EVERY_METRIC]
CROSS_ENTROPIES, PUBLISHED_DETECTION = ("ce", "ce:tuned"), ("focal",)
"""Names of the default reference of classes and of boxes, the first that exists."""


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
        needed: seeds required to detect a difference of this size; None if it is 0, or if no number is enough.
        equivalence_p: p of the difference lying within the margin, Holm-corrected; None if this was not tested.
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
    equivalence_p: float | None = None

    @property
    def within_margin(self) -> bool:
        """True if the difference lies within the margin of equivalence."""
        return self.equivalence_p is not None and self.equivalence_p < ALPHA

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
            corrected together, and those of further metrics too.
        margin: largest difference in the primary metric that counts as none, in its unit.
        adjusted: cross-entropy with the class prior taken out of its logits, in every metric; empty without.
        against_adjusted: the other losses in the primary metric, compared with it, as another family.
        references: models that were fitted in place of a network, in every metric, compared with the reference loss;
            p values are corrected as those of the losses, but apart from them.
        seeds: largest number of seeds of any loss.
        time: relative time of an epoch by name of the loss: median over pairs of the ratio of medians.
    """

    experiment: Experiment
    rows: tuple[LossResult, ...]
    reference: str
    primary: Metric
    margin: float
    seeds: int
    time: dict[str, float]
    notes: tuple[str, ...]
    adjusted: tuple[LossResult, ...] = ()
    against_adjusted: tuple[LossResult, ...] = ()
    references: tuple[LossResult, ...] = ()

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
        means = {name: runs.mean(0).tolist() for name, runs in self.experiment.class_accuracy.items()}
        if not means:
            return []
        tested: Sequence[int | None] = self.experiment.first.test_counts or [None] * len(self.train_counts)
        named = zip(self.experiment.classes, self.train_counts, tested, strict=True)
        return [ClassResult(*of_class, {name: of[c] for name, of in means.items()}) for c, of_class in enumerate(named)]

    @property
    def folds(self) -> int:
        """Number of test folds per seed; 1 for a single test set."""
        return self.experiment.folds

    @cached_property
    def _by_metric(self) -> dict[Metric, list[LossResult]]:
        found: dict[Metric, list[LossResult]] = {}
        for row in self.rows:
            found.setdefault(row.metric, []).append(row)
        return found

    @property
    def metrics(self) -> list[Metric]:
        return list(self._by_metric)

    @property
    def main_metrics(self) -> list[Metric]:
        """Metrics for short tables and figures: all but further ones, and the primary one in any case."""
        return [metric for metric in self.metrics if not metric.further or metric == self.primary]

    def of_metric(self, metric: Metric) -> list[LossResult]:
        return self._by_metric.get(metric, [])

    def compared(self, metric: Metric) -> list[PairedComparison]:
        """Comparisons of every loss with the reference in one metric."""
        return [row.comparison for row in self.of_metric(metric) if row.comparison]

    def comparisons(self, secondary: bool = False, further: bool = False) -> int:
        """Number of differences in a family, which are corrected together."""
        kind = (secondary or further, further)
        return sum(
            row.comparison is not None
            and (row.metric != self.primary, row.metric.further and row.metric != self.primary) == kind
            for row in self.rows
        )


def summarise(
    records: Sequence[RunRecord], reference: str = "", metric: str = "", margin: float | None = None
) -> Summary:
    """Summarise one experiment.

    Args:
        records: runs of one recipe; folds are averaged within their seed, and the statistics count seeds.
        reference: name of the loss that all others are compared with; default: "ce", else the first.
        metric: key of the primary metric, which must be chosen before the runs are seen; default: the one in the
            records, else that of :func:`~cyclofocal.lab.metrics.default_metric` if the records have it.
        margin: of equivalence in this metric; default: the one in the records, else that of
            :func:`~cyclofocal.lab.metrics.default_margin`.

    Raises:
        ValueError: no record, records of several recipes, or a metric that does not exist.
    """
    found = group_experiments(records)
    if len(found) != 1:
        raise ValueError(f"records are of {len(found)} experiments; a summary is of one")
    return summaries(found, reference, metric, margin)[0]


def summaries(
    found: Sequence[Experiment], reference: str = "", metric: str = "", margin: float | None = None
) -> list[Summary]:
    """:func:`summarise` of each experiment, all against one reference and in one primary metric."""
    declared = declared_metric(
        found
    )  # a later version of the lab may name one that is unknown here; the report mentions it
    key = metric or (declared if declared in KEYS else _undeclared_metric(found))
    primary_metric(key)
    of_boxes = key in {metric.key for metric in BOX_METRICS}
    if other := next((experiment for experiment in found if experiment.boxes != of_boxes), None):
        known = ", ".join(metric.key for metric in other.metrics)
        raise ValueError(f"metric is {key!r}, which {other.title} does not have; it must be one of {known}")
    reference = reference or default_reference(found)
    margin = margin or (declared_margin(found) if declared == key else None) or default_margin(key)
    return [
        _summary(experiment, reference or next(iter(experiment.runs)), primary_metric(key, experiment.metrics), margin)
        for experiment in found
    ]


def primary_metric(key: str, titled: Sequence[Metric] = ()) -> Metric:
    """Return the metric of this key, from ``titled`` if it is there.

    Raises:
        ValueError: there is none.
    """
    for metric in (*titled, *EVERY_METRIC):
        if metric.key == key:
            return metric
    raise ValueError(f"metric is {key!r}; it must be one of {', '.join(KEYS)}")


def common_primary(found: Sequence[Summary]) -> Metric:
    """Primary metric of several experiments, with the title that all have, or else a general one."""
    primary = found[0].primary
    same = all(summary.primary.title == primary.title for summary in found)
    return primary if same else primary_metric(primary.key)


def _undeclared_metric(found: Sequence[Experiment]) -> str:
    """Key of the default primary metric of records that declare none, or several; the older one if some lack it."""
    key = default_metric((len(experiment.classes) for experiment in found), found[0].boxes)
    has_it = all(experiment.values(name, primary_metric(key)) for experiment in found for name in experiment.runs)
    return key if has_it or found[0].boxes else PRIMARY


def declared_metric(found: Sequence[Experiment]) -> str:
    """Key of the primary metric that the runs were started with; "" if they name none, or several."""
    named = {run.primary_metric for experiment in found for runs in experiment.runs.values() for run in runs} - {""}
    return named.pop() if len(named) == 1 else ""


def declared_margin(found: Sequence[Experiment]) -> float | None:
    """Margin of equivalence that the runs were started with; None if they name none, or several."""
    named = {run.margin for experiment in found for runs in experiment.runs.values() for run in runs} - {None}
    return named.pop() if len(named) == 1 else None


def default_reference(found: Sequence[Experiment]) -> str:
    """Name of cross-entropy, untuned if both exist, of boxes focal; "" for the first loss of each experiment."""
    names = {name for experiment in found for name in experiment.runs}
    preferred = PUBLISHED_DETECTION if found and found[0].boxes else CROSS_ENTROPIES
    return next((name for name in preferred if name in names), "")


def _summary(experiment: Experiment, reference: str, primary: Metric, margin: float) -> Summary:
    others = [metric for metric in experiment.metrics if metric != primary]
    families = ([primary], [m for m in others if not m.further], [m for m in others if m.further])
    losses = sorted(experiment.runs, key=lambda name: name != reference)
    rows, references = (
        [
            _family_rows(experiment, names, reference, family, margin if family == [primary] else None)
            for family in families
        ]
        for names in (losses, [*experiment.references])
    )
    titles, there, notes = experiment.titles, reference in experiment.runs, list(experiment.notes)
    if not there:
        notes.append(f"No run of the reference {reference!r}: nothing to compare with.")
    if not rows[0]:
        notes.append(f"No run has a {primary.title}: no verdict.")
    return Summary(
        experiment=experiment,
        rows=tuple(row for family in rows for row in family),
        reference=titles[reference] if there else "",
        primary=primary,
        margin=margin,
        seeds=max(len({run.seed for run in runs}) for runs in experiment.runs.values()),
        time=_times(experiment, reference),
        notes=tuple(notes),
        references=tuple(row for family in references for row in family),
        **_adjusted_results(experiment, reference, primary, margin),
    )


def _adjusted_results(
    experiment: Experiment, reference: str, primary: Metric, margin: float
) -> dict[str, tuple[LossResult, ...]]:
    """Cross-entropy with the class prior taken out of its logits, and the other losses compared with it.

    Without cross-entropy the reference takes its place. Metrics that depend on the order of the samples alone are left
    out for two classes, because the prior shifts all samples alike there.
    """
    own = next((name for name in (reference, *CROSS_ENTROPIES) if name in CROSS_ENTROPIES), reference)
    own = own if own in experiment.runs else next((n for n in CROSS_ENTROPIES if n in experiment.runs), reference)
    if not any(run.adjusted for run in experiment.runs.get(own, ())):
        return {}
    title = f"{experiment.titles[own]}, post-hoc adjusted"
    found = {
        metric: experiment.values(own, metric, adjusted=True)
        for metric in experiment.metrics
        if not (experiment.rarer and metric.key in RANKED)
    }
    rows = tuple(
        LossResult(metric, title, own, _mean(experiment, values), None) for metric, values in found.items() if values
    )
    if primary not in found:
        return {"adjusted": rows}
    others = {(primary, name): experiment.values(name, primary) for name in experiment.runs if name != own}
    compared = _compare(experiment, others, {primary: found[primary]}, margin)
    against = [LossResult(primary, c.loss, c.name, _mean(experiment, others[key]), c) for key, c in compared.items()]
    return {"adjusted": rows, "against_adjusted": tuple(against)}


_Key = tuple[Metric, str]
"""Metric, and name of a loss."""


def _family_rows(
    experiment: Experiment, names: Sequence[str], reference: str, family: Sequence[Metric], margin: float | None
) -> list[LossResult]:
    """Results of the named losses or references in the metrics of a family, whose p values are corrected together."""
    values = {(metric, name): experiment.values(name, metric) for metric in family for name in names}
    values = {key: found for key, found in values.items() if found}
    others = {key: found for key, found in values.items() if key[1] != reference}
    there = reference in experiment.runs
    of_reference = {metric: experiment.values(reference, metric) if there else Values() for metric in family}
    compared = _compare(experiment, others, of_reference, margin)
    return [
        LossResult(metric, experiment.titles[name], name, _mean(experiment, found), compared.get((metric, name)))
        for (metric, name), found in values.items()
    ]


def difference_between(summary: Summary, name: str, other: str) -> Difference | None:
    """Difference of a loss or reference to another one in the primary metric, paired by seed; None without pairs.

    Nothing is corrected: it is one comparison.
    """
    experiment = summary.experiment
    pairs = _paired(experiment.values(name, summary.primary), experiment.values(other, summary.primary))
    runs = [value for seed in pairs.values() for value in seed.values()]
    return paired_difference(runs, experiment.overlap, len(pairs)) if runs else None


def _compare(
    experiment: Experiment, others: dict[_Key, Values], reference: dict[Metric, Values], margin: float | None
) -> dict[_Key, PairedComparison]:
    """Compare losses with the reference, as one family; without a margin equivalence is not tested."""
    every = {key: _paired(values, reference[key[0]]) for key, values in others.items()}
    pairs = {key: found for key, found in every.items() if found}
    runs = {key: [value for seed in found.values() for value in seed.values()] for key, found in pairs.items()}
    overlap = experiment.overlap
    differences = {key: paired_difference(runs[key], overlap, len(found)) for key, found in pairs.items()}
    corrected = holm([found.p for found in differences.values()])
    equal = holm([equivalence_p(found, margin, overlap) for found in runs.values()]) if margin else [None] * len(runs)
    return {
        (metric, name): PairedComparison(
            metric=metric,
            loss=experiment.titles[name],
            name=name,
            difference=found,
            per_seed=tuple(_per_seed(pairs[metric, name])),
            corrected_p=p,
            family_size=len(differences),
            verdict=verdict(found, p, len(differences), metric.higher_is_better, 1.0 if same is None else same),
            needed=_seeds_needed(experiment, runs[metric, name], len(differences)),
            equivalence_p=same,
        )
        for ((metric, name), found), p, same in zip(differences.items(), corrected, equal, strict=True)
    }


def _seeds_needed(experiment: Experiment, differences: Sequence[float], comparisons: int) -> int | None:
    runs = required_pairs(differences, comparisons, experiment.overlap)
    return None if runs is None else math.ceil(runs / experiment.folds)


def _mean(experiment: Experiment, values: Values) -> Estimate:
    """Mean over seeds of a loss, and its interval."""
    runs = [value for seed in sorted(values) for value in values[seed].values()]
    return estimate(runs, experiment.overlap, len(values))


def _per_seed(values: Values) -> list[float]:
    return [round(statistics.fmean(values[seed].values()), DECIMALS) for seed in sorted(values)]


def _paired(values: Values, reference: Values) -> Values:
    """Differences by seed over the folds that both have, rounded so that ties are exactly 0."""
    found = Values()
    for seed in sorted(values.keys() & reference.keys()):
        for fold in sorted(values[seed].keys() & reference[seed].keys()):
            found.setdefault(seed, {})[fold] = round(values[seed][fold] - reference[seed][fold], DECIMALS)
    return found


def threshold_gains(experiment: Experiment) -> dict[str, Estimate]:
    """Gain of balanced accuracy by the threshold chosen on validation data, by name of the loss, in points.

    Without the losses that have no such threshold in any run.
    """
    plain, tuned = (primary_metric(key) for key in ("balanced_accuracy", "tuned_balanced_accuracy"))
    paired = {name: _paired(experiment.values(name, tuned), experiment.values(name, plain)) for name in experiment.runs}
    return {name: _mean(experiment, found) for name, found in paired.items() if found}


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
