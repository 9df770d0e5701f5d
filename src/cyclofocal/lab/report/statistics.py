"""Many runs, paired by seed: means, intervals, differences, and whether anything can be concluded."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.05
"""Of the corrected p; the intervals are at 1 - LEVEL."""

POWER = 0.8
"""Chance of showing a difference that is there, with the pairs that :func:`pairs_to_resolve` asks for."""

RESAMPLES = 9_999

EXACT_PAIRS = 15
"""Up to so many pairs every one of the 2^n sign flips is counted; above, 100,000 random ones (fewer above 167)."""

FEW_KINDS = 7
"""Up to so many values resamples repeat so often that it is faster to count the different ones, 1,716 at most."""

TIE = 1e-9
"""Of the spread: sums closer than this are equal, and differ only by the rounding of floats."""

CHUNK = 2**21
"""Numbers in memory at a time, 16 MiB."""


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

    The bootstrap alone takes few values for less spread than they are; its level is raised as Student's t asks for, or
    the interval of 8 normal values would hold their mean 88 times of 100 instead of 95. Below 6 values it ends at the
    least and the greatest, which is less than it says. Values that are all equal have an interval of width 0, so they
    say nothing about seeds not run.

    Raises:
        ValueError: no value, or one that is not finite.

    Example:
        >>> estimate([1.0, 1.0, 1.0])
        Estimate(mean=1.0, interval=(1.0, 1.0), n=3)

    Reference: B. Efron, *Better Bootstrap Confidence Intervals*, JASA 1987; T. Hesterberg, *What Teachers Should Know
    About the Bootstrap*, The American Statistician 2015, for the level.
    """
    return estimates([values])[0]


def estimates(samples: Sequence[Sequence[float]]) -> list[Estimate]:
    """:func:`estimate` of each sample; samples of equal length share their resamples, which is what makes it fast."""
    for sample in samples:
        if not len(sample) or not np.isfinite(sample).all():
            raise ValueError(f"values are {list(sample)}; at least one is needed, and all must be finite")
    bounds = _by_length(samples, _bca_intervals)
    means = [math.fsum(sample) / len(sample) for sample in samples]
    return [
        Estimate(mean, (float(low), float(high)) if len(sample) > 1 else None, len(sample))
        for mean, sample, (low, high) in zip(means, samples, bounds, strict=True)
    ]


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
    return differences([(np.asarray(values, dtype=np.float64) - np.asarray(reference, dtype=np.float64)).tolist()])[0]


def differences(samples: Sequence[Sequence[float]]) -> list[Difference]:
    """:func:`paired_difference` of each sample of differences."""
    p_values = _by_length(samples, _sign_flip_p)
    return [Difference(value, float(p)) for value, p in zip(estimates(samples), p_values, strict=True)]


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


def pairs_to_resolve(differences: Sequence[float], comparisons: int = 1) -> int | None:
    r"""About how many pairs would show a difference of the size seen, in 4 of 5 attempts; None where it is 0.

    .. math:: n = \frac{(z_{1-\alpha/2} + z_{0.8})^2 s^2}{\bar d^2} + \frac{z_{1-\alpha/2}^2}{2}

    with :math:`\alpha` = 0.05 / comparisons and s the standard deviation of the differences: a paired t-test's pairs,
    by a formula that is off by less than 1; never fewer than :func:`pairs_needed`. Known only as well as the mean and
    s are, so it is a guide and not a promise.

    Example:
        >>> pairs_to_resolve([1.0, -0.5, 1.5, 0.0])
        29

    Reference: W. C. Guenther, *Sample Size Formulas for Normal Theory T Tests*, The American Statistician 1981.
    """
    from scipy.special import ndtri

    n, mean = len(differences), math.fsum(differences) / len(differences)
    if n < 2 or abs(mean) <= TIE * max(map(abs, differences)):
        return None
    variance = math.fsum((value - mean) ** 2 for value in differences) / (n - 1)
    z = ndtri(1 - LEVEL / max(comparisons, 1) / 2)
    pairs = (z + ndtri(POWER)) ** 2 * variance / mean**2 + z**2 / 2
    return max(math.ceil(pairs), pairs_needed(comparisons))


def verdict(difference: Difference, corrected_p: float, comparisons: int, higher_is_better: bool) -> str:
    """One of "better", "worse", "unclear", and "too few" where so few pairs could not have shown anything."""
    if difference.estimate.n < pairs_needed(comparisons):
        return "too few"
    low, high = difference.estimate.interval or (0.0, 0.0)
    if corrected_p >= LEVEL or low <= 0 <= high:
        return "unclear"
    return "better" if (low > 0) == higher_is_better else "worse"


def _by_length(samples: Sequence[Sequence[float]], numbers: Callable[[Array], Array]) -> list:
    """``numbers`` of all samples of one length at a time, (cells, n), in chunks; in the order of the samples."""
    found: list = [None] * len(samples)
    for n in {len(sample) for sample in samples}:
        places = [index for index, sample in enumerate(samples) if len(sample) == n]
        size = max(1, CHUNK // max(RESAMPLES, _patterns(n)))
        for some in (places[start : start + size] for start in range(0, len(places), size)):
            for place, number in zip(some, numbers(np.array([samples[index] for index in some])), strict=True):
                found[place] = number
    return found


def _bca_intervals(samples: Array) -> Array:
    """(cells, 2). scipy.stats.bootstrap's numbers, but 20 times as fast: all cells in one product of matrices."""
    from scipy.special import ndtr, ndtri

    cells, n = samples.shape
    spread = np.ptp(samples, axis=1, keepdims=True)
    if n < 2 or cells == 0:
        return np.repeat(samples[:, :1], 2, axis=1)
    counts, times = _counts(n)
    shifted = samples - samples[:, :1]
    total, sums, tie = shifted.sum(1, keepdims=True), shifted @ counts, TIE * n * spread
    below = (_how_many(sums < total - tie, times) + _how_many(sums <= total + tie, times)) / (2 * RESAMPLES)
    inner = total / n - shifted  # of the jackknife: means without one value about their mean, times n - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        acceleration = -(inner**3).sum(1) / (6 * (inner**2).sum(1) ** 1.5)
        z0 = ndtri(below)
        z = z0 + _reach(n) * np.array([[-1.0], [1.0]])
        share = ndtr(z0 + z / (1 - acceleration * z)).T
    constant = spread[:, 0] <= 1e-12 * np.maximum(1.0, np.abs(samples).max(1))
    share[constant] = 0.5
    bounds = samples[:, :1] + _quantiles(sums, times, share) / n
    return np.where(constant[:, None], samples.mean(1, keepdims=True), bounds)


def _reach(n: int) -> float:
    """Of the interval of n values, in standard deviations of their resampled mean, which lacks a factor itself."""
    from scipy.special import stdtrit

    return float(math.sqrt(n / (n - 1)) * stdtrit(n - 1, 1 - LEVEL / 2))


def _how_many(kinds: NDArray[np.bool_], times: Array) -> Array:
    """Resamples of these kinds, (cells,)."""
    return np.count_nonzero(kinds, axis=1) if len(times) == RESAMPLES else kinds @ times


@lru_cache(maxsize=4)
def _counts(n: int) -> tuple[Array, Array]:
    """How often each of n values is in each resample, (n, kinds), and how often each kind was drawn."""
    drawn = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    places = (drawn + n * np.arange(RESAMPLES)[:, None]).ravel()
    counts = np.bincount(places, minlength=n * RESAMPLES).reshape(RESAMPLES, n).astype(np.float64)
    if n > FEW_KINDS:
        return np.ascontiguousarray(counts.T), np.ones(RESAMPLES)
    kinds, times = np.unique(counts, axis=0, return_counts=True)
    return np.ascontiguousarray(kinds.T), times.astype(np.float64)


def _quantiles(sums: Array, times: Array, share: Array) -> Array:
    """Linear between the ordered values of each row, each as often as it was drawn, as numpy has it; sorts ``sums``."""
    place = share * (RESAMPLES - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, RESAMPLES - 1)
    weight = place - low
    if len(times) == RESAMPLES:
        sums.sort(axis=1)
    else:
        order = np.argsort(sums, axis=1)
        sums, ends = np.take_along_axis(sums, order, axis=1), times[order].cumsum(1)
        low, high = ((ends[:, None, :] <= index[:, :, None]).sum(2) for index in (low, high))
    least, most = np.take_along_axis(sums, low, axis=1), np.take_along_axis(sums, high, axis=1)
    return least + weight * (most - least)


def _patterns(n: int) -> int:
    """How many sign patterns are counted."""
    return 2 ** max(n - 1, 0) if n <= EXACT_PAIRS else max(1_999, min(19_999, 2**24 // n))


def _sign_flip_p(samples: Array) -> Array:
    """(cells,). scipy.stats.permutation_test's numbers, all cells in one product of matrices."""
    cells, n = samples.shape
    if n < 2:
        return np.ones(cells)
    seen = np.abs(samples.sum(1, keepdims=True)) - TIE * np.abs(samples).sum(1, keepdims=True)
    extreme = (np.abs(samples @ _flips(n)) >= seen).sum(1)
    return extreme / _patterns(n) if n <= EXACT_PAIRS else (extreme + 1) / (_patterns(n) + 1)


@lru_cache(maxsize=4)
def _flips(n: int) -> Array:
    """Signs, (n, patterns)."""
    if n > EXACT_PAIRS:
        bits = np.random.default_rng(0).integers(0, 2, (n, _patterns(n)))
    else:  # the last sign stays: a pattern and its opposite are equally far from 0
        bits = np.arange(_patterns(n)) >> np.arange(n)[:, None] & 1
    return np.where(bits, -1.0, 1.0)
