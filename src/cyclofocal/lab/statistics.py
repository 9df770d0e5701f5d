"""Many runs, paired by seed: means, intervals, differences, and whether anything can be concluded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.05
"""Of the corrected p; the intervals are at 1 - LEVEL."""

EXACT_PAIRS = 15
"""Up to so many pairs every one of the 2^n sign flips is counted; above, 100,000 random ones."""


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` runs with its 95 % interval, which is ``None`` below 2 runs."""

    mean: float
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A mean paired difference; ``p`` is two-sided and not corrected."""

    estimate: Estimate
    p: float


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and BCa bootstrap interval (bias-corrected and accelerated, 9,999 resamples, fixed seed).

    Values that are all equal have an interval of width 0, so they say nothing about seeds not run.

    Raises:
        ValueError: no value, or one that is not finite.

    Example:
        >>> estimate([1.0, 1.0, 1.0])
        Estimate(mean=1.0, interval=(1.0, 1.0), n=3)

    Reference: B. Efron, *Better Bootstrap Confidence Intervals*, JASA 1987.
    """
    sample = np.asarray(values, dtype=np.float64)
    if not len(sample) or not np.isfinite(sample).all():
        raise ValueError(f"values are {list(values)}; at least one is needed, and all must be finite")
    mean = float(sample.mean())
    if len(sample) < 2:
        return Estimate(mean, None, len(sample))
    if np.ptp(sample) <= 1e-12 * max(1.0, float(np.abs(sample).max())):
        return Estimate(mean, (mean, mean), len(sample))
    return Estimate(mean, _bca_interval(sample), len(sample))


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Mean of ``values - reference``, run by run, with interval and sign-flip permutation p.

    If neither is better, the sign of each pair's difference is a coin's; p is the share of all sign patterns whose
    mean is at least as far from 0 as the one seen. With n pairs it cannot go below 2 / 2^n.

    Raises:
        ValueError: the two do not pair up.

    Example:
        >>> paired_difference([2.0, 3.0, 4.0], [1.0, 2.0, 2.0]).p  # all three above: 2 of the 8 patterns
        0.25
    """
    if len(values) != len(reference):
        raise ValueError(f"values has {len(values)} runs, reference {len(reference)}; pairs need one each")
    differences = np.asarray(values, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    return Difference(estimate(differences.tolist()), _sign_flip_p(differences))


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected p of each: below 0.05 anywhere happens by chance to at most 5 % of families without a difference.

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


def pairs_needed(comparisons: int) -> int:
    """Fewest pairs with which a sign-flip test can be significant after correction over ``comparisons``.

    Example:
        >>> pairs_needed(1), pairs_needed(4)
        (6, 8)
    """
    return int(np.ceil(np.log2(2 * max(comparisons, 1) / LEVEL)))


def verdict(difference: Difference, corrected_p: float, comparisons: int, higher_is_better: bool) -> str:
    """One of "better", "worse", "unclear", and "too few" where so few pairs could not have shown anything."""
    if difference.estimate.n < pairs_needed(comparisons):
        return "too few"
    low, high = difference.estimate.interval or (0.0, 0.0)
    if corrected_p >= LEVEL or low <= 0 <= high:
        return "unclear"
    return "better" if (low > 0) == higher_is_better else "worse"


def _bca_interval(sample: Array) -> tuple[float, float]:
    from scipy import stats

    result = stats.bootstrap(
        (sample,), np.mean, method="BCa", confidence_level=1 - LEVEL, n_resamples=9999, rng=np.random.default_rng(0)
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _sign_flip_p(differences: Array) -> float:
    from scipy import stats

    if len(differences) < 2 or not differences.any():
        return 1.0
    flips = np.inf if len(differences) <= EXACT_PAIRS else 99_999
    result = stats.permutation_test(
        (differences,),
        lambda sample, axis: np.mean(sample, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=flips,
        batch=10_000,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)
