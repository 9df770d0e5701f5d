"""Metrics of one run from the logits and targets of its test set."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cyclofocal.lab.longtail import ShotGroups

Array = NDArray[np.floating]
LabelArray = NDArray[np.integer]


@dataclass(frozen=True)
class Metric:
    """Name, unit and direction of a metric; values of percentages are stored as fractions."""

    key: str
    title: str
    short_title: str
    unit: str = "%"
    higher_is_better: bool = True

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
"""Key of the default primary metric."""

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
)
"""Metrics of :func:`compute_metrics`, in the order of tables."""


def compute_metrics(
    logits: Array, target: LabelArray, train_counts: Sequence[int], groups: ShotGroups
) -> dict[str, float | None]:
    """Compute :data:`METRICS` as fractions (nats for NLL); ``None`` for a shot group without classes.

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
    return {
        "accuracy": float((predicted == target).mean()),
        "balanced_accuracy": float(recall.mean()),
        "macro_f1": macro_f1(predicted, target, logits.shape[1]),
        **{name: float(recall[members].mean()) if members else None for name, members in shots.items()},
        "nll": float(-log_p[np.arange(len(target)), target].mean()),
        "brier": float(((p**2).sum(1) - 2 * p[np.arange(len(target)), target] + 1).mean()),
        "ece": expected_calibration_error(p, target),
    }


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
    bin_of = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    weights = (np.ones(len(p)), confidence, p.argmax(1) == target)
    return np.stack([np.bincount(bin_of, weights=weight, minlength=BINS) for weight in weights], axis=1)


def log_softmax(logits: Array) -> Array:
    """Log-probabilities over the last dimension."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
