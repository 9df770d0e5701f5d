"""Explanations of the tables of an experiment: what was run, and how it was compared."""

from cyclofocal.lab.data.config import is_table
from cyclofocal.lab.longtail import ShotGroups
from cyclofocal.lab.messages import counted
from cyclofocal.lab.metrics import BINS, default_margin
from cyclofocal.lab.records import VALIDATION_LOSS
from cyclofocal.lab.report.findings import margin_text, single_class_sentences
from cyclofocal.lab.report.statistics import ALPHA, minimum_pairs
from cyclofocal.lab.report.summary import (
    Summary,
    declared_margin,
    declared_metric,
    threshold_gains,
)
from cyclofocal.lab.report.validity import single_classes

MAX_LISTED_CLASSES = 20


def _epochs(summary: Summary) -> str:
    """Number of epochs, and the rule of early stopping."""
    planned, patience = summary.recipe["epochs"], summary.recipe.get("early_stopping", 0)
    if not (patience and _stops_early(summary)):
        return counted(planned, "epoch", "epochs")
    without = counted(patience, "epoch", "epochs")
    return f"at most {counted(planned, 'epoch', 'epochs')}, stopped after {without} without a smaller validation loss"


def _evaluated(summary: Summary) -> str:
    return "the epoch with the smallest validation loss" if _stops_early(summary) else "the last epoch"


def _stops_early(summary: Summary) -> bool:
    runs = [run for members in summary.experiment.runs.values() for run in members]
    return any(VALIDATION_LOSS in row for run in runs for row in run.epochs[-1:])


def explanations(summary: Summary) -> list[str]:
    """Explanations of the tables: seeds, samples, intervals, corrections, and notes on the runs."""
    folds = f" of {summary.folds} folds each, averaged" if summary.folds > 1 else ""
    first, others = (counted(summary.comparisons(rest), "comparison", "comparisons") for rest in (False, True))
    lines = [
        f"{counted(summary.seeds, 'seed', 'seeds')}{folds}, {_epochs(summary)};"
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
    return [f"p of further metrics (in the page and CSV): over their {counted(count, 'comparison', 'comparisons')}."]


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
    samples = counted(least, "test sample, which is", "test samples; each is")
    return [f"The rarest class has {samples} {weight:.1f} points of balanced accuracy."]


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
