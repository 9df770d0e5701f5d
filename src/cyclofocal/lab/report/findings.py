"""Write numbers and findings as text."""

from collections.abc import Sequence
from typing import NamedTuple

from cyclofocal.lab.data.config import is_table
from cyclofocal.lab.longtail import ShotGroups
from cyclofocal.lab.metrics import BINS, Metric, default_margin
from cyclofocal.lab.records import VALIDATION_LOSS
from cyclofocal.lab.report.ranking import MIN_DATA_SETS, Ranking, WinTieLoss
from cyclofocal.lab.report.statistics import ALPHA, TOLERANCE, VERDICTS, Estimate, minimum_pairs
from cyclofocal.lab.report.summary import (
    PairedComparison,
    Summary,
    declared_margin,
    declared_metric,
    threshold_gains,
)
from cyclofocal.lab.report.validity import Cause, LateGain, SingleClass, single_classes

MAX_SEEDS = 10_000
MAX_LISTED_CLASSES = 20

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


def format_value(value: float, metric: Metric, sign: bool = False) -> str:
    """Value with the decimals of its metric, in ASCII."""
    text = f"{value:{'+' if sign else ''}.{_decimals(metric)}f}"
    return text.replace("-0.0", "0.0").replace("+0.0", "0.0") if float(text) == 0 else text


def format_count(mean: float) -> str:
    """Number of samples, a mean over seeds: three digits, or all those before the point."""
    return f"{mean:.3g}" if mean < 100 else f"{mean:.0f}"


def _decimals(metric: Metric) -> int:
    return 1 if metric.percent else 3


def format_interval(value: Estimate, metric: Metric, sign: bool = False) -> str:
    """Interval as ``[70.1, 72.4]``; "" without one."""
    if value.interval is None:
        return ""
    return f"[{', '.join(format_value(bound, metric, sign) for bound in value.interval)}]"


def format_p(p: float) -> str:
    """P value with three decimals, or ``<0.001``.

    Example:
        >>> format_p(0.0312), format_p(0.00002)
        ('0.031', '<0.001')
    """
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def format_effect(effect: float | None) -> str:
    """Effect size with its sign; a dash without one."""
    return "–" if effect is None else f"{effect:+.{1 if abs(effect) < 10 else 0}f}"


def conclusions(summary: Summary) -> list[str]:
    """One finding per loss; a single one if there are too few seeds for all."""
    if few := nothing_concluded(summary):
        return [few]
    return [conclusion(summary, comparison) for comparison in summary.compared(summary.primary)]


def nothing_concluded(summary: Summary) -> str:
    """Sentence for a comparison with too few seeds for every loss; "" for any other."""
    reasons = {_too_few(comparison) for comparison in summary.compared(summary.primary)}
    return f"Nothing can be concluded: {reasons.pop()}." if len(reasons) == 1 and "" not in reasons else ""


def conclusion(summary: Summary, comparison: PairedComparison) -> str:
    """Finding for one loss: the primary metric, then other significant differences."""
    return " ".join(filter(None, (_primary(summary, comparison), _secondary(summary, comparison.name))))


def _primary(summary: Summary, comparison: PairedComparison) -> str:
    loss, metric, value = comparison.loss, comparison.metric, comparison.estimate
    if reason := _too_few(comparison):
        return f"{loss}: nothing can be concluded; {reason}."
    details = difference_text(comparison)
    if value.n != summary.seeds:
        details += f", {_counted(value.n, 'seed', 'seeds')} of both"
    if comparison.verdict == "equivalent":
        same = f"equivalent to {summary.reference} in {metric.title}, within {margin_text(summary)}"
        return f"{loss}: {same} ({details}){'' if any(comparison.per_seed) else '; the runs are equal'}."
    if not comparison.direction:
        none = f"no significant difference from {summary.reference} in {metric.title}"
        return f"{loss}: {none} ({details}); {seeds_needed(comparison)}."
    tiny = _tiny(value.mean, metric)
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
    seeds = _counted(comparison.estimate.n, "seed is", "seeds are")
    family = _counted(comparison.family_size, "comparison needs", "comparisons need")
    return f"{seeds} too few, {family} {minimum_pairs(comparison.family_size)} or more"


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def seeds_needed(comparison: PairedComparison) -> str:
    """Clause on the number of seeds that would detect the observed difference."""
    if comparison.needed is None:
        if not any(comparison.per_seed):
            return "the runs are equal"
        if abs(comparison.estimate.mean) > TOLERANCE * max(map(abs, comparison.per_seed)):
            return "no number of seeds would be enough to detect a difference of this size by folds of these samples"
        return "the differences average to zero"
    if tiny := _tiny(comparison.estimate.mean, comparison.metric):
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


def joined(names: Sequence[str], most: int, last: str = "and") -> str:
    """Names in a sentence, as "a, b and c"; beyond ``most`` the number of the others; with commas inside, semicolons.

    Example:
        >>> joined(["a", "b", "c"], 3, "or"), joined(["a", "b", "c"], 2), joined(["a, tuned", "b", "c"], 3)
        ('a, b or c', 'a, b and 1 more', 'a, tuned; b; and c')
    """
    shown = [*names] if len(names) <= most else [*names[:most], f"{len(names) - most} more"]
    if len(shown) > 2 and any("," in name for name in shown):
        return f"{'; '.join(shown[:-1])}; {last} {shown[-1]}"
    return f" {last} ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


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


def spread(low: float, high: float) -> str:
    """Two numbers with one decimal, as "0.3 to 4.0"; one if they are equal then.

    Example:
        >>> spread(0.31, 4), spread(0.31, 0.29)
        ('0.3 to 4.0', '0.3')
    """
    return f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"


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


def _tiny(value: float, metric: Metric) -> str:
    """Bound of a difference that is printed as 0; "" for a larger one."""
    if float(format_value(value, metric)):
        return ""
    return f"less than {0.5 * 10 ** -_decimals(metric):g} {metric.unit_of_difference}".rstrip()


def amount(value: float, metric: Metric, sign: bool = False) -> str:
    """Value of a difference with its unit."""
    return f"{format_value(value, metric, sign)} {metric.unit_of_difference}".rstrip()


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
    wins = _counted(tally.wins, "data set", "data sets")
    better, worse = ("" if count is None else f" (significantly on {count})" for count in (tally.better, tally.worse))
    few = ", with too few seeds for a significant difference on any" if tally.better is None else ""
    return (
        f"{loss}: ahead of {found.reference} on {wins}{better}, tied on {tally.ties}, behind on"
        f" {tally.losses}{worse}{few}."
    )


def _epochs(summary: Summary) -> str:
    """Number of epochs, and the rule of early stopping."""
    planned, patience = summary.recipe["epochs"], summary.recipe.get("early_stopping", 0)
    if not (patience and _stops_early(summary)):
        return _counted(planned, "epoch", "epochs")
    without = _counted(patience, "epoch", "epochs")
    return f"at most {_counted(planned, 'epoch', 'epochs')}, stopped after {without} without a smaller validation loss"


def _evaluated(summary: Summary) -> str:
    return "the epoch with the smallest validation loss" if _stops_early(summary) else "the last epoch"


def _stops_early(summary: Summary) -> bool:
    runs = [run for members in summary.experiment.runs.values() for run in members]
    return any(VALIDATION_LOSS in row for run in runs for row in run.epochs[-1:])


def explanations(summary: Summary) -> list[str]:
    """Explanations of the tables: seeds, samples, intervals, corrections, and notes on the runs."""
    folds = f" of {summary.folds} folds each, averaged" if summary.folds > 1 else ""
    first, others = (_counted(summary.comparisons(rest), "comparison", "comparisons") for rest in (False, True))
    lines = [
        f"{_counted(summary.seeds, 'seed', 'seeds')}{folds}, {_epochs(summary)};"
        f" {_split(summary)}test set evaluated once, after {_evaluated(summary)}.",
        *_head_only(summary),
        f"Training {'boxes' if summary.experiment.boxes else 'samples'} per class: {counts(summary)}.",
        *(_of_boxes() if summary.experiment.boxes else _of_classes(summary)),
        *_intervals(summary),
        _what_varies(summary),
        f"p: {_test(summary)}, Holm-corrected over the {first} in {summary.primary.title}, the primary metric.",
        f"p of all other metrics: over their {others} together. A significant difference has p < {ALPHA}.",
        *_further(summary),
        *_seeds_needed_for_any(summary),
        *_equivalence(summary),
        *_adjustment(summary),
        *_references(summary),
        *_tuned(summary),
    ]
    if (declared := declared_metric([summary.experiment])) not in ("", summary.primary.key):
        lines.append(
            f"The runs were started with another primary metric, {declared}; one chosen afterwards is weaker evidence."
        )
    return [*lines, *remarks(summary)]


def _of_classes(summary: Summary) -> list[str]:
    """Meaning of the metrics of classes."""
    return [
        *_thresholds(summary),
        *_test_samples(summary),
        f"NLL: negative log-likelihood. ECE: expected calibration error ({BINS} bins).",
    ]


def _of_boxes() -> list[str]:
    """Meaning of the metrics of boxes."""
    return [
        "AP: average precision as COCO defines it, mean over the classes and over ten overlaps (intersection over"
        " union) from 0.5 to 0.95; AP50 and AP75 at one overlap. Small boxes have less than 32 x 32 pixels, large ones"
        " more than 96 x 96.",
    ]


def remarks(summary: Summary) -> list[str]:
    """Notes on the runs of this comparison that do not void it."""
    few = [found for found in single_classes(summary.experiment) if not found.voids(summary.primary)]
    return [*summary.notes, *single_class_sentences(few)]


def _thresholds(summary: Summary) -> list[str]:
    """Bounds of the shot groups; of two classes, the thresholds."""
    if not (rarer := summary.experiment.rarer):
        groups = ShotGroups(**summary.recipe["groups"])
        return [f"Shot groups ({groups.name}): many >= {groups.many_from}, few <= {groups.few_up_to}."]
    if not threshold_gains(summary.experiment):
        return []
    return [
        f"Chosen threshold (tuned): probability from which {rarer} is predicted, chosen on validation data for each of"
        " balanced accuracy, F1 and Matthews correlation by itself; all else is at 0.5."
    ]


def _intervals(summary: Summary) -> list[str]:
    if not (overlap := summary.experiment.overlap):
        return [
            "Intervals: 95 %, Student's t over seeds. Differences are paired by seed; a significant one excludes 0."
        ]
    return [
        "Intervals: 95 %, Student's t over all folds of all seeds. Differences are paired; significant ones exclude 0.",
        "Folds share training samples, so the variance of the mean of k runs is 1/k + n_test/n_train times theirs.",
        f"Here n_test/n_train = {overlap:.3g}. Reference: Nadeau and Bengio 2003.",
    ]


def _test(summary: Summary) -> str:
    return "Student's t with this variance" if summary.experiment.overlap else "sign-flip test"


def _further(summary: Summary) -> list[str]:
    """Family of the further metrics, if the records have them."""
    if not (count := summary.comparisons(further=True)):
        return []
    return [f"p of further metrics (in the page and CSV): over their {_counted(count, 'comparison', 'comparisons')}."]


def _seeds_needed_for_any(summary: Summary) -> list[str]:
    """Seeds below which a sign-flip test cannot be significant."""
    if summary.experiment.overlap:
        return []
    least, least_others = (minimum_pairs(summary.comparisons(rest)) for rest in (False, True))
    return [
        f"Too few seeds: p cannot fall below {ALPHA} with fewer than {least} seeds in the primary metric, or"
        f" {least_others} in the others."
    ]


def _equivalence(summary: Summary) -> list[str]:
    """Margin, its origin and the test, where something is compared."""
    if not summary.compared(summary.primary):
        return []
    return [
        f"Equivalent: not significant, and within {margin_text(summary)} ({_origin(summary)}).",
        "Equivalence is tested by two one-sided t tests, Holm-corrected over the same comparisons.",
        "Effect: mean of the differences over their standard deviation.",
    ]


def _origin(summary: Summary) -> str:
    """Origin of the margin of equivalence."""
    declared = declared_margin([summary.experiment])
    if declared is None or declared_metric([summary.experiment]) != summary.primary.key:
        is_default = summary.margin == default_margin(summary.primary.key)
        return "the default; the runs declare none" if is_default else "chosen afterwards, which is weaker evidence"
    if declared != summary.margin:
        return f"chosen afterwards, which is weaker evidence; the runs declare {declared:g}"
    return "declared when the runs were started"


def _adjustment(summary: Summary) -> list[str]:
    """Meaning of the row of post-hoc adjusted logits, if there is one."""
    if not summary.adjusted:
        return []
    runs = summary.experiment.runs[summary.adjusted[0].name]
    taus = [run.tau for run in runs if run.tau is not None]
    shown = f"{min(taus):g}" + (f" to {max(taus):g}" if max(taus) > min(taus) else "")
    chosen = "chosen on validation data" if summary.experiment.first.validation_samples else "without validation data"
    compared = f"Losses are compared with it in {summary.primary.title}, Holm-corrected over these comparisons."
    return [
        f"Post-hoc adjusted: logits less tau times the log of the class shares; tau {shown}, {chosen}.",
        *([compared] if summary.against_adjusted else []),
    ]


def _references(summary: Summary) -> list[str]:
    """Meaning of the rows of references, if there are some."""
    if not summary.references:
        return []
    return [
        "References, not losses: models fitted to the training rows of the network, in its encoding, at their defaults;"
        " no epochs, and no tuning. The majority class has the class shares as its probabilities.",
        f"Their differences to {summary.reference} are paired by seed; p is Holm-corrected over the references alone."
        " They are not ranked.",
    ]


def _split(summary: Summary) -> str:
    """Sizes of the splits in the first run; "" if the records do not contain them."""
    first = summary.experiment.first
    if not first.test_counts:
        return ""
    unit = "boxes" if summary.experiment.boxes else "samples"
    samples = {"train": sum(first.train_counts), "validation": first.validation_samples, "test": sum(first.test_counts)}
    return f"{unit}: {', '.join(f'{count:,} for {part}' for part, count in samples.items() if count)}; "


def _test_samples(summary: Summary) -> list[str]:
    """Test samples per class, or the weight of one sample of the rarest class."""
    if images := summary.recipe.get("test_per_class"):
        return [f"Test samples: {images} per class, so accuracy and balanced accuracy are the same number."]
    least = min(summary.experiment.first.test_counts, default=0)
    weight = 100 / least / len(summary.experiment.classes) if least else 0.0
    if weight < 1:
        return []
    counted = _counted(least, "test sample, which is", "test samples; each is")
    return [f"The rarest class has {counted} {weight:.1f} points of balanced accuracy."]


def _what_varies(summary: Summary) -> str:
    """Sources of variation that the intervals cover."""
    if _draws_test_set(summary):
        return "Each seed draws its own split: intervals and p cover splitting and training again, not new data."
    return "All seeds share one test set: intervals and p cover training again, not other test data."


def _draws_test_set(summary: Summary) -> bool:
    recipe = summary.recipe
    return recipe["source"] == "digits" or is_table(recipe["source"], recipe.get("target", ""))


def _tuned(summary: Summary) -> list[str]:
    """Tuning budget, if there was tuning."""
    budgets = {members[0].loss.get("trials", 0) for members in summary.experiment.runs.values()} - {0}
    if not budgets:
        return []
    each = "for each seed" if _draws_test_set(summary) else "once for all seeds"
    folds = " and fold" if summary.folds > 1 else ""
    budget = " or ".join(map(str, sorted(budgets)))
    return [f"Tuned: settings chosen on validation data, {each}{folds}, from {budget} trials per loss."]


def _head_only(summary: Summary) -> list[str]:
    """Note that the network was frozen, if it was."""
    recipe = summary.recipe
    if not (digest := recipe.get("backbone_digest")):
        return []
    return [
        f"Only the head was trained ({recipe['model']}), on frozen features of {recipe['backbone']}; SHA-256 of its"
        f" weights: {digest}."
    ]


def counts(summary: Summary) -> str:
    """Training samples by class; for many classes those of the largest and the smallest."""
    named = sorted(zip(summary.train_counts, summary.experiment.classes, strict=True), key=lambda pair: -pair[0])
    if len(named) <= MAX_LISTED_CLASSES:
        return ", ".join(f"{name}: {count}" for count, name in named)
    (most, largest), (least, smallest) = named[0], named[-1]
    return f"{len(named)} classes, from {largest} ({most}) to {smallest} ({least})"
