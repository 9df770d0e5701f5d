"""Numbers of one run: from logits and targets of the test set to a dictionary."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cyclofocal.lab.longtail import ShotGroups

Array = NDArray[np.floating]
Labels = NDArray[np.integer]


@dataclass(frozen=True)
class Metric:
    """How a number is named (``heading`` is the short form, with the unit), shown and judged."""

    key: str
    title: str
    heading: str
    higher_is_better: bool = True
    percent: bool = True


METRICS = (
    Metric("accuracy", "accuracy", "accuracy, %"),
    Metric("balanced_accuracy", "balanced accuracy", "balanced accuracy, %"),
    Metric("many", "many-shot accuracy", "many-shot, %"),
    Metric("medium", "medium-shot accuracy", "medium-shot, %"),
    Metric("few", "few-shot accuracy", "few-shot, %"),
    Metric("nll", "negative log-likelihood", "NLL, nats", higher_is_better=False, percent=False),
    Metric("ece", "calibration error", "ECE, %", higher_is_better=False),
)
"""Every number of :func:`evaluate`, in the order of tables."""


def evaluate(logits: Array, target: Labels, train_counts: Sequence[int], groups: ShotGroups) -> dict[str, float | None]:
    """Every metric of :data:`METRICS`, as fractions (nats for NLL); ``None`` for a shot group without classes.

    Args:
        logits: (N, C), the test set's.
        target: (N,) class indices; every class must occur.
        train_counts: training images per class, length C, which decide the shot groups.
        groups: the convention of the shot groups.

    Raises:
        ValueError: non-finite logits, or a class that is missing from the test set.
    """
    if not np.isfinite(logits).all():
        raise ValueError("logits hold a value that is not finite: the model has diverged")
    log_p = log_softmax(logits.astype(np.float64))
    recall = recall_per_class(log_p.argmax(1), target, logits.shape[1])
    shots = groups.classes_of(train_counts)
    return {
        "accuracy": float((log_p.argmax(1) == target).mean()),
        "balanced_accuracy": float(recall.mean()),
        **{name: float(recall[members].mean()) if members else None for name, members in shots.items()},
        "nll": float(-log_p[np.arange(len(target)), target].mean()),
        "ece": expected_calibration_error(np.exp(log_p), target),
    }


def recall_per_class(predicted: Labels, target: Labels, classes: int) -> Array:
    """Fraction of each class that is recognised, (C,)."""
    totals = np.bincount(target, minlength=classes)
    if (totals == 0).any():
        raise ValueError(f"class {int(totals.argmin())} is missing from the test set; its accuracy is undefined")
    return np.bincount(target[predicted == target], minlength=classes) / totals


def expected_calibration_error(p: Array, target: Labels, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence, weighted by their samples.

    Bins are closed on the right, (k/bins, (k+1)/bins].

    Reference: C. Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, equation 3.

    Example:
        >>> expected_calibration_error(np.array([[0.75, 0.25], [0.25, 0.75]]), np.array([0, 0]))
        0.25
    """
    confidence, correct = p.max(1), p.argmax(1) == target
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(target))


def log_softmax(logits: Array) -> Array:
    """Log-probabilities over the last dimension."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
