"""Answer in a few sentences: which loss to use, by how much, and what matters more."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from cyclofocal.lab.recipes.loss import IMBALANCE, IMBALANCED_FROM
from cyclofocal.lab.report.findings import (
    NOT_RANKED,
    adjusted_amounts,
    difference_text,
    margin_text,
    nothing_concluded,
    ranked_by,
    ranking_conclusions,
    seeds_needed,
    single_class_sentences,
    unconverged_sentence,
)
from cyclofocal.lab.report.ranking import Ranking
from cyclofocal.lab.report.statistics import Estimate
from cyclofocal.lab.report.summary import (
    LossResult,
    PairedComparison,
    Summary,
    difference_between,
    primary_metric,
    threshold_gains,
)
from cyclofocal.lab.report.validity import late_gains, single_classes
from cyclofocal.lab.report.wording import amount, format_interval, format_value, joined, spread

MOST_SENTENCES = 4
"""Sentences from which an answer is long enough without a hint at losses that were not compared."""

MOST_NAMED = 4
"""Most losses that a sentence names."""


def answer(summary: Summary) -> list[str]:
    """Sentences that answer a comparison, those that void it first.

    1. What voids the rest: too few seeds, runs that had not converged, models that predict one class for all.
    2. The loss to use, with its difference to the reference. Losses whose intervals overlap that of the largest
       difference are named with it, because their differences to each other are not tested. Before it, a model that
       is no loss and better than all; see :func:`better_reference`.
    3. Where nothing is better, the seeds that would settle the largest difference.
    4. What matters more: the threshold, the prior taken out after training, or the class counts in the loss.
    """
    threshold = _threshold(summary)
    if few := nothing_concluded(summary):
        return [few, *_doubts(summary), *filter(None, [threshold])]
    after = threshold or _after_training(summary)
    sentences = (_not_a_loss(summary), _choice(summary), _settling(summary), after, _counts_matter(summary))
    said = [*_doubts(summary), *filter(None, sentences)]
    return said if len(said) >= MOST_SENTENCES else [*said, *filter(None, [_counts_missing(summary)])]


def recommended(summary: Summary) -> str:
    """Name of the loss that the answer recommends: the best significantly better one, else the reference."""
    better = _better(summary)
    if better:
        return better[0].name
    names = (row.name for row in summary.of_metric(summary.primary) if row.comparison is None)
    return next(names, next(iter(summary.experiment.runs)))


def better_reference(summary: Summary) -> tuple[LossResult, LossResult, Estimate] | None:
    """The best model that is no loss and better than the best loss, this loss, and their difference; None without one.

    Better is a 95 % interval without 0 of the differences in the primary metric, paired by seed.
    """
    metric = summary.primary
    sign = 1 if metric.higher_is_better else -1
    losses = summary.of_metric(metric)
    references = [row for row in summary.references if row.metric == metric]
    if not losses or not references:
        return None
    best = max(losses, key=lambda row: sign * row.estimate.mean)
    for row in sorted(references, key=lambda row: -sign * row.estimate.mean):
        found = difference_between(summary, row.name, best.name)
        interval = found.estimate.interval if found else None
        if found and interval and min(sign * bound for bound in interval) > 0:
            return row, best, found.estimate
    return None


def _not_a_loss(summary: Summary) -> str:
    """Sentence on a model that is better than the best loss; "" without one."""
    if (found := better_reference(summary)) is None:
        return ""
    row, best, difference = found
    metric, unit = summary.primary, f" {summary.primary.unit}".rstrip()
    reached, against = (f"{format_value(entry.estimate.mean, metric)}{unit}" for entry in (row, best))
    size = f"{amount(difference.mean, metric, sign=True)} {format_interval(difference, metric, sign=True)}"
    return (
        f"A loss is not what you need: in {metric.title} {row.loss} reaches {reached}, against {against} of"
        f" {best.loss}, the best loss ({size})."
    )


def _doubts(summary: Summary) -> list[str]:
    void = [found for found in single_classes(summary.experiment) if found.voids(summary.primary)]
    return [
        *filter(None, [unconverged_sentence(late_gains(summary.experiment), summary)]),
        *single_class_sentences(void),
    ]


def _gain(comparison: PairedComparison) -> float:
    """Difference to the reference, above 0 if the loss is better."""
    mean = comparison.estimate.mean
    return mean if comparison.metric.higher_is_better else -mean


def _ordered(summary: Summary, direction: str) -> list[PairedComparison]:
    """Comparisons of one direction, the largest gain first; those with too few seeds are left out."""
    judged = [c for c in summary.compared(summary.primary) if c.verdict != "too few seeds"]
    return sorted((c for c in judged if c.direction == direction), key=_gain, reverse=True)


def _better(summary: Summary) -> list[PairedComparison]:
    return _ordered(summary, "better")


def _choice(summary: Summary) -> str:
    """The loss to use."""
    if not summary.compared(summary.primary):
        return "No loss can be compared with the reference: there is no verdict."
    better = _better(summary)
    return _winners(summary, better) if better else _no_winner(summary)


def _winners(summary: Summary, better: Sequence[PairedComparison]) -> str:
    top, metric, reference = better[0], summary.primary.title, summary.reference
    close = [found for found in better if _overlap(top, found)]
    within = f", though within {margin_text(summary)}" if top.within_margin else ""
    if len(close) == 1:
        direction = "higher" if top.estimate.mean > 0 else "lower"
        return f"Use {top.loss}: its {metric} is {direction} than that of {reference} ({difference_text(top)}){within}."
    sizes = [format_value(found.estimate.mean, summary.primary, sign=True) for found in close[:MOST_NAMED]]
    unit = f"{summary.primary.unit_of_difference} of {metric}".removeprefix(" of ")
    return (
        f"Use {joined([found.loss for found in close], MOST_NAMED, 'or')}: {joined(sizes, MOST_NAMED)} {unit} against"
        f" {reference}{within}. Their order is open: the intervals overlap, and only differences to {reference}"
        " are tested."
    )


def _overlap(one: PairedComparison, other: PairedComparison) -> bool:
    first, second = one.estimate.interval, other.estimate.interval
    return first is None or second is None or (first[0] <= second[1] and second[0] <= first[1])


def _no_winner(summary: Summary) -> str:
    """No loss is better: the reference stays; with the verdicts on the others."""
    metric, reference = summary.primary.title, summary.reference
    worse, even = _ordered(summary, "worse"), _ordered(summary, "")
    equal = [found for found in even if found.verdict == "equivalent"]
    if not worse and len(equal) == len(even):
        return (
            f"The loss makes no difference in {metric}: {joined([c.loss for c in equal], MOST_NAMED)}"
            f" {'is' if len(equal) == 1 else 'are'} equivalent to {reference}, within {margin_text(summary)}."
        )
    if not even:
        least = amount(abs(worse[0].estimate.mean), summary.primary)
        return f"Use {reference}: every other loss is significantly worse in {metric} (by {least} or more)."
    said = f"Keep {reference}: no other loss is significantly better in {metric}."
    if equal:
        said += f" Equivalent, within {margin_text(summary)}: {joined([c.loss for c in equal], MOST_NAMED)}."
    return said + (f" Significantly worse: {joined([c.loss for c in worse], MOST_NAMED)}." if worse else "")


def _settling(summary: Summary) -> str:
    """Seeds that would settle the largest gain that is not significant; "" where a loss is better, or none gains."""
    even = [c for c in _ordered(summary, "") if c.verdict == "not significant" and _gain(c) > 0]
    if _better(summary) or not even:
        return ""
    return f"Closest to being better: {even[0].loss} ({difference_text(even[0])}); {seeds_needed(even[0])}."


def _after_training(summary: Summary) -> str:
    """Gain of the prior taken out of cross-entropy's logits, and the losses that beat it; "" where it gains nothing."""
    found = adjusted_amounts(summary)
    if found is None or found.gain <= 0 or all(c.verdict == "too few seeds" for c in found.compared):
        return ""
    better = [c.loss for c in sorted(found.compared, key=_gain, reverse=True) if c.direction == "better"]
    largest = max((_gain(c) for c in summary.compared(summary.primary)), default=0.0)
    reached = (
        f"adjusting the logits of {found.plain} after training reaches {found.reached} ({found.gained}), as `cyclofocal"
        " predict --balanced` does"
    )
    beaten = f"Significantly better than that: {joined(better, MOST_NAMED)}."
    if found.gain > largest:
        start = "What matters more than the loss"
    else:
        most = _better(summary) and 2 * found.gain > largest
        start = "Most of this needs no other loss" if most else "Without another loss"
    return f"{start}: {reached}. {beaten if better else 'No loss is significantly better than that.'}"


class ThresholdAmounts(NamedTuple):
    """Effect of thresholds chosen on validation data, and that of the loss, in points of balanced accuracy.

    Attributes:
        reference: title of the reference.
        before, after: its means at 0.5 and at the chosen thresholds, in per cent.
        gains: mean gain of each loss, the reference first.
        differences: absolute difference of each other loss to the reference, all at chosen thresholds.
        sure: True if the interval of the reference's gain is above 0.
    """

    reference: str
    before: float
    after: float
    gains: list[float]
    differences: list[float]
    sure: bool

    @property
    def matters_more(self) -> bool:
        """True if the reference certainly gains more than any loss differs from it."""
        return self.sure and self.gains[0] > max(self.differences)


def threshold_amounts(summary: Summary) -> ThresholdAmounts | None:
    """Effect of the threshold; None without a reference and another loss that have thresholds."""
    found = threshold_gains(summary.experiment)
    tuned = {row.name: row for row in summary.of_metric(primary_metric("tuned_balanced_accuracy"))}
    own = next((row for row in tuned.values() if row.loss == summary.reference and row.name in found), None)
    others = [row.comparison for row in tuned.values() if row.comparison]
    if own is None or not others:
        return None
    gain, after = found[own.name], own.estimate.mean
    gains = [gain.mean, *(found[row.name].mean for row in tuned.values() if row is not own and row.name in found)]
    sure = gain.interval is not None and gain.interval[0] > 0
    return ThresholdAmounts(own.loss, after - gain.mean, after, gains, [abs(c.estimate.mean) for c in others], sure)


def _threshold(summary: Summary) -> str:
    """Sentence where the threshold gains more balanced accuracy than the losses differ; "" elsewhere."""
    found = threshold_amounts(summary)
    if found is None or not found.matters_more:
        return ""
    low, high = min(found.gains), max(found.gains)
    levels = f"from {found.before:.1f} to {found.after:.1f} %"
    with_any = f"{spread(low, high)} points of balanced accuracy with any loss ({levels} with {found.reference})"
    with_one = f"{found.gains[0]:.1f} points of balanced accuracy with {found.reference} ({levels})"
    gains = with_any if low > max(found.differences) else f"{with_one}, {spread(low, high)} over all losses"
    return (
        f"What matters more than the loss: the threshold. Chosen on validation data, it gains {gains}; at such"
        f" thresholds the losses differ from {found.reference} by"
        f" {spread(min(found.differences), max(found.differences))} points."
    )


def _using_counts(summary: Summary) -> set[str]:
    """Names of the losses whose settings follow from the class counts."""
    runs = summary.experiment.runs
    return {name for name, members in runs.items() if any(members[0].loss.get(setting) for setting in IMBALANCE)}


def _counts_matter(summary: Summary) -> str:
    """Sentence where the class counts decide; "" elsewhere."""
    using, better = _using_counts(summary), _better(summary)
    without = [found for found in summary.compared(summary.primary) if found.name not in using]
    if not better or not without or any(found.name not in using for found in better):
        return ""
    return "Every loss that is significantly better uses the class counts, and none of those without them is."


def _counts_missing(summary: Summary) -> str:
    """Hint where nothing compared uses the class counts of imbalanced data; "" elsewhere."""
    ratio = max(summary.train_counts) / max(min(summary.train_counts), 1)
    if ratio < IMBALANCED_FROM or _using_counts(summary) or summary.adjusted or summary.primary.key == "accuracy":
        return ""
    known, samples = "weighted, logit-adjusted", "samples"
    if summary.experiment.boxes:
        known, samples = "class-balanced-focal", "boxes"
    return (
        f"Not compared: losses that use the class counts ({known}), though the largest class has {ratio:.0f} times the"
        f" {samples} of the smallest; add them with --losses."
    )


def answer_over(summaries: Sequence[Summary], ranking: Ranking | None) -> list[str]:
    """Sentences that answer a comparison over several experiments, those that void it first."""
    return [
        *_doubts_over(summaries),
        *_not_a_loss_over(summaries),
        *_ranked(ranking),
        *_thresholds_over(summaries),
        *_one_by_one(summaries),
    ]


def _doubts_over(summaries: Sequence[Summary]) -> list[str]:
    kinds = {
        "nothing can be concluded: there are too few seeds": [bool(nothing_concluded(s)) for s in summaries],
        "some losses have not converged: raise --epochs": [bool(late_gains(s.experiment)) for s in summaries],
        "some losses predict a single class for every test sample in half of their runs or more": [
            any(found.voids(s.primary) for found in single_classes(s.experiment)) for s in summaries
        ],
    }
    return [f"On {sum(them)} of {len(them)} experiments {what}." for what, them in kinds.items() if any(them)]


def _not_a_loss_over(summaries: Sequence[Summary]) -> list[str]:
    """Number of experiments on which a model that is no loss is better than the best loss; none without references."""
    tested = [summary for summary in summaries if summary.references]
    ahead = [found[0].loss for summary in tested if (found := better_reference(summary))]
    if not ahead:
        return []
    tally = ", ".join(f"{name} on {ahead.count(name)}" for name in dict.fromkeys(ahead))
    return [
        f"A loss is not what you need on {len(ahead)} of {len(tested)} experiments: better than the best is {tally}."
    ]


def _ranked(ranking: Ranking | None) -> list[str]:
    """The loss to use by ranks, or that they do not differ."""
    if ranking is None or not ranking.enough:
        return [NOT_RANKED if ranking is None else ranking_conclusions(ranking)[0]]
    n, (best, rank), metric = len(ranking.data_sets), next(iter(ranking.ranks.items())), ranking.metric.title
    behind = {other for one, other in ranking.significant_pairs() if one == best}
    if not behind:
        no_difference = f"The loss makes no significant difference over {n} data sets, by ranks in {metric}"
        return [f"{no_difference}{ranked_by(ranking)}."]
    level = [loss for loss in ranking.ranks if loss not in behind]
    if len(level) == 1:
        return [f"Use {best}: over {n} data sets its mean rank in {metric}, {rank:.2f}, is significantly the best."]
    return [
        f"Use {joined(level, MOST_NAMED, 'or')}: over {n} data sets their ranks in {metric} are the best, and do not"
        f" differ significantly. Significantly behind {best}: {joined([x for x in ranking.ranks if x in behind], 4)}."
    ]


def _thresholds_over(summaries: Sequence[Summary]) -> list[str]:
    """Number of experiments on which the threshold matters more than the loss, with medians over all that have one."""
    found = [amounts for summary in summaries if (amounts := threshold_amounts(summary))]
    more = sum(amounts.matters_more for amounts in found)
    if not more:
        return []
    gain, largest = (median(f.gains[0] for f in found), median(max(f.differences) for f in found))
    return [
        f"On {more} of {len(found)} experiments of two classes, a threshold chosen on validation data gains more"
        f" balanced accuracy with {found[0].reference} than the losses differ at such thresholds (median gain"
        f" {gain:.1f} points, median of the largest difference {largest:.1f})."
    ]


def _one_by_one(summaries: Sequence[Summary]) -> list[str]:
    """Number of experiments on which each loss is significantly better or worse than the reference."""
    compared = [c for s in summaries for c in s.compared(s.primary) if c.verdict != "too few seeds"]
    if not compared:
        return []
    reference = next(s.reference for s in summaries if s.reference)
    counts = []
    for direction in ("better", "worse"):
        losses = [c.loss for c in compared if c.direction == direction]
        tally = ", ".join(f"{loss} on {losses.count(loss)}" for loss in dict.fromkeys(losses)) or "none"
        counts.append(f"significantly {direction}: {tally}")
    return [f"Against {reference}, experiment by experiment, {'; '.join(counts)}."]
