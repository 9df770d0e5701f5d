"""Metrics of one run from the logits and targets of its test set."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cyclofocal.lab.longtail import ShotGroups, rarer_class

Array = NDArray[np.floating]
LabelArray = NDArray[np.integer]


@dataclass(frozen=True)
class Metric:
    """Name, unit and direction of a metric; values of percentages are stored as fractions.

    A further metric is in full tables and CSV only, unless it is the primary one; its p values are a family apart.
    Metrics of the same key are equal, for the title can depend on the classes; see :func:`metrics_of`.
    """

    key: str
    title: str = field(compare=False)
    short_title: str = field(compare=False)
    unit: str = field(default="%", compare=False)
    higher_is_better: bool = field(default=True, compare=False)
    further: bool = field(default=False, compare=False)

    @property
    def heading(self) -> str:
        """Short title with the unit."""
        return f"{self.short_title}, {self.unit}" if self.unit else self.short_title

    @property
    def percent(self) -> bool:
        """True for a percentage."""
        return self.unit == "%"

    @property
    def unit_of_difference(self) -> str:
        """Unit of a difference: "points" for percentages."""
        return "points" if self.percent else self.unit


PRIMARY = "balanced_accuracy"
"""Key of the primary metric of records that name none, and of the default for three or more classes."""

AUROC = "macro_auroc"
"""Key of the default primary metric for two classes."""

BINS = 15
"""Number of confidence bins of equal width."""

METRICS = (
    Metric("accuracy", "accuracy", "accuracy"),
    Metric("balanced_accuracy", "balanced accuracy", "balanced accuracy"),
    Metric("macro_f1", "macro F1", "macro F1"),
    Metric("many", "many-shot accuracy", "many-shot"),
    Metric("medium", "medium-shot accuracy", "medium-shot"),
    Metric("few", "few-shot accuracy", "few-shot"),
    Metric("nll", "negative log-likelihood", "NLL", unit="nats", higher_is_better=False),
    Metric("brier", "Brier score", "Brier score", unit="", higher_is_better=False),
    Metric("ece", "calibration error", "ECE", higher_is_better=False),
    Metric("macro_auroc", "macro AUROC", "macro AUROC", further=True),
    Metric("macro_ap", "macro average precision", "average precision", further=True),
    Metric("mcc", "Matthews correlation", "MCC", unit="", further=True),
    Metric("gmean", "geometric mean of recall", "geometric mean", further=True),
    Metric("least_recall", "least recall", "least recall", further=True),
    Metric("class_ece", "class-wise calibration error", "class-wise ECE", higher_is_better=False, further=True),
    Metric("rare_ap", "average precision of the rarer class", "average precision of the rarer class", further=True),
    Metric("rare_recall", "recall of the rarer class", "recall of the rarer class", further=True),
    Metric("rare_precision", "precision of the rarer class", "precision of the rarer class", further=True),
    Metric("rare_f1", "F1 of the rarer class", "F1 of the rarer class", further=True),
    Metric("scaled_nll", "NLL after temperature scaling", "NLL, scaled", "nats", False, further=True),
    Metric("scaled_ece", "ECE after temperature scaling", "ECE, scaled", higher_is_better=False, further=True),
    Metric(
        "tuned_balanced_accuracy", "balanced accuracy at the chosen threshold", "balanced accuracy, tuned", further=True
    ),
    Metric("tuned_f1", "F1 of the rarer class at the chosen threshold", "F1 of the rarer class, tuned", further=True),
    Metric("tuned_mcc", "Matthews correlation at the chosen threshold", "MCC, tuned", unit="", further=True),
)
"""Metrics of a run, in the order of tables of three or more classes."""

BOX_METRICS = (
    Metric("ap", "average precision", "AP"),
    Metric("ap50", "average precision at overlap 0.5", "AP50"),
    Metric("ap75", "average precision at overlap 0.75", "AP75"),
    Metric("rarest_ap", "average precision of the rarest class", "AP of the rarest class"),
    Metric("ap_small", "average precision of boxes below 32 x 32 pixels", "AP, small"),
    Metric("ap_medium", "average precision of boxes of 32 x 32 to 96 x 96 pixels", "AP, medium"),
    Metric("ap_large", "average precision of boxes above 96 x 96 pixels", "AP, large"),
)
"""Metrics of detections, in the order of tables."""

EVERY_METRIC = (*METRICS, *BOX_METRICS)
"""Metrics of all kinds of experiments."""

BOX_PRIMARY = "ap"
"""Key of the default primary metric of detections."""

OF_TWO_CLASSES = (
    *(AUROC, "rare_ap", "rare_recall", "rare_precision"),
    *("balanced_accuracy", "tuned_balanced_accuracy", "rare_f1", "tuned_f1", "mcc", "tuned_mcc"),
    *("accuracy", "nll", "brier", "ece"),
)
"""Keys of the metrics of two classes that are no further ones, in the order of tables."""

SHOTS = ("many", "medium", "few")
"""Keys of the accuracies of shot groups."""

THRESHOLDS = {"balanced_accuracy": "balanced_accuracy", "f1": "rare_f1", "mcc": "mcc"}
"""Measures of two classes that each have a threshold, chosen on validation data, and their keys at 0.5.

The key at the chosen threshold is that of the measure after ``tuned_``.
"""

TUNED = tuple(f"tuned_{name}" for name in THRESHOLDS)
"""Keys of the metrics at chosen thresholds."""

ONLY_TWO_CLASSES = ("rare_ap", "rare_recall", "rare_precision", "rare_f1", *TUNED)
"""Keys of the metrics that three or more classes do not have."""

NEED_VALIDATION = ("scaled_nll", "scaled_ece", *TUNED)
"""Keys of the metrics that need validation data; see :func:`metrics_with`."""

OF_PREDICTED_CLASSES = (
    *("accuracy", "balanced_accuracy", "macro_f1", *SHOTS, "mcc", "gmean", "least_recall"),
    *("rare_recall", "rare_precision", "rare_f1"),
)
"""Keys of the metrics of the most probable classes; all others are of probabilities, or of a chosen threshold."""

RANKED = (AUROC, "macro_ap", "rare_ap")
"""Keys of the metrics that depend on the order of the samples alone."""


def metrics_of(rarer: str = "", boxes: bool = False) -> tuple[Metric, ...]:
    """Metrics in the order of tables.

    Args:
        rarer: name of the rarer of two classes, for the titles; "" for three or more classes.
        boxes: True for detections.

    Returns:
        :data:`BOX_METRICS` of detections, else :data:`METRICS`; for two classes those of :data:`OF_TWO_CLASSES` first,
        all others as further ones, and none of shot groups.

    Example:
        >>> [metric.title for metric in metrics_of("yes")][:3]
        ['AUROC', 'average precision of yes', 'recall of yes']
    """
    if boxes:
        return BOX_METRICS
    if not rarer:
        return METRICS
    known = {metric.key: _of_rarer(metric, rarer) for metric in METRICS if metric.key not in SHOTS}
    first = tuple(replace(known[key], further=False) for key in OF_TWO_CLASSES)
    return (*first, *(replace(m, further=True) for key, m in known.items() if key not in OF_TWO_CLASSES))


def _of_rarer(metric: Metric, rarer: str) -> Metric:
    """The metric with the name of the rarer class in its titles; the AUROC of two classes is no mean."""
    if metric.key == AUROC:
        return replace(metric, title="AUROC", short_title="AUROC")
    if metric.key == "macro_ap":
        return replace(metric, short_title=metric.title)
    title, short_title = (text.replace("the rarer class", rarer) for text in (metric.title, metric.short_title))
    return replace(metric, title=title, short_title=short_title)


def default_metric(classes: Iterable[int], boxes: bool = False) -> str:
    """Key of the default primary metric, from the number of classes of every data set that is compared.

    Of detections (``boxes``) it is the average precision. Of classes it is the AUROC if any data set has two, because
    it is that of the two and has a value for more (the mean of each class against the others); the balanced accuracy
    otherwise.

    Example:
        >>> default_metric([2]), default_metric([2, 10]), default_metric([10])
        ('macro_auroc', 'macro_auroc', 'balanced_accuracy')
    """
    return BOX_PRIMARY if boxes else AUROC if 2 in set(classes) else PRIMARY


def default_margin(key: str) -> float:
    """Margin of equivalence if none is given: 0.5 points for percentages, 0.005 in the unit of others."""
    return next(0.5 if metric.percent else 0.005 for metric in EVERY_METRIC if metric.key == key)


def compute_metrics(
    logits: Array, target: LabelArray, train_counts: Sequence[int], groups: ShotGroups
) -> dict[str, float | None]:
    """Compute :data:`METRICS`, percentages as fractions.

    ``None`` for a shot group without classes, for those of :data:`NEED_VALIDATION`, and for those of
    :data:`ONLY_TWO_CLASSES` if there are more.

    Args:
        logits: (N, C), of the test set.
        target: (N,) class indices; every class must occur.
        train_counts: training images per class, length C, which decide the shot groups.
        groups: bounds of the shot groups.

    Raises:
        ValueError: non-finite logits, or a class that is missing from the test set.
    """
    if not np.isfinite(logits).all():
        raise ValueError("logits hold a value that is not finite: the model has diverged")
    log_p = log_softmax(logits.astype(np.float64))
    p, predicted = np.exp(log_p), log_p.argmax(1)
    recall = recall_per_class(predicted, target, logits.shape[1])
    shots = groups.classes_of(train_counts)
    ranked = logits.astype(np.float64) - logits[:, ::-1] if logits.shape[1] == 2 else p  # p of 1 would be a tie
    areas = one_against_rest(ranked, target)
    auroc, average_precision = areas.mean(0)
    return {
        "accuracy": float((predicted == target).mean()),
        "balanced_accuracy": float(recall.mean()),
        "macro_f1": macro_f1(predicted, target, logits.shape[1]),
        **{name: float(recall[members].mean()) if members else None for name, members in shots.items()},
        "nll": float(-log_p[np.arange(len(target)), target].mean()),
        "brier": float(((p**2).sum(1) - 2 * p[np.arange(len(target)), target] + 1).mean()),
        "ece": expected_calibration_error(p, target),
        "macro_auroc": float(auroc),
        "macro_ap": float(average_precision),
        "mcc": matthews_correlation(predicted, target),
        "gmean": float(np.prod(recall ** (1 / len(recall)))),
        "least_recall": float(recall.min()),
        "class_ece": class_calibration_error(p, target),
        **_rarer_class_metrics(predicted, target, train_counts, areas),
        **dict.fromkeys(NEED_VALIDATION),
    }


def _rarer_class_metrics(
    predicted: LabelArray, target: LabelArray, train_counts: Sequence[int], areas: Array
) -> dict[str, float | None]:
    """Average precision, recall, precision and F1 of the rarer of two classes; a precision of no prediction is 0."""
    keys = ("rare_ap", "rare_recall", "rare_precision", "rare_f1")
    if len(train_counts) != 2:
        return dict.fromkeys(keys)
    c = rarer_class(train_counts)
    found, right = (predicted == c).sum(), ((predicted == c) & (target == c)).sum()
    there = (target == c).sum()
    numbers = (areas[c, 1], right / there, right / max(found, 1), 2 * right / (found + there))
    return dict(zip(keys, map(float, numbers), strict=True))


def threshold_scores(
    right: Array | LabelArray, wrong: Array | LabelArray, positives: int, negatives: int
) -> dict[str, Array]:
    """Measures of :data:`THRESHOLDS` from counts, elementwise.

    Args:
        right: samples of the positive class that are predicted as such; any shape.
        wrong: samples of the other class that are predicted as the positive one; of the same shape.
        positives: samples of the positive class, at least 1.
        negatives: samples of the other class, at least 1.

    Returns:
        Balanced accuracy, F1, and Matthews correlation, which is 0 where all predictions are one class.

    Example:
        >>> scores = threshold_scores(np.array(3), np.array(1), positives=4, negatives=6)
        >>> {name: round(float(score), 3) for name, score in scores.items()}
        {'balanced_accuracy': 0.792, 'f1': 0.75, 'mcc': 0.583}
    """
    right, wrong = np.asarray(right, dtype=np.float64), np.asarray(wrong, dtype=np.float64)
    predicted = right + wrong
    spread = np.sqrt(predicted * (positives + negatives - predicted) * float(positives * negatives))
    covariance = right * negatives - wrong * positives
    return {
        "balanced_accuracy": (right / positives + 1 - wrong / negatives) / 2,
        "f1": 2 * right / (predicted + positives),
        "mcc": covariance / np.where(spread > 0, spread, np.inf),
    }


def metrics_with(
    logits: Array, target: LabelArray, positive: int, temperature: float | None, thresholds: Mapping[str, float]
) -> dict[str, float | None]:
    """Metrics of the test set that need a temperature or thresholds chosen on validation data.

    Args:
        logits: (N, C).
        target: (N,) class indices.
        positive: class of the thresholds.
        temperature: divisor of the logits; None without validation data.
        thresholds: probabilities of the positive class from which it is predicted, by measure of :data:`THRESHOLDS`;
            empty without validation data and for more than two classes.

    Returns:
        Values of :data:`NEED_VALIDATION`.
    """
    found: dict[str, float | None] = dict.fromkeys(NEED_VALIDATION)
    if temperature is not None:
        log_p = log_softmax(logits.astype(np.float64) / temperature)
        found["scaled_nll"] = float(-log_p[np.arange(len(target)), target].mean())
        found["scaled_ece"] = expected_calibration_error(np.exp(log_p), target)
    of_class = target == positive
    for name, threshold in thresholds.items():
        predicted = probability_of(logits, positive) >= threshold
        counts = (predicted & of_class).sum(), (predicted & ~of_class).sum(), of_class.sum(), (~of_class).sum()
        found[f"tuned_{name}"] = float(threshold_scores(*counts)[name])
    return found


def probability_of(logits: Array, c: int) -> Array:
    """Softmax probability of one class, (N,)."""
    return np.exp(log_softmax(logits.astype(np.float64))[:, c])


def one_against_rest(p: Array, target: LabelArray) -> Array:
    """Area under the ROC curve and average precision of each class against all others, (C, 2).

    Both come from one sort per class: for 1,000 classes and 50,000 samples a tenth of the time of scikit-learn, whose
    ``roc_auc_score`` and ``average_precision_score`` give the same numbers.

    Args:
        p: (N, C), probabilities.
        target: (N,) class indices; every class must occur, and there must be two or more.
    """
    return np.array([_areas(p[:, c], target == c) for c in range(p.shape[1])])


def two_class_auroc(logits: Array, target: LabelArray) -> float | None:
    """Area under the ROC curve of two classes, by the difference of their logits; None if one does not occur.

    Args:
        logits: (N, 2).
        target: (N,) class indices.
    """
    positive = target == 1
    if positive.all() or not positive.any():
        return None
    return _areas(logits[:, 1].astype(np.float64) - logits[:, 0], positive)[0]


def _areas(score: Array, positive: NDArray[np.bool_]) -> tuple[float, float]:
    right, wrong = positives_by_threshold(score, positive)
    gained, lost = np.diff(right, prepend=0), np.diff(wrong, prepend=0)
    # Sums of counts, divided once: rounding cannot lift a perfect order above 1.
    auroc = (lost * (right - gained / 2)).sum() / (right[-1] * max(wrong[-1], 1))  # ties count half
    return float(auroc), float((gained * (right / (right + wrong))).sum() / right[-1])


def positives_by_threshold(score: Array, positive: NDArray[np.bool_]) -> tuple[LabelArray, LabelArray]:
    """True and false positives at each different score as threshold, from the highest on.

    Args:
        score: (N,).
        positive: (N,), the samples to be found.
    """
    order = np.argsort(-score)
    ranked, right = score[order], np.cumsum(positive[order])
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of equal scores, which are taken together
    return right[last], 1 + last - right[last]


def matthews_correlation(predicted: LabelArray, target: LabelArray) -> float:
    """Matthews correlation coefficient, in [-1, 1]; 0 if all predictions are one class."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(target, predicted))


def class_calibration_error(p: Array, target: LabelArray) -> float:
    """Mean over the classes of the calibration error of their probabilities, in bins as of :func:`reliability`.

    Unlike :func:`expected_calibration_error` it takes every probability and not the largest of a sample alone.

    Reference: M. Kull et al., *Beyond Temperature Scaling*, NeurIPS 2019, equation 3.

    Example:
        >>> round(class_calibration_error(np.array([[0.75, 0.25], [0.25, 0.75]]), np.array([0, 0])), 6)
        0.5
    """
    gaps = [np.abs(np.bincount(_bins(q), q - (target == c))).sum() for c, q in enumerate(p.T)]
    return float(np.sum(gaps) / p.size)


def recall_per_class(predicted: LabelArray, target: LabelArray, classes: int) -> Array:
    """Recall of each class, (C,)."""
    totals = np.bincount(target, minlength=classes)
    if (totals == 0).any():
        raise ValueError(f"class {int(totals.argmin())} is missing from the test set; its accuracy is undefined")
    return np.bincount(target[predicted == target], minlength=classes) / totals


def macro_f1(predicted: LabelArray, target: LabelArray, classes: int) -> float:
    """Mean over the classes of 2 TP / (2 TP + FP + FN); 0 for a class that is never predicted.

    Example:
        >>> macro_f1(np.array([0, 0, 1]), np.array([0, 1, 1]), classes=2)
        0.6666666666666666
    """
    right = np.bincount(target[predicted == target], minlength=classes)
    named = np.bincount(predicted, minlength=classes) + np.bincount(target, minlength=classes)
    return float((2 * right / np.maximum(named, 1)).mean())


def expected_calibration_error(p: Array, target: LabelArray) -> float:
    """Mean gap between confidence and accuracy over the bins of :func:`reliability`, weighted by their samples.

    Reference: C. Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, equation 3.

    Example:
        >>> expected_calibration_error(np.array([[0.75, 0.25], [0.25, 0.75]]), np.array([0, 0]))
        0.25
    """
    samples, confidence, right = reliability(p, target).T
    return float(np.abs(confidence - right).sum() / samples.sum())


def reliability(p: Array, target: LabelArray) -> Array:
    """Data of a reliability diagram: samples, summed confidence and correct predictions per bin of confidence.

    Bins are closed on the right, (k / BINS, (k + 1) / BINS].

    Args:
        p: (N, C), probabilities.
        target: (N,) class indices.

    Returns:
        (BINS, 3): number of samples, sum of their confidences, number of correct ones.
    """
    confidence = p.max(1)
    weights = (np.ones(len(p)), confidence, p.argmax(1) == target)
    return np.stack([np.bincount(_bins(confidence), weights=weight, minlength=BINS) for weight in weights], axis=1)


def _bins(p: Array) -> NDArray[np.int64]:
    """Bin of each probability."""
    return np.clip(np.ceil(p * BINS).astype(np.int64) - 1, 0, BINS - 1)


def log_softmax(logits: Array) -> Array:
    """Log-probabilities over the last dimension."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
