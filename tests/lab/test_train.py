"""Runs of two losses at one seed are a pair; one seed gives one record; the clock runs its whole course."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cyclofocal import cyclical_focal_loss
from cyclofocal.lab import train as training
from cyclofocal.lab.data import load_digits, long_tailed_split
from cyclofocal.lab.longtail import exponential_counts
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.recipe import ASYMMETRIC, CROSS_ENTROPY, CYCLICAL, FOCAL, LOSSES
from cyclofocal.lab.train import build_criterion, initial_model, train

SHORT = replace(digits(), epochs=3)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def split():
    return _split(seed=0)


def _split(seed):
    recipe = digits()
    counts = exponential_counts(recipe.head_images, recipe.imbalance, recipe.classes)
    return long_tailed_split(*load_digits(), recipe.test_per_class, counts, seed)


def test_split_is_balanced_for_testing_long_tailed_for_training_and_disjoint(split):
    assert torch.bincount(split.test_labels).tolist() == [60] * 10
    assert torch.bincount(split.train_labels).tolist() == [100, 64, 41, 27, 17, 11, 7, 4, 3, 2]
    train_rows = {tuple(image.flatten().tolist()) for image in split.train_images}
    assert not train_rows & {tuple(image.flatten().tolist()) for image in split.test_images}


def test_split_follows_the_seed(split):
    assert torch.equal(split.train_images, _split(seed=0).train_images)
    assert not torch.equal(split.test_images, _split(seed=1).test_images)


def test_two_losses_at_one_seed_see_the_same_weights_and_batches(monkeypatch):
    seen = {}

    def watch(model, criterion, optimizer, split, order):
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        seen.setdefault(current, []).append((weights, [split.train_images[i] for i in order]))
        return {"train_loss": 0.0, "train_accuracy": 0.0}

    monkeypatch.setattr(training, "fit_epoch", watch)
    for loss in LOSSES:
        current = loss.name
        train(SHORT, loss, seed=5)
    for other in LOSSES[1:]:
        for (weights, images), (their_weights, their_images) in zip(seen["ce"], seen[other.name], strict=True):
            assert all(map(torch.equal, weights, their_weights))
            assert all(map(torch.equal, images, their_images))


def test_epochs_differ_and_seeds_differ(split):
    first, again, next_epoch, other_seed = (
        torch.cat(training.batches(split, SHORT, seed, epoch)) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, next_epoch)
    assert not torch.equal(first, other_seed)
    assert first.sort().values.equal(torch.arange(276))


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, CYCLICAL], ids=lambda loss: loss.name)
def test_one_seed_gives_one_record(loss):
    torch.manual_seed(123)
    first = train(SHORT, loss, seed=2)
    torch.manual_seed(456)
    assert replace(train(SHORT, loss, seed=2), seconds=first.seconds) == first


def test_training_leaves_the_random_state_of_the_caller_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train(replace(SHORT, epochs=1), FOCAL, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_digits_are_learnt_and_the_tail_is_hard():
    record = train(digits(), CROSS_ENTROPY, seed=0)
    assert record.epochs[-1]["train_accuracy"] > 0.99
    assert record.metrics["balanced_accuracy"] > 0.75
    assert record.metrics["many"] > record.metrics["few"] + 0.1


def test_the_clock_runs_from_easy_over_hard_to_easy():
    record = train(replace(digits(), epochs=5), CYCLICAL, seed=0)
    assert [row["eta"] for row in record.epochs] == pytest.approx([1, 0, 1 / 3, 2 / 3, 1])
    assert train(SHORT, CROSS_ENTROPY, seed=0).epochs[0]["eta"] is None


def test_one_epoch_is_legal():
    assert train(replace(SHORT, epochs=1), CYCLICAL, seed=0).epochs[0]["eta"] == 1


def test_learning_rate_warms_up_and_ends_near_0():
    rates = [training.learning_rate(digits(), epoch) for epoch in range(40)]
    assert rates[0] == pytest.approx(0.05 / 6)
    assert max(rates) < 0.05
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_criteria_are_what_they_are_called():
    logits, target = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    assert torch.equal(build_criterion(CROSS_ENTROPY)(logits, target), F.cross_entropy(logits, target))
    log_p = F.log_softmax(logits, 1)[range(6), target]
    focal = (-((1 - log_p.exp()) ** 2) * log_p).mean()
    torch.testing.assert_close(build_criterion(FOCAL)(logits, target), focal)
    asymmetric = cyclical_focal_loss(logits, target, eta=0.0, gamma_pos=0.0, gamma_neg=4.0, label_smoothing=0.1)
    torch.testing.assert_close(build_criterion(ASYMMETRIC)(logits, target), asymmetric)


def test_a_diverged_run_says_where():
    with pytest.raises(FloatingPointError, match=r"cross-entropy, seed 0: the training loss is .* in epoch"):
        train(replace(SHORT, epochs=20, learning_rate=1e30), CROSS_ENTROPY, seed=0)


def test_initial_model_gives_logits_of_the_right_shape():
    logits = training.predict(initial_model(digits(), 0), torch.zeros(2, 1, 8, 8))
    assert logits.shape == (2, 10)
    assert np.isfinite(logits.numpy()).all()
