"""Property: what is chosen on validation data is the best there, and the prior is taken out as written."""

import math

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import balanced_accuracy_score, f1_score, matthews_corrcoef

from cyclofocal.lab.metrics import probability_of
from cyclofocal.lab.training.post_hoc import (
    TAUS,
    PostHoc,
    best_tau,
    best_thresholds,
    choose_post_hoc,
    fit_temperature,
    without_prior,
)

COUNTS = [80, 15, 5]


@pytest.fixture
def validation():
    rng = np.random.default_rng(0)
    target = np.concatenate([np.arange(3), rng.choice(3, size=297, p=[0.8, 0.15, 0.05])])
    logits = rng.normal(size=(300, 3)) + 1.5 * np.eye(3)[target] + np.log(COUNTS)
    return (2.5 * logits).astype(np.float32), target


def test_the_temperature_has_the_lowest_nll_of_a_grid(validation):
    logits, target = validation
    grid = np.exp(np.linspace(math.log(0.01), math.log(100), 4001))
    nll = [-log_softmax(logits.astype(float) / t, axis=1)[np.arange(300), target].mean() for t in grid]
    assert fit_temperature(logits, target) == pytest.approx(grid[np.argmin(nll)], rel=0.005)
    assert 1 < grid[np.argmin(nll)] < 10


def test_extreme_logits_have_a_temperature():
    assert fit_temperature(np.array([[0.0, 1e4], [1e4, 0.0]]), np.array([1, 0])) < 100
    assert fit_temperature(np.zeros((2, 2)), np.array([1, 0])) > 0
    assert fit_temperature(np.array([[0.0, 1e4], [1e4, 0.0]]), np.array([0, 1])) == pytest.approx(100, rel=1e-3)


def test_tau_1_is_less_the_log_prior(validation):
    logits, _ = validation
    by_hand = [[z - math.log(n / 100) for z, n in zip(row, COUNTS, strict=True)] for row in logits.tolist()]
    np.testing.assert_allclose(without_prior(logits, COUNTS), by_hand, rtol=1e-12)
    assert np.isfinite(without_prior(logits, [99, 1, 0])).all()


def test_tau_has_the_best_balanced_accuracy(validation):
    logits, target = validation
    scores = {
        tau: balanced_accuracy_score(target, (logits - tau * np.log(np.array(COUNTS) / 100)).argmax(1)) for tau in TAUS
    }
    chosen = best_tau(logits, target, COUNTS)
    assert scores[chosen] == max(scores.values()) > scores[0]


def test_ties_give_the_tau_nearest_to_1():
    assert best_tau(1e6 * np.eye(3), np.arange(3), COUNTS) == 1.0


MEASURES = {"balanced_accuracy": balanced_accuracy_score, "f1": f1_score, "mcc": matthews_corrcoef}


@pytest.mark.parametrize("decimals", [1, 12])  # with many equal probabilities, and without
@pytest.mark.parametrize("positive", [0, 1])
def test_each_threshold_is_the_best_of_all_for_its_measure(decimals, positive):
    rng = np.random.default_rng(1)
    target = (rng.random(200) < 0.15).astype(int)
    logits = np.stack([np.zeros(200), (rng.normal(size=200) + 2 * target - 2).round(decimals)], axis=1)
    p = softmax(logits, axis=1)[:, positive]
    truth = (target == positive).astype(int)
    found = best_thresholds(logits, target, positive)
    for name, measure in MEASURES.items():
        best = max(measure(truth, (p >= t).astype(int)) for t in p)
        assert measure(truth, (p >= found[name]).astype(int)) == pytest.approx(best), name
    assert len(set(found.values())) > 1


def test_thresholds_lie_midway_between_probabilities():
    target, p = np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.2, 0.2, 0.6, 0.8])
    found = best_thresholds(np.log(np.stack([1 - p, p], axis=1)), target, positive=1)
    assert found == pytest.approx(dict.fromkeys(MEASURES, 0.4))


def test_equally_good_thresholds_give_the_nearest_to_a_half():
    p, target = np.array([0.9, 0.7, 0.3, 0.1]), np.array([1, 0, 1, 0])  # one right first, or both and one wrong
    found = best_thresholds(np.log(np.stack([1 - p, p], axis=1)), target, positive=1)
    assert found["balanced_accuracy"] == pytest.approx(0.8)
    assert best_thresholds(np.zeros((4, 2)), target, positive=1) == dict.fromkeys(MEASURES, 0.0)


def test_neighbouring_probabilities_are_divided():
    """Midway between two neighbouring floats there is none, and rounding could take the lower one."""
    logits = np.stack([np.zeros(2000), np.linspace(-1e-13, 1e-13, 2000)], axis=1)
    p, first = np.unique(probability_of(logits, 1), return_index=True)
    lower = np.flatnonzero(np.nextafter(p[:-1], 1) == p[1:])
    assert len(lower) > 10
    for k in lower[:10]:
        pair = logits[[first[k + 1], first[k]]]
        threshold = best_thresholds(pair, np.array([1, 0]), positive=1)["f1"]
        assert (probability_of(pair, 1) >= threshold).tolist() == [True, False]


def test_without_validation_data_there_is_tau_1_alone(validation):
    assert choose_post_hoc(None, np.zeros(0, int), COUNTS) == PostHoc(1.0, None, 1, {})
    assert choose_post_hoc(*validation, COUNTS).threshold is None


def test_the_positive_class_is_the_rarer_one():
    logits, target = np.eye(2), np.arange(2)
    assert [choose_post_hoc(logits, target, c).positive for c in ([9, 5], [5, 9], [7, 7])] == [1, 0, 1]
    assert choose_post_hoc(logits, np.zeros(2, int), [9, 5]).threshold is None
