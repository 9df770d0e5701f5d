"""Classifiers made anew on frozen features reach what their papers define."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from cyclofocal import CyclicalFocalLoss, adjust_logits
from cyclofocal.lab.oltr.decoupled import (
    PLAIN_SAMPLING,
    FitConfig,
    fit_crt,
    fit_lws,
    tau_normalised,
)

COUNTS = [200, 60, 12]
CROSS_ENTROPY = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
FIT = FitConfig(epochs=40, batch_size=32, learning_rate=0.1, weight_decay=0.0)


@pytest.fixture(scope="module")
def training():
    """Overlapping clouds, one per class."""
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    centres = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    generator = torch.Generator().manual_seed(0)
    return centres[labels] + torch.randn(len(labels), 2, generator=generator), labels


def balanced_nll(logits, labels):
    """Mean over the classes of the mean over a class's images."""
    losses = -logits.double().log_softmax(1)[torch.arange(len(labels)), labels]
    return np.mean([losses[labels == c].mean().item() for c in range(3)])


def test_retraining_reaches_the_optimum_that_scikit_learn_finds(training):
    features, labels = training
    model = LogisticRegression(C=1e6, class_weight="balanced").fit(features.numpy(), labels.numpy())
    best = balanced_nll(torch.from_numpy(model.decision_function(features.numpy())), labels)
    ours = balanced_nll(fit_crt(features, labels, 3, 0, fit=FIT)(features).detach(), labels)
    assert best <= ours + 1e-6 <= best * 1.02
    plain = balanced_nll(
        fit_crt(features, labels, 3, 0, fit=FitConfig("plain", 40, 32, 0.1))(features).detach(), labels
    )
    assert plain > best * 1.1


def test_balanced_softmax_needs_no_sampling(training):
    features, labels = training
    criterion = CyclicalFocalLoss.from_counts(COUNTS, tau=1.0, **CROSS_ENTROPY)
    fit = FitConfig("plain", epochs=40, batch_size=32, learning_rate=0.1, weight_decay=0.0)
    plain, balanced = (fit_crt(features, labels, 3, 0, c, fit) for c in (nn.CrossEntropyLoss(), criterion))
    assert balanced_nll(balanced(features).detach(), labels) < 0.9 * balanced_nll(plain(features).detach(), labels)
    both = [logits.softmax(1) for logits in (adjust_logits(plain(features), COUNTS), balanced(features))]
    torch.testing.assert_close(*both, atol=0.03, rtol=0)  # the bias can take the prior, so that the optima agree


def test_scaling_learns_the_factors_alone(training):
    features, labels = training
    first = fit_crt(features, labels, 3, 0, fit=FitConfig("plain", 20, 32, 0.1))
    before = [weight.detach().clone() for weight in first.parameters()]
    scaled = fit_lws(first, features, labels, 0, fit=FIT)
    assert [name for name, _ in scaled.named_parameters()] == ["scales"]
    expected = scaled.scales * first(features)
    torch.testing.assert_close(scaled(features), expected)
    assert balanced_nll(scaled(features).detach(), labels) < balanced_nll(first(features).detach(), labels)
    assert all(torch.equal(a, b) for a, b in zip(before, first.parameters(), strict=True))


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
def test_tau_normalisation_row_by_row(tau):
    classifier = nn.Linear(4, 3).double()
    normalised = tau_normalised(classifier, tau)
    assert normalised.bias is None
    for row, own in zip(classifier.weight.tolist(), normalised.weight.tolist(), strict=True):
        norm = math.sqrt(sum(w * w for w in row))
        assert own == pytest.approx([w / norm**tau for w in row])


def test_a_cyclical_loss_has_its_clock_set(training):
    features, labels = training
    times = []

    class Watched(CyclicalFocalLoss):
        def set_progress(self, progress):
            times.append(progress)
            super().set_progress(progress)

    fit_crt(features, labels, 3, 0, Watched.from_counts(COUNTS, tau=1.0), FitConfig(epochs=5, batch_size=64))
    assert times == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_the_learning_rate_falls_from_the_first_epoch_on(training):
    one = FitConfig(epochs=1, batch_size=272, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    begin, after_1, after_2 = (
        fit_crt(*training, 3, 0, fit=fit).weight
        for fit in (replace(one, learning_rate=1e-30), one, replace(one, epochs=2))
    )
    first, second = (after_1 - begin).norm(), (after_2 - after_1).norm()
    assert 0 < second < 0.75 * first


def test_a_seed_gives_one_classifier(training):
    fit = FitConfig(epochs=2, batch_size=64)
    torch.rand(7)
    first, again, other = (fit_crt(*training, 3, seed, fit=fit).weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_invalid_fits_are_refused(training):
    features, labels = training
    with pytest.raises(ValueError, match="1 of 4 classes have no image: 3"):
        fit_crt(features, labels, 4, 0)
    with pytest.raises(ValueError, match="labels are 0 to 2; they must be 0 to 1"):
        fit_lws(nn.Linear(2, 2), features, labels, 0)
    with pytest.raises(ValueError, match="not finite"):
        fit_crt(features / 0, labels, 3, 0)
    with pytest.raises(ValueError, match=r"features are \(272, 2\) and labels \(5,\)"):
        fit_crt(features, labels[:5], 3, 0, fit=PLAIN_SAMPLING)
    with pytest.raises(ValueError, match="sampling is 'all'"):
        FitConfig(sampling="all")
    with pytest.raises(ValueError, match="tau is -1"):
        tau_normalised(nn.Linear(2, 2), -1)
    classifier = nn.Linear(2, 2)
    nn.init.zeros_(classifier.weight[1].detach())
    with pytest.raises(ValueError, match="class 1 is all 0"):
        tau_normalised(classifier)
