"""Statistics of runs paired by seed: means, intervals, p values and verdicts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cyclofocal.lab.metrics import Array

ALPHA = 0.05
"""Significance level after correction; intervals have the level 1 - ALPHA."""

POWER = 0.8
"""Target power of :func:`required_pairs`."""

VERDICTS = ("significantly better", "significantly worse", "equivalent", "not significant", "too few seeds")

EXACT_PAIRS = 15
"""Most pairs for which all 2^n sign flips are counted; above, 19,999 random ones (fewer above 838 pairs)."""

TOLERANCE = 1e-9
"""Relative difference below which two sums are equal up to rounding."""


@dataclass(frozen=True)
class Estimate:
    """Mean and its 95 % interval, which is ``None`` below 2 runs; ``n`` counts seeds."""

    mean: float
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean paired difference.

    Attributes:
        p: two-sided, not corrected for several comparisons.
        effect: standardised mean difference of pairs: mean over standard deviation of the differences, which has no
            unit; None below 2 pairs and for differences that do not vary.
        overlapping: True for folds, whose p is Student's t and not that of sign flips.
    """

    estimate: Estimate
    p: float
    effect: float | None = None
    overlapping: bool = False


def estimate(values: Sequence[float], overlap: float = 0.0, seeds: int | None = None) -> Estimate:
    """Mean of values and its interval by Student's t.

    The interval is exact for normal values; ``docs/log.md`` has its measured coverage for others. Equal values have an
    interval of width 0, which does not cover seeds not run.

    Args:
        values: one per run.
        overlap: see :func:`standard_error`.
        seeds: number of seeds; default: one per value.

    Raises:
        ValueError: no value, or one that is not finite.

    Example:
        >>> estimate([1.0, 1.0, 1.0])
        Estimate(mean=1.0, interval=(1.0, 1.0), n=3)
    """
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"values are {list(values)}; at least one is needed, and all must be finite")
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean, None, 1)
    half = float(half_width(np.asarray(values, dtype=np.float64), overlap))
    return Estimate(mean, (mean - half, mean + half), seeds or len(values))


def half_width(values: Array, overlap: float = 0.0) -> Array:
    """Half the width of the 95 % interval of the mean over the first axis, by Student's t; 0 for a single value."""
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return np.zeros(values.shape[1:])
    return standard_error(values, overlap) * stdtrit(n - 1, 1 - ALPHA / 2)


def standard_error(values: Array, overlap: float = 0.0) -> Array:
    r"""Standard error of the mean over the first axis, of two or more values.

    .. math:: s \sqrt{1/k + n_{test} / n_{train}}

    Args:
        values: k of them, (k, ...).
        overlap: n_test / n_train of the folds of a cross-validation, which share training samples, so that their values
            depend on each other; 0 for independent values.

    Reference: C. Nadeau and Y. Bengio, *Inference for the Generalization Error*, Machine Learning 2003; for folds
    repeated over seeds R. Bouckaert and E. Frank, PAKDD 2004.
    """
    return values.std(0, ddof=1) * np.sqrt(1 / len(values) + overlap)


def paired_difference(differences: Sequence[float], overlap: float = 0.0, seeds: int | None = None) -> Difference:
    """Mean of paired differences, its interval, and the p of a sign-flip permutation test.

    Without a true difference both signs of each difference are equally likely; p is the fraction of all sign patterns
    whose mean is at least as far from 0 as the observed one. With n pairs it cannot be below 2 / 2^n.

    Signs of overlapping folds do not change independently; their p is that of Student's t with the standard error of
    :func:`standard_error`. Arguments as of :func:`estimate`.

    Example:
        >>> paired_difference([1.0, 1.0, 2.0]).p  # all three above 0: 2 of the 8 patterns
        0.25
    """
    values = np.asarray(differences, dtype=np.float64)
    p = _t_p(values, overlap) if overlap else _sign_flip_p(values)
    return Difference(estimate(differences, overlap, seeds), p, _effect(values), overlap > 0)


def _effect(differences: Array) -> float | None:
    spread = differences.std(ddof=1) if len(differences) > 1 else 0.0
    return float(differences.mean() / spread) if spread > TOLERANCE * np.abs(differences).max() else None


def _t_p(differences: Array, overlap: float) -> float:
    """Two-sided p of Student's t."""
    return min(1.0, 2 * _below(-abs(float(differences.mean())), differences, overlap))


def _below(distance: float, differences: Array, overlap: float) -> float:
    """Chance that the mean lies further below its true value than ``distance`` (negative), by Student's t."""
    from scipy.special import stdtr

    n = len(differences)
    if n < 2:
        return 1.0
    error = float(standard_error(differences, overlap))
    if error <= TOLERANCE * max(abs(distance), float(np.abs(differences).max())):
        return float(distance >= 0)
    return float(stdtr(n - 1, distance / error))


def equivalence_p(differences: Sequence[float], margin: float, overlap: float = 0.0) -> float:
    """P value of two one-sided t tests (TOST): small if the mean difference lies above -margin and below margin.

    The larger p of the two tests; below ALPHA exactly if the 90 % interval lies within the margin.

    Args:
        differences: one per pair.
        margin: > 0, largest difference that counts as none, declared in advance.
        overlap: see :func:`standard_error`.

    Example:
        >>> round(equivalence_p([0.1, -0.1, 0.2, 0.0], margin=0.5), 4)
        0.003

    Reference: D. Schuirmann, *A Comparison of the Two One-Sided Tests Procedure and the Power Approach*, 1987;
    D. Lakens, *Equivalence Tests*, 2017.
    """
    values = np.asarray(differences, dtype=np.float64)
    return _below(abs(float(values.mean())) - margin, values, overlap)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-corrected p values, which limit the chance of any false positive in the family to the significance level.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]

    Reference: S. Holm, *A Simple Sequentially Rejective Multiple Test Procedure*, 1979.
    """
    corrected, floor = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        floor = max(floor, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = floor
    return corrected


def minimum_pairs(comparisons: int) -> int:
    """Fewest pairs with which a sign-flip test can be significant after correction over ``comparisons``.

    Example:
        >>> minimum_pairs(1), minimum_pairs(4)
        (6, 8)
    """
    return int(np.ceil(np.log2(2 * max(comparisons, 1) / ALPHA)))


def required_pairs(differences: Sequence[float], comparisons: int = 1, overlap: float = 0.0) -> int | None:
    r"""Approximate number of pairs to detect the observed difference with the target power; None if it is 0.

    .. math:: n = \frac{(z_{1-\alpha/2} + z_{0.8})^2 s^2}{\bar d^2} + \frac{z_{1-\alpha/2}^2}{2}

    with :math:`\alpha` = 0.05 / comparisons and s the standard deviation of the differences: the pairs of a paired
    t-test, by a formula with an error below 1; never fewer than :func:`minimum_pairs`. The number is only as precise as
    the mean and s: a guide and not a promise.

    Of overlapping folds n is what 1 / (1/n - overlap) runs of them are worth; None if no number is enough.

    Example:
        >>> required_pairs([1.0, -0.5, 1.5, 0.0])
        29

    Reference: W. C. Guenther, *Sample Size Formulas for Normal Theory T Tests*, The American Statistician 1981.
    """
    from scipy.special import ndtri

    n, mean = len(differences), math.fsum(differences) / len(differences)
    if n < 2 or abs(mean) <= TOLERANCE * max(map(abs, differences)):
        return None
    variance = math.fsum((value - mean) ** 2 for value in differences) / (n - 1)
    z = ndtri(1 - ALPHA / max(comparisons, 1) / 2)
    pairs = (z + ndtri(POWER)) ** 2 * variance / mean**2 + z**2 / 2
    if overlap:
        return None if overlap * pairs >= 1 else max(math.ceil(1 / (1 / pairs - overlap)), 2)
    return max(math.ceil(pairs), minimum_pairs(comparisons))


def verdict(
    difference: Difference,
    corrected_p: float,
    comparisons: int,
    higher_is_better: bool,
    corrected_equivalence_p: float = 1.0,
) -> str:
    """One of :data:`VERDICTS`.

    Too few seeds come first, then significance: the corrected p is below ALPHA and the interval excludes 0. Equivalence
    is asked of the others alone, so a difference that is significant and within the margin is called significant.
    """
    if too_few(difference, comparisons):
        return "too few seeds"
    low, high = difference.estimate.interval or (0.0, 0.0)
    if corrected_p >= ALPHA or low <= 0 <= high:
        return "equivalent" if corrected_equivalence_p < ALPHA else "not significant"
    return "significantly better" if (low > 0) == higher_is_better else "significantly worse"


def too_few(difference: Difference, comparisons: int) -> bool:
    """True if no result could be significant: too few sign patterns, or a single pair of overlapping folds."""
    if difference.overlapping:
        return difference.estimate.interval is None
    return difference.estimate.n < minimum_pairs(comparisons)


def _sign_flip_p(differences: Array) -> float:
    """Two-sided p, equal to scipy.stats.permutation_test's and 50 times as fast."""
    n = len(differences)
    if n < 2:
        return 1.0
    seen = np.abs(differences.sum()) - TOLERANCE * np.abs(differences).sum()
    flips = _flips(n)
    extreme = int(np.count_nonzero(np.abs(differences @ flips) >= seen))
    return extreme / flips.shape[1] if n <= EXACT_PAIRS else (extreme + 1) / (flips.shape[1] + 1)


@lru_cache(maxsize=4)
def _flips(n: int) -> Array:
    """Sign patterns, (n, patterns)."""
    if n > EXACT_PAIRS:
        patterns = max(1_999, min(19_999, 2**24 // n))
        bits = np.random.default_rng(0).integers(0, 2, (n, patterns))
    else:  # the last sign stays: a pattern and its opposite are equally far from 0
        bits = np.arange(2 ** (n - 1)) >> np.arange(n)[:, None] & 1
    return np.where(bits, -1.0, 1.0)
