"""Findings of a comparison as sentences."""

from collections.abc import Sequence
from typing import NamedTuple

from cyclofocal.lab.messages import counted
from cyclofocal.lab.records import VALIDATION_LOSS
from cyclofocal.lab.report.ranking import MIN_DATA_SETS, Ranking, WinTieLoss
from cyclofocal.lab.report.statistics import ALPHA, TOLERANCE, VERDICTS, minimum_pairs
from cyclofocal.lab.report.summary import (
    PairedComparison,
    Summary,
)
from cyclofocal.lab.report.validity import Cause, LateGain, SingleClass
from cyclofocal.lab.report.wording import (
    amount,
    format_interval,
    format_p,
    format_value,
    joined,
    spread,
    tiny_amount,
)

MAX_SEEDS = 10_000

ACCURACIES = {
    "validation_ap": "average precision on validation data",
    "validation_balanced_accuracy": "balanced accuracy on validation data",
    "validation_accuracy": "accuracy on validation data",
    "train_accuracy": "training accuracy",
}
"""Accuracies of the epoch rows, in words."""

CAUSES: dict[Cause, str] = {
    "not trained": "They have not learnt: their training accuracy is no more than the share of the largest class; raise"
    " --epochs or change the learning rate, for every loss alike",
    "threshold": "They have learnt, and only the threshold of 0.5 is wrong: compare them by AUROC or at thresholds"
    " chosen on validation data",
    "prior": "They have learnt, but another class is never the most probable: adjust the logits or the threshold, or"
    " compare them by NLL",
    "unknown": "They may need longer training or another learning rate, the same for every loss; or they have learnt,"
    " and no other class is ever the most probable: then compare them by NLL",
}
"""Causes of one class for every sample, and their remedies."""

NOT_RANKED = "The losses are not ranked: no two losses are in every experiment."


def conclusions(summary: Summary) -> list[str]:
    """One finding per loss; a single one if there are too few seeds for all."""
    if few := nothing_concluded(summary):
        return [few]
    return [conclusion(summary, comparison) for comparison in summary.compared(summary.primary)]


def nothing_concluded(summary: Summary) -> str:
    """Sentence for a comparison with too few seeds for every loss; "" for any other."""
    compared = summary.compared(summary.primary)
    if not compared or not all(map(_too_few, compared)):
        return ""
    most = max(compared, key=lambda comparison: comparison.estimate.n)
    return f"Nothing can be concluded: {_too_few(most)}."


def conclusion(summary: Summary, comparison: PairedComparison) -> str:
    """Finding for one loss: the primary metric, then other significant differences."""
    return " ".join(filter(None, (_primary(summary, comparison), _secondary(summary, comparison.name))))


def _primary(summary: Summary, comparison: PairedComparison) -> str:
    loss, metric, value = comparison.loss, comparison.metric, comparison.estimate
    if reason := _too_few(comparison):
        return f"{loss}: nothing can be concluded; {reason}."
    details = difference_text(comparison)
    if value.n != summary.seeds:
        details += f", {counted(value.n, 'seed', 'seeds')} of both"
    if comparison.verdict == "equivalent":
        same = f"equivalent to {summary.reference} in {metric.title}, within {margin_text(summary)}"
        return f"{loss}: {same} ({details}){'' if any(comparison.per_seed) else '; the runs are equal'}."
    if not comparison.direction:
        none = f"no significant difference from {summary.reference} in {metric.title}"
        return f"{loss}: {none} ({details}); {seeds_needed(comparison)}."
    tiny = tiny_amount(value.mean, metric)
    change = ("higher" if value.mean > 0 else "lower") + (f" by {tiny}" if tiny else "")
    within = f", but within {margin_text(summary)}" if comparison.within_margin else ""
    return f"{loss}: {comparison.verdict} than {summary.reference}{within}; its {metric.title} is {change} ({details})."


def margin_text(summary: Summary) -> str:
    """Margin of equivalence with its unit, as "a margin of 0.5 points"."""
    return f"a margin of {summary.margin:g} {summary.primary.unit_of_difference}".rstrip()


def adjusted_conclusion(summary: Summary) -> str:
    """Answer to whether a loss beats cross-entropy with the class prior taken out; "" if no record has it."""
    compared = [row.comparison for row in summary.against_adjusted if row.comparison]
    if not compared:
        return ""
    adjusted, metric = summary.adjusted[0].loss, summary.primary
    better = [found.loss for found in compared if found.direction == "better"]
    answer = f"{', '.join(better)}, significantly" if better else "none significantly"
    if all(map(_too_few, compared)):
        return f"Against {adjusted}: nothing can be concluded; {_too_few(compared[0])}."
    details = "; ".join(
        f"{found.loss} {format_value(found.estimate.mean, metric, sign=True)}"
        f" {format_interval(found.estimate, metric, sign=True)}, p {format_p(found.corrected_p)}, {found.verdict}"
        for found in compared
    )
    unit = f", {metric.unit_of_difference}" if metric.unit_of_difference else ""
    return f"Better than {adjusted}, in {metric.title}: {answer} (difference{unit}: {details})."


def _secondary(summary: Summary, name: str) -> str:
    significant: dict[str, list[str]] = {}
    for metric in summary.metrics[1:]:
        for comparison in summary.compared(metric):
            if comparison.name == name and comparison.direction:
                significant.setdefault(comparison.verdict, []).append(metric.title)
    parts = [f"{verdict} in {', '.join(significant[verdict])}" for verdict in VERDICTS if verdict in significant]
    return f"Other metrics: {'; '.join(parts)}." if parts else ""


def _too_few(comparison: PairedComparison) -> str:
    """Reason for the verdict of too few seeds; "" for any other."""
    if comparison.verdict != "too few seeds":
        return ""
    if comparison.difference.overlapping:
        return "a single pair of runs is too few, two are needed"
    seeds = counted(comparison.estimate.n, "seed is", "seeds are")
    family = counted(comparison.family_size, "comparison needs", "comparisons need")
    return f"{seeds} too few, {family} {minimum_pairs(comparison.family_size)} or more"


def seeds_needed(comparison: PairedComparison) -> str:
    """Clause on the number of seeds that would detect the observed difference."""
    if comparison.needed is None:
        if not any(comparison.per_seed):
            return "the runs are equal"
        if abs(comparison.estimate.mean) > TOLERANCE * max(map(abs, comparison.per_seed)):
            return "no number of seeds would be enough to detect a difference of this size by folds of these samples"
        return "the differences average to zero"
    if tiny := tiny_amount(comparison.estimate.mean, comparison.metric):
        return f"the observed difference is {tiny}"
    seeds = f"about {max(comparison.needed, comparison.estimate.n + 1):,}"
    if comparison.needed > MAX_SEEDS:
        seeds = f"more than {MAX_SEEDS:,}"
    return f"{seeds} seeds would be needed to detect a difference of this size"


def difference_text(comparison: PairedComparison) -> str:
    """Difference to the reference with its interval and p, as "+1.2 points [+0.8, +1.6], p 0.004"."""
    value, metric = comparison.estimate, comparison.metric
    size = f"{amount(value.mean, metric, sign=True)} {format_interval(value, metric, sign=True)}".rstrip()
    return f"{size}, p {format_p(comparison.corrected_p)}"


def unconverged_sentence(gains: Sequence[LateGain], summary: Summary) -> str:
    """Sentence on losses that had not converged; "" without any."""
    if not gains:
        return ""
    who = "every loss" if len(gains) == len(summary.experiment.runs) > 1 else joined([g.loss for g in gains], 3)
    low, high = min(g.points for g in gains), max(g.points for g in gains)
    size = spread(low, high)
    gained = f"gained {size} points of {ACCURACIES.get(gains[0].key)}"
    if gains[0].key == VALIDATION_LOSS:
        gained = f"lowered the validation loss by {size} %"
    return f"Not converged: raise --epochs. At the end of the runs {who} still {gained}."


def single_class_sentences(found: Sequence[SingleClass]) -> list[str]:
    """Sentence for each cause of runs that predict one class for every test sample, with its remedy."""
    sentences = []
    for cause, remedy in CAUSES.items():
        losses = [entry for entry in found if entry.cause == cause]
        if losses:
            counts = ", ".join(f"{entry.loss} in {entry.runs} of {entry.of} runs" for entry in losses)
            sentences.append(
                f"Models that predict a single class for every test sample: {counts}. {remedy}{_level(cause, losses)}."
            )
    return sentences


def _level(cause: Cause, losses: Sequence[SingleClass]) -> str:
    """Balanced accuracy that shows the cause, in brackets; "" if no record has it."""
    adjusted = [entry.adjusted for entry in losses if entry.adjusted is not None]
    tuned = [entry.tuned for entry in losses if entry.tuned is not None]
    if cause == "prior" and adjusted:
        return f" (post-hoc adjusted, their balanced accuracy is {max(adjusted):.1f} %)"
    if cause in ("threshold", "not trained") and tuned:
        where = "there" if cause == "threshold" else "at thresholds chosen on validation data"
        return f" ({where} their balanced accuracy is {spread(min(tuned), max(tuned))} %)"
    return ""


class AdjustedAmounts(NamedTuple):
    """Result of cross-entropy with the class prior taken out of its logits, in the primary metric.

    Attributes:
        plain: title of the loss without the adjustment.
        reached: its mean after the adjustment, with the unit.
        gained: difference that the adjustment makes, with the unit.
        gain: this difference, above 0 if it is better.
        compared: the other losses against it.
    """

    plain: str
    reached: str
    gained: str
    gain: float
    compared: tuple[PairedComparison, ...]


def adjusted_amounts(summary: Summary) -> AdjustedAmounts | None:
    """Result of the adjustment; None if no record has it."""
    metric = summary.primary
    row = next((row for row in summary.adjusted if row.metric == metric), None)
    own = next((found for found in summary.of_metric(metric) if row is not None and found.name == row.name), None)
    if row is None or own is None:
        return None
    change = row.estimate.mean - own.estimate.mean
    reached = format_value(row.estimate.mean, metric) + (f" {metric.unit}" if metric.unit else "")
    compared = tuple(found.comparison for found in summary.against_adjusted if found.comparison)
    gain = change if metric.higher_is_better else -change
    return AdjustedAmounts(own.loss, reached, amount(change, metric, sign=True), gain, compared)


def ranking_conclusions(found: Ranking) -> list[str]:
    """Findings over data sets: a test of all losses, then each loss against the reference."""
    return [_over_data_sets(found), *(_tallied(loss, tally, found) for loss, tally in found.tallies.items())]


def _over_data_sets(found: Ranking) -> str:
    n = len(found.data_sets)
    if not found.enough:
        return f"{n} data sets are too few to conclude anything over data sets; {MIN_DATA_SETS} or more are needed."
    if found.p >= ALPHA:
        return f"Over {n} data sets the losses' ranks do not differ significantly{ranked_by(found)}."
    different = found.significant_pairs()
    text = f"Over {n} data sets the losses' ranks differ significantly{ranked_by(found)}"
    if not different:
        return f"{text}, but no single pair of losses does (critical difference {found.critical_difference:.2f})."
    pairs = ", ".join(
        f"{one} ({found.ranks[one]:.2f}) before {other} ({found.ranks[other]:.2f})" for one, other in different
    )
    return f"{text}: {pairs}; critical difference {found.critical_difference:.2f}."


def ranked_by(found: Ranking) -> str:
    """Test of the ranks and its p, in brackets."""
    return f" ({'Friedman' if len(found.ranks) > 2 else 'Wilcoxon'}, p {format_p(found.p)})"


def _tallied(loss: str, tally: WinTieLoss, found: Ranking) -> str:
    wins = counted(tally.wins, "data set", "data sets")
    better, worse = ("" if count is None else f" (significantly on {count})" for count in (tally.better, tally.worse))
    few = ", with too few seeds for a significant difference on any" if tally.better is None else ""
    return (
        f"{loss}: ahead of {found.reference} on {wins}{better}, tied on {tally.ties}, behind on"
        f" {tally.losses}{worse}{few}."
    )
