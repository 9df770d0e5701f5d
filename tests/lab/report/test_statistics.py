"""Promise: means, intervals and p values equal those by hand and by scipy; little data gives no verdict."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cyclofocal.lab.report.statistics import (
    Difference,
    Estimate,
    equivalence_p,
    estimate,
    holm,
    minimum_pairs,
    paired_difference,
    required_pairs,
    verdict,
)

FINITE = st.floats(-1e3, 1e3)


def p_by_hand(differences):
    seen = abs(sum(differences))
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    extreme = sum(abs(sum(s * d for s, d in zip(p, differences, strict=True))) >= seen - 1e-9 for p in patterns)
    return extreme / len(patterns)


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=8))
def test_p_counts_every_sign_pattern(differences):
    p = paired_difference([float(d) for d in differences]).p
    assert p == pytest.approx(p_by_hand(differences))


def test_ten_pairs_of_one_sign_have_the_smallest_p():
    assert paired_difference(list(range(1, 11))).p == pytest.approx(2 / 2**10)


def test_sampled_sign_flips_approximate_the_exact_p():
    rng = np.random.default_rng(0)
    differences = rng.normal(0.3, 1.0, size=18)
    p = paired_difference(differences.tolist()).p
    assert p == pytest.approx(p_by_hand(differences.tolist()), abs=0.005)


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=6))
def test_swapped_sides_negate_the_difference(pairs):
    there = paired_difference([value - reference for value, reference in pairs])
    back = paired_difference([reference - value for value, reference in pairs])
    assert there.estimate.mean == pytest.approx(-back.estimate.mean)
    assert there.p == pytest.approx(back.p)


def test_pairing_removes_the_variance_that_seeds_share():
    shared = np.random.default_rng(0).normal(0, 100, size=12)
    difference = paired_difference((shared + 1 + np.arange(12) / 100 - shared).tolist())
    assert difference.estimate.interval[0] > 1
    assert difference.estimate.interval[1] < 1.12


def test_intervals_have_their_nominal_coverage():
    for n in (6, 8, 20):
        samples = np.random.default_rng(0).normal(5, 1, size=(2000, n))
        holds = [low <= 5 <= high for low, high in (estimate(sample).interval for sample in samples.tolist())]
        assert 0.93 <= np.mean(holds) <= 0.97


def test_interval_is_the_same_every_time():
    values = np.random.default_rng(1).normal(size=10).tolist()
    assert estimate(values) == estimate(values)


@pytest.mark.parametrize("n", [2, 5, 12, 40])
def test_intervals_are_those_of_scipy(n):
    for sample in np.random.default_rng(2).gamma(2.0, 1000, size=(4, n)):
        theirs = stats.t.interval(0.95, n - 1, loc=sample.mean(), scale=stats.sem(sample))
        assert estimate(sample.tolist()).interval == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("n", [4, 9])
def test_p_is_that_of_scipys_permutation_test(n):
    sample = np.random.default_rng(n).normal(0.5, 1, size=n)
    theirs = stats.permutation_test((sample,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert paired_difference(sample.tolist()).p == pytest.approx(theirs.pvalue)


def test_many_pairs_have_the_interval_of_the_normal_distribution():
    difference = paired_difference(np.random.default_rng(0).normal(0.5, 1, size=400).tolist())
    low, high = difference.estimate.interval
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.1)
    assert difference.p < 0.001


def test_required_pairs_give_the_target_power():
    differences = [1.0, -0.5, 1.5, 0.0, 0.4]
    n = required_pairs(differences, comparisons=3)
    size = np.mean(differences) / np.std(differences, ddof=1)
    limit = stats.t.ppf(1 - 0.05 / 3 / 2, n - 1)
    assert stats.nct.sf(limit, n - 1, size * np.sqrt(n)) == pytest.approx(0.8, abs=0.03)


def test_required_pairs_of_no_and_of_a_clear_difference():
    assert required_pairs([1.0, -1.0]) is None
    assert required_pairs([0.0, 0.0]) is None
    assert required_pairs([1.0]) is None
    assert required_pairs([1.0, 1.001, 0.999], comparisons=4) == minimum_pairs(4)


def test_one_run_has_no_interval_and_equal_runs_one_of_width_0():
    assert estimate([3.0]) == Estimate(3.0, None, 1)
    assert estimate([3.0, 3.0]) == Estimate(3.0, (3.0, 3.0), 2)


def test_values_without_a_mean_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        estimate([])
    with pytest.raises(ValueError, match="finite"):
        estimate([1.0, float("nan")])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_preserves_order_and_never_lowers_p(p_values):
    corrected = holm(p_values)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    assert [corrected[i] for i in np.argsort(p_values)] == sorted(corrected)


def test_minimum_pairs_is_where_significance_begins():
    for comparisons in (1, 3, 4, 21):
        n = minimum_pairs(comparisons)
        assert comparisons * 2 / 2**n <= 0.05 < comparisons * 2 / 2 ** (n - 1)


@given(st.lists(st.integers(-9, 9), min_size=3, max_size=12), st.sampled_from([0.5, 2.0, 6.0]))
def test_equivalence_is_both_one_sided_tests_of_scipy(whole, margin):
    d = np.array(whole, dtype=float)
    if d.std() == 0:
        assert equivalence_p(d.tolist(), margin) == float(abs(d[0]) >= margin)
        return
    above = stats.ttest_1samp(d, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(d, margin, alternative="less").pvalue
    assert equivalence_p(d.tolist(), margin) == pytest.approx(max(above, below), abs=1e-12)


def test_the_effect_is_mean_over_standard_deviation():
    assert paired_difference([1.0, 2.0, 3.0]).effect == pytest.approx(2.0)
    assert paired_difference([1.0, 1.0]).effect is None
    assert paired_difference([1.0]).effect is None


def test_required_pairs_of_folds_reach_the_same_standard_error():
    differences = [1.0, -0.5, 1.5, 0.3, 0.4]
    alone, folds = required_pairs(differences), required_pairs(differences, overlap=0.01)
    assert 1 / folds + 0.01 <= 1 / (alone - 1)
    assert 1 / (folds - 1) + 0.01 > 1 / alone
    assert required_pairs(differences, overlap=0.3) is None


def test_significance_comes_before_equivalence():
    clear = Difference(Estimate(0.1, (0.05, 0.15), 10), 0.002)
    level = Difference(Estimate(0.0, (-0.05, 0.05), 10), 0.9)
    assert verdict(clear, 0.004, 2, True, corrected_equivalence_p=0.001) == "significantly better"
    assert verdict(level, 0.9, 2, True, corrected_equivalence_p=0.001) == "equivalent"
    assert verdict(level, 0.9, 2, True, corrected_equivalence_p=0.05) == "not significant"
    few = Difference(Estimate(0.0, (-0.05, 0.05), 5), 0.9)
    assert verdict(few, 0.9, 2, True, corrected_equivalence_p=0.001) == "too few seeds"
    folds = Difference(Estimate(0.1, (0.05, 0.15), 1), 0.002, overlapping=True)
    assert verdict(folds, 0.004, 2, True) == "significantly better"


def test_verdict_needs_seeds_p_and_interval():
    clear = Difference(Estimate(1.0, (0.5, 1.5), 10), 0.002)
    assert verdict(clear, 0.04, 21, higher_is_better=True) == "significantly better"
    assert verdict(clear, 0.04, 21, higher_is_better=False) == "significantly worse"
    assert verdict(clear, 0.06, 21, higher_is_better=True) == "not significant"
    assert (
        verdict(Difference(Estimate(1.0, (-0.1, 1.5), 10), 0.002), 0.04, 21, higher_is_better=True) == "not significant"
    )
    assert verdict(Difference(Estimate(1.0, (0.5, 1.5), 9), 0.002), 0.04, 21, higher_is_better=True) == "too few seeds"
