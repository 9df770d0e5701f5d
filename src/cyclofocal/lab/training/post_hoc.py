"""Changes to logits after training: class prior taken out, temperature, and threshold, chosen on validation data."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from cyclofocal import adjust_logits
from cyclofocal.lab.metrics import Array, LabelArray, probability_of

TAUS = tuple(tau / 10 for tau in range(21))
"""Strengths of the adjustment that are tried, 0 to 2."""

TEMPERATURES = (0.01, 100.0)
"""Least and largest temperature."""


class PostHoc(NamedTuple):
    """Choices made on validation data.

    Attributes:
        tau: strength of the adjustment; 1 without validation data.
        temperature: divisor of the logits; None without validation data.
        positive: class of the F1 of two classes, the rarer one in training, and the second if both are as frequent.
        threshold: probability of this class with the best F1; None without validation samples of both classes, and for
            more than two classes.
    """

    tau: float
    temperature: float | None
    positive: int
    threshold: float | None


def choose_post_hoc(logits: Array | None, target: LabelArray, counts: Sequence[int]) -> PostHoc:
    """Choose strength, temperature and threshold.

    Args:
        logits: (N, C), of the validation set; None without one.
        target: (N,) class indices.
        counts: training samples per class, length C.
    """
    positive = rarer_class(counts)
    if logits is None or not len(target):
        return PostHoc(1.0, None, positive, None)
    threshold = best_threshold(logits, target, positive) if len(counts) == len(set(target.tolist())) == 2 else None
    return PostHoc(best_tau(logits, target, counts), fit_temperature(logits, target), positive, threshold)


def rarer_class(counts: Sequence[int]) -> int:
    """The rarer of two classes in training, and the second if both are as frequent."""
    return 0 if counts[0] < counts[-1] else 1


def without_prior(logits: Array, counts: Sequence[int], tau: float = 1.0) -> Array:
    """Logits of :func:`cyclofocal.adjust_logits` in float64; a class without a training sample counts as one of one."""
    return adjust_logits(torch.from_numpy(logits).double(), counts, tau, allow_absent=True).numpy()


def best_tau(logits: Array, target: LabelArray, counts: Sequence[int]) -> float:
    """Strength in :data:`TAUS` of the highest balanced accuracy; of several equal ones that nearest to 1."""
    found = {tau: _balanced_accuracy(without_prior(logits, counts, tau), target) for tau in TAUS}
    return max(TAUS, key=lambda tau: (round(found[tau], 9), -abs(tau - 1)))


def _balanced_accuracy(logits: Array, target: LabelArray) -> float:
    """Balanced accuracy over the classes that occur."""
    totals = np.bincount(target)
    right = np.bincount(target[logits.argmax(1) == target], minlength=len(totals))
    return float((right[totals > 0] / totals[totals > 0]).mean())


def fit_temperature(logits: Array, target: LabelArray) -> float:
    """Temperature in :data:`TEMPERATURES` of the lowest negative log-likelihood.

    Reference: C. Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, section 4.2.
    """
    from scipy.optimize import minimize_scalar

    below = logits.astype(np.float64) - logits.max(1, keepdims=True)
    of_target = below[np.arange(len(target)), target].mean()

    def nll(x: float) -> float:
        scale = np.exp(-x)
        return float(np.log(np.exp(scale * below).sum(1)).mean() - scale * of_target)

    return float(np.exp(minimize_scalar(nll, bounds=np.log(TEMPERATURES), method="bounded").x))


def best_threshold(logits: Array, target: LabelArray, positive: int) -> float:
    """Probability of a class from which its F1 is best; of several equal ones the largest."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(target == positive, probability_of(logits, positive))
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    return float(thresholds[::-1][f1[-2::-1].argmax()])
