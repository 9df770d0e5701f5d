"""Changes to logits after training: class prior taken out, temperature, and thresholds, chosen on validation data."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from cyclofocal import adjust_logits
from cyclofocal.lab.longtail import rarer_class
from cyclofocal.lab.metrics import Array, LabelArray, positives_by_threshold, probability_of, threshold_scores

TAUS = tuple(tau / 10 for tau in range(21))
"""Strengths of the adjustment that are tried, 0 to 2."""

TEMPERATURES = (0.01, 100.0)
"""Least and largest temperature."""

TIE = 1e-12
"""Difference of scores that is one of rounding."""


class PostHoc(NamedTuple):
    """Choices made on validation data.

    Attributes:
        tau: strength of the adjustment; 1 without validation data.
        temperature: divisor of the logits; None without validation data.
        positive: the rarer of two classes in training, and the second if both are as frequent.
        thresholds: probability of this class from which it is predicted, the best for each measure of
            :data:`~cyclofocal.lab.metrics.THRESHOLDS`; empty without validation samples of both classes, and for more
            than two classes.
    """

    tau: float
    temperature: float | None
    positive: int
    thresholds: dict[str, float]

    @property
    def threshold(self) -> float | None:
        """The one of the best F1; None without."""
        return self.thresholds.get("f1")


def choose_post_hoc(logits: Array | None, target: LabelArray, counts: Sequence[int]) -> PostHoc:
    """Choose strength, temperature and thresholds.

    Args:
        logits: (N, C), of the validation set; None without one.
        target: (N,) class indices.
        counts: training samples per class, length C.
    """
    positive = rarer_class(counts)
    if logits is None or not len(target):
        return PostHoc(1.0, None, positive, {})
    thresholds = best_thresholds(logits, target, positive) if len(counts) == len(set(target.tolist())) == 2 else {}
    return PostHoc(best_tau(logits, target, counts), fit_temperature(logits, target), positive, thresholds)


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


def best_thresholds(logits: Array, target: LabelArray, positive: int) -> dict[str, float]:
    """Probability of a class from which it is predicted, the best for each measure of two classes.

    Candidates lie midway between neighbouring probabilities, so that rounding on another machine moves no sample
    across; samples of equal probability are never divided. The last candidate, 0, predicts the class for every sample.
    Of several equally good ones the nearest to 0.5 is chosen, the larger if two are as near.

    Args:
        logits: (N, 2).
        target: (N,) class indices; both must occur.
        positive: the class.

    Returns:
        Thresholds by measure of :data:`~cyclofocal.lab.metrics.THRESHOLDS`, in [0, 1].
    """
    p, of_class = probability_of(logits, positive), target == positive
    right, wrong = positives_by_threshold(p, of_class)
    above = np.unique(p)[::-1]
    below = np.append(above[1:], 0.0)
    middle = (above + below) / 2
    cuts = np.where(middle > below, middle, above)  # between neighbouring floats there is none
    cuts[-1] = 0.0
    scores = threshold_scores(right, wrong, right[-1], wrong[-1])
    from_half = np.abs(cuts - 0.5)
    best = {name: np.flatnonzero(found >= found.max() - TIE) for name, found in scores.items()}
    return {name: float(cuts[places[from_half[places].argmin()]]) for name, places in best.items()}
