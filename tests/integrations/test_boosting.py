"""Promise: a booster gets the derivatives of the loss, and the Hessian is positive."""

import numpy as np
import pytest
import torch

from cyclofocal import BinaryCyclicalFocalLoss, CyclicalFocalLoss, binary_cyclical_focal_loss, cyclical_focal_loss
from cyclofocal.integrations.boosting import BoostedLoss, probabilities, sigmoid_derivatives, softmax_derivatives

PLAIN = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
STEP = 1e-3  # of the finite differences; their error is of the order of its square
SETTINGS = [
    {"eta": eta, "gamma_pos": gamma_pos, "gamma_neg": gamma_neg, "gamma_hc": gamma_hc, "label_smoothing": smoothing}
    for eta in (0.0, 0.3, 1.0)
    for gamma_pos, gamma_neg, gamma_hc in ((0.0, 0.0, 0.0), (2.0, 2.0, 3.0), (0.5, 4.0, 2.0))
    for smoothing in (0.0, 0.1)
]


def _second_differences(loss, scores):
    """d2/dz2 of the summed float64 loss, score by score."""
    hessian = np.empty_like(scores)
    for place in np.ndindex(scores.shape):
        around = []
        for step in (-STEP, 0, STEP):
            moved = scores.copy()
            moved[place] += step
            around.append(loss(torch.from_numpy(moved)).item())
        hessian[place] = (around[0] - 2 * around[1] + around[2]) / STEP**2
    return hessian


def _gradient(loss, scores):
    logits = torch.from_numpy(scores).requires_grad_()
    loss(logits).backward()
    return logits.grad.numpy()


def _check(derivatives, loss, scores, fixed):
    gradient, hessian = derivatives
    np.testing.assert_allclose(gradient, _gradient(loss, scores), rtol=1e-10, atol=1e-13)
    expected = np.maximum(_second_differences(loss, scores), fixed)
    np.testing.assert_allclose(hessian, expected, rtol=1e-4, atol=2e-6)
    assert (hessian > 0).all()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_sigmoid(settings, alpha):
    scores, target = np.linspace(-6, 6, 13).repeat(3), np.tile([0.0, 1.0, 0.3], 13)

    def loss(logits):
        pos_weight = torch.tensor(3.0, dtype=torch.float64)
        labels = torch.from_numpy(target)
        return binary_cyclical_focal_loss(
            logits, labels, reduction="sum", alpha=alpha, pos_weight=pos_weight, **settings
        )

    soft = target * (1 - settings["label_smoothing"]) + settings["label_smoothing"] / 2
    p, eta, gamma_hc = 1 / (1 + np.exp(-scores)), settings["eta"], settings["gamma_hc"]
    yes = (1 - eta) * (1 - p) ** settings["gamma_pos"] + eta * (1 + p) ** gamma_hc
    no = (1 - eta) * p ** settings["gamma_neg"] + eta * (2 - p) ** gamma_hc
    side_yes, side_no = (1, 1) if alpha is None else (alpha, 1 - alpha)
    fixed = p * (1 - p) * (soft * 3 * side_yes * yes + (1 - soft) * side_no * no)
    _check(sigmoid_derivatives(scores, target, alpha=alpha, pos_weight=3.0, **settings), loss, scores, fixed)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("weight", [None, np.array([1.0, 0.5, 2.0, 3.0])])
def test_softmax(settings, weight):
    scores = np.random.default_rng(0).normal(scale=3, size=(12, 4))
    target = np.arange(12) % 4
    class_weight = None if weight is None else torch.from_numpy(weight)

    def loss(logits):
        return cyclical_focal_loss(logits, torch.from_numpy(target), class_weight, reduction="sum", **settings)

    p, eta, true = probabilities(scores), settings["eta"], np.eye(4)[target]
    own = (1 - eta) * (1 - p) ** settings["gamma_pos"] + eta * (1 + p) ** settings["gamma_hc"]
    others = (1 - eta) * p ** settings["gamma_neg"] + eta
    share = true * (1 - settings["label_smoothing"]) + settings["label_smoothing"] / 4
    terms = share * np.where(true, own, others) * (1 if weight is None else weight)
    fixed = p * (1 - p) * terms.sum(1, keepdims=True)
    _check(softmax_derivatives(scores, target, weight, **settings), loss, scores, fixed)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_far_out_they_stay_finite_and_positive(settings):
    far = np.array([-2000.0, -800.0, -40.0, 40.0, 800.0, 2000.0])
    rows = np.stack([far, np.zeros(6), -far], 1)
    for target in (0, 1):
        for gradient, hessian in (
            sigmoid_derivatives(far, np.full(6, target), **settings),
            softmax_derivatives(rows, np.full(6, target), **settings),
        ):
            assert np.isfinite(gradient).all()
            assert np.isfinite(hessian).all()
            assert (hessian > 0).all()


def test_rows_are_weighted_and_the_log_loss_is_plain():
    scores, labels, weights = np.array([[0.0, 1, 2], [2, 0, 0]]), np.array([2.0, 0]), np.array([3.0, 1])
    loss = BoostedLoss(CyclicalFocalLoss(), num_boost_round=5)
    loss.set_round(1, boosters=2)
    plain, weighted = loss.derivatives(scores, labels, None), loss.derivatives(scores, labels, weights)
    for one, other in zip(plain, weighted, strict=True):
        np.testing.assert_allclose(other, one * weights[:, None])
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(scores), torch.from_numpy(labels).long(), reduction="none"
    )
    assert loss.log_loss(scores, labels, weights) == pytest.approx(np.average(expected, weights=weights), rel=1e-12)


@pytest.mark.parametrize(("scheme", "tau"), [(None, 1.0), ("balanced", 0.0), ("sqrt", 0.5), ("effective", 1.0)])
def test_class_weights_and_prior_enter_the_derivatives(prior_loss, scheme, tau):
    counts, labels = [500, 40, 9, 100], np.arange(12) % 4
    scores = np.random.default_rng(0).normal(size=(12, 4))
    loss = BoostedLoss(CyclicalFocalLoss.from_counts(counts, class_weight=scheme, tau=tau, **PLAIN), 5)
    loss.set_round(0)
    value, expected = prior_loss(scores, labels, counts, tau, scheme)
    gradient, hessian = loss.derivatives(scores, labels, None)
    mass = gradient[:, 0].sum() / expected[:, 0].sum()  # a booster sums
    np.testing.assert_allclose(gradient, expected * mass, rtol=1e-5)
    shifted = np.exp(scores) * np.asarray(counts) ** tau
    p = shifted / shifted.sum(1, keepdims=True)
    np.testing.assert_allclose(hessian * (p - np.eye(4)[labels]), gradient * p * (1 - p), rtol=1e-5)
    if scheme is None:
        assert loss.log_loss(scores, labels, None) == pytest.approx(value, rel=1e-6)


def test_both_sides_of_a_binary_loss_from_counts(prior_loss):
    scores, labels = np.linspace(-3, 3, 8), np.arange(8) % 2
    criterion = BinaryCyclicalFocalLoss.from_counts(9, 100, class_weight="balanced", tau=1.0, **PLAIN)
    loss = BoostedLoss(criterion, 5)
    loss.set_round(0)
    rows = np.stack([0 * scores, scores], 1)
    _, expected = prior_loss(rows, labels, [91, 9], 1.0, "balanced")
    gradient, _ = loss.derivatives(scores, labels, None)
    np.testing.assert_allclose(gradient / gradient[0], expected[:, 1] / expected[0, 1], rtol=1e-5)
    weights = np.array([2 * 9 / 100, 2 * 91 / 100])[labels]  # 1 / n, of mean 1
    p = 1 / (1 + 91 / 9 * np.exp(-scores))
    np.testing.assert_allclose(gradient, weights * (p - labels), rtol=1e-5)


@pytest.mark.parametrize("binary", [True, False])
def test_class_weights_start_late(binary):
    settings = {"class_weight": "balanced", "weight_start": 0.5}
    plain = BinaryCyclicalFocalLoss() if binary else CyclicalFocalLoss()
    late = (
        BinaryCyclicalFocalLoss.from_counts(1, 4, **settings)
        if binary
        else CyclicalFocalLoss.from_counts([3, 1], **settings)
    )
    scores, labels = np.zeros(2) if binary else np.zeros((2, 2)), np.array([0.0, 1.0])
    found = []
    for round_ in range(5):
        gradients = []
        for criterion in (plain, late):
            loss = BoostedLoss(criterion, 5)
            loss.set_round(round_)
            gradients.append(loss.derivatives(scores, labels, None)[0].reshape(2, -1)[:, -1])
        found.append(gradients[1] / gradients[0])
    np.testing.assert_allclose(found, [[1, 1]] * 2 + [[0.5, 1.5]] * 3, rtol=1e-6)


def test_a_round_is_taken_once_by_each_booster():
    loss, scores = BoostedLoss(BinaryCyclicalFocalLoss(), 10), np.zeros(2)
    for round_, boosters in ((0, 1), (1, 3), (2, 1)):
        loss.set_round(round_, boosters)
        for _ in range(boosters):
            loss.derivatives(scores, scores, None)
        with pytest.raises(RuntimeError, match="progress of this loss is never set"):
            loss.derivatives(scores, scores, None)


def test_a_wrong_call_is_refused():
    with pytest.raises(TypeError, match="CrossEntropyLoss"):
        BoostedLoss(torch.nn.CrossEntropyLoss(), 10)
    with pytest.raises(ValueError, match="has total_steps=10"):
        BoostedLoss(CyclicalFocalLoss(total_steps=10), 10)
    with pytest.raises(ValueError, match="num_boost_round is 0"):
        BoostedLoss(CyclicalFocalLoss(), 0)
    with pytest.raises(ValueError, match=r"probability_margin=0\.05"):
        BoostedLoss(BinaryCyclicalFocalLoss(probability_margin=0.05), 10)
    for name in ("weight", "pos_weight", "logit_offset"):
        with pytest.raises(ValueError, match=rf"{name} has shape \(2,\), but a booster of two classes"):
            BoostedLoss(BinaryCyclicalFocalLoss(**{name: torch.ones(2)}), 10)
    for name in ("weight", "logit_offset"):
        loss = BoostedLoss(CyclicalFocalLoss(**{name: torch.ones(2)}), 10)
        loss.set_round(0)
        with pytest.raises(ValueError, match=rf"{name} of the loss has shape \(2,\); num_class is 3"):
            loss.derivatives(np.zeros((2, 3)), np.zeros(2), None)
    with pytest.raises(ValueError, match=r"scores have shape \(3, 1\)"):
        probabilities(np.zeros((3, 1)))
    binary, several = BoostedLoss(BinaryCyclicalFocalLoss(), 10), BoostedLoss(CyclicalFocalLoss(), 10)
    with pytest.raises(RuntimeError, match="progress of this loss is never set"):
        binary.derivatives(np.zeros(2), np.zeros(2), None)
    binary.set_round(0)
    several.set_round(0)
    with pytest.raises(ValueError, match="for several classes give a CyclicalFocalLoss"):
        binary.derivatives(np.zeros((2, 3)), np.zeros(2), None)
    with pytest.raises(ValueError, match=r"labels range from 0\.0 to 2\.0"):
        binary.derivatives(np.zeros(2), np.array([0.0, 2]), None)
    with pytest.raises(ValueError, match="set num_class"):
        several.derivatives(np.zeros(2), np.zeros(2), None)
    with pytest.raises(ValueError, match="from 0 to num_class - 1 = 2"):
        several.derivatives(np.zeros((2, 3)), np.array([0.0, 3]), None)
