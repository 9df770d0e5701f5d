"""Write numbers and findings as text."""

from cyclofocal.lab.data.config import is_table
from cyclofocal.lab.longtail import ShotGroups
from cyclofocal.lab.metrics import BINS, Metric
from cyclofocal.lab.report.ranking import MIN_DATA_SETS, Ranking, WinTieLoss
from cyclofocal.lab.report.statistics import ALPHA, VERDICTS, Estimate, minimum_pairs
from cyclofocal.lab.report.summary import PairedComparison, Summary, declared_metric

MAX_SEEDS = 10_000
MAX_LISTED_CLASSES = 20

NOT_RANKED = "The losses are not ranked: no two losses are in every experiment."


def format_value(value: float, metric: Metric, sign: bool = False) -> str:
    """Value with the decimals of its metric, in ASCII."""
    text = f"{value:{'+' if sign else ''}.{_decimals(metric)}f}"
    return text.replace("-0.0", "0.0").replace("+0.0", "0.0") if float(text) == 0 else text


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


def conclusions(summary: Summary) -> list[str]:
    """One finding per loss; a single one if there are too few seeds for all."""
    compared = summary.compared(summary.primary)
    reasons = {_too_few(comparison) for comparison in compared}
    if len(reasons) == 1 and "" not in reasons:
        return [f"Nothing can be concluded: {reasons.pop()}."]
    return [conclusion(summary, comparison) for comparison in compared]


def conclusion(summary: Summary, comparison: PairedComparison) -> str:
    """Finding for one loss: the primary metric, then other significant differences."""
    return " ".join(filter(None, (_primary(summary, comparison), _secondary(summary, comparison.name))))


def _primary(summary: Summary, comparison: PairedComparison) -> str:
    loss, metric, value = comparison.loss, comparison.metric, comparison.estimate
    if reason := _too_few(comparison):
        return f"{loss}: nothing can be concluded; {reason}."
    size = f"{_amount(value.mean, metric, sign=True)} {format_interval(value, metric, sign=True)}".rstrip()
    details = f"{size}, p {format_p(comparison.corrected_p)}"
    if value.n != summary.seeds:
        details += f", {_counted(value.n, 'seed', 'seeds')} of both"
    if not comparison.direction:
        none = f"no significant difference from {summary.reference} in {metric.title}"
        return f"{loss}: {none} ({details}); {_needed(comparison)}."
    tiny = _tiny(value.mean, metric)
    change = ("higher" if value.mean > 0 else "lower") + (f" by {tiny}" if tiny else "")
    return f"{loss}: {comparison.verdict} than {summary.reference}; its {metric.title} is {change} ({details})."


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
    seeds = _counted(comparison.estimate.n, "seed is", "seeds are")
    family = _counted(comparison.family_size, "comparison needs", "comparisons need")
    return f"{seeds} too few, {family} {minimum_pairs(comparison.family_size)} or more"


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _needed(comparison: PairedComparison) -> str:
    if comparison.needed is None:
        return "the differences average to zero" if any(comparison.per_seed) else "the runs are equal"
    if tiny := _tiny(comparison.estimate.mean, comparison.metric):
        return f"the observed difference is {tiny}"
    seeds = f"about {max(comparison.needed, comparison.estimate.n + 1):,}"
    if comparison.needed > MAX_SEEDS:
        seeds = f"more than {MAX_SEEDS:,}"
    return f"{seeds} seeds would be needed to detect a difference of this size"


def _tiny(value: float, metric: Metric) -> str:
    """Bound of a difference that is printed as 0; "" for a larger one."""
    if float(format_value(value, metric)):
        return ""
    return f"less than {0.5 * 10 ** -_decimals(metric):g} {metric.unit_of_difference}".rstrip()


def _amount(value: float, metric: Metric, sign: bool = False) -> str:
    return f"{format_value(value, metric, sign)} {metric.unit_of_difference}".rstrip()


def ranking_conclusions(found: Ranking) -> list[str]:
    """Findings over data sets: a test of all losses, then each loss against the reference."""
    return [_over_data_sets(found), *(_tallied(loss, tally, found) for loss, tally in found.tallies.items())]


def _over_data_sets(found: Ranking) -> str:
    n = len(found.data_sets)
    test = "Friedman" if len(found.ranks) > 2 else "Wilcoxon"
    if not found.enough:
        return f"{n} data sets are too few to conclude anything over data sets; {MIN_DATA_SETS} or more are needed."
    if found.p >= ALPHA:
        return f"Over {n} data sets the losses' ranks do not differ significantly ({test}, p {format_p(found.p)})."
    different = found.significant_pairs()
    text = f"Over {n} data sets the losses' ranks differ significantly ({test}, p {format_p(found.p)})"
    if not different:
        return f"{text}, but no single pair of losses does (critical difference {found.critical_difference:.2f})."
    pairs = ", ".join(
        f"{one} ({found.ranks[one]:.2f}) before {other} ({found.ranks[other]:.2f})" for one, other in different
    )
    return f"{text}: {pairs}; critical difference {found.critical_difference:.2f}."


def _tallied(loss: str, tally: WinTieLoss, found: Ranking) -> str:
    wins = _counted(tally.wins, "data set", "data sets")
    better, worse = ("" if count is None else f" (significantly on {count})" for count in (tally.better, tally.worse))
    few = ", with too few seeds for a significant difference on any" if tally.better is None else ""
    return (
        f"{loss}: ahead of {found.reference} on {wins}{better}, tied on {tally.ties}, behind on"
        f" {tally.losses}{worse}{few}."
    )


def explanations(summary: Summary) -> list[str]:
    """Explanations of the tables: seeds, samples, intervals, corrections, and notes on the runs."""
    groups = ShotGroups(**summary.recipe["groups"])
    folds = f" of {summary.folds} folds each, averaged" if summary.folds > 1 else ""
    first, others = (_counted(summary.comparisons(rest), "comparison", "comparisons") for rest in (False, True))
    least, least_others = (minimum_pairs(summary.comparisons(rest)) for rest in (False, True))
    lines = [
        f"{_counted(summary.seeds, 'seed', 'seeds')}{folds}, {_counted(summary.recipe['epochs'], 'epoch', 'epochs')};"
        f" {_split(summary)}test set evaluated once, after the last epoch.",
        f"Training samples per class: {counts(summary)}.",
        f"Shot groups ({groups.name}): many >= {groups.many_from}, few <= {groups.few_up_to}.",
        *_test_samples(summary),
        f"NLL: negative log-likelihood. ECE: expected calibration error ({BINS} bins).",
        "Intervals: 95 %, Student's t over seeds. Differences are paired by seed; a significant one excludes 0.",
        _what_varies(summary),
        f"p: sign-flip test, Holm-corrected over the {first} in {summary.primary.title}, the primary metric.",
        f"p of all other metrics: over their {others} together. A significant difference has p < {ALPHA}.",
        f"Too few seeds: p cannot fall below {ALPHA} with fewer than {least} seeds in the primary metric, or"
        f" {least_others} in the others.",
        *_tuned(summary),
    ]
    if (declared := declared_metric([summary.experiment])) not in ("", summary.primary.key):
        lines.append(
            f"The runs were started with another primary metric, {declared}; one chosen afterwards is weaker evidence."
        )
    return [*lines, *summary.notes]


def _split(summary: Summary) -> str:
    """Sizes of the splits in the first run; "" if the records do not contain them."""
    first = summary.experiment.first
    if not first.test_counts:
        return ""
    samples = {"train": sum(first.train_counts), "validation": first.validation_samples, "test": sum(first.test_counts)}
    return f"samples: {', '.join(f'{count:,} for {part}' for part, count in samples.items() if count)}; "


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


def counts(summary: Summary) -> str:
    """Training samples by class; for many classes those of the largest and the smallest."""
    named = sorted(zip(summary.train_counts, summary.experiment.classes, strict=True), key=lambda pair: -pair[0])
    if len(named) <= MAX_LISTED_CLASSES:
        return ", ".join(f"{name}: {count}" for count, name in named)
    (most, largest), (least, smallest) = named[0], named[-1]
    return f"{len(named)} classes, from {largest} ({most}) to {smallest} ({least})"
