"""Class-aware batches hold every class alike, and follow from seed and epoch alone."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from cyclofocal.lab.data.load import load
from cyclofocal.lab.recipes.criterion import ScaledMarginLoss, build_criterion
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.parse_losses import losses_in
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.sampler import class_aware_batches
from cyclofocal.lab.training.train import train
from cyclofocal.lab.training.train_state import TrainState

COUNTS = [40, 12, 6, 2, 1]
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), COUNTS))
LONG_COUNTS = [400, 120, 60, 15, 5]
LONG = np.random.default_rng(0).permutation(np.repeat(np.arange(5), LONG_COUNTS))


def test_classes_alike_and_images_of_a_class_alike():
    indices = torch.cat(class_aware_batches(LONG, 0, 0, 32)).numpy()
    assert np.bincount(LONG[indices]).tolist() == [120] * 5
    for c, count in enumerate(LONG_COUNTS):
        times = np.bincount(indices[LONG[indices] == c], minlength=len(LONG))[c == LONG]
        assert times.sum() == 120
        assert times.max() - times.min() <= 1, f"class {c} of {count}"


def test_a_class_brings_four_images_and_comes_once_a_round():
    indices = torch.cat(class_aware_batches(LONG, 0, 0, 32))
    groups = LONG[indices.numpy()].reshape(-1, 4)
    assert (groups == groups[:, :1]).all()
    rounds = groups[:, 0].reshape(-1, 5)
    assert (np.sort(rounds) == np.arange(5)).all()
    assert len({tuple(order) for order in rounds.tolist()}) > 1
    four = indices.view(-1, 4)[groups[:, 0] == 0]
    assert all(len(set(images)) == 4 for images in four.tolist()[:10])


def test_an_epoch_is_as_long_as_a_plain_one():
    batches = class_aware_batches(LABELS, 0, 0, 16)
    assert [len(batch) for batch in batches] == [16, 16, 16, 13]


def test_seed_and_epoch_decide_and_nothing_else():
    def drawn(seed, epoch):
        return torch.cat(class_aware_batches(LABELS, seed, epoch, 16)).tolist()

    first = drawn(0, 0)
    torch.rand(3)
    before = torch.get_rng_state()
    assert drawn(0, 0) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn(0, 1) != first
    assert drawn(1, 0) != first


def test_invalid_sampling_is_refused():
    with pytest.raises(ValueError, match="1 of 3 classes have no image to sample: 1"):
        class_aware_batches(np.array([0, 2, 2]), 0, 0, 4)
    with pytest.raises(ValueError, match="per_class is 0; it must be at least 1"):
        class_aware_batches(LABELS, 0, 0, 4, per_class=0)
    with pytest.raises(ValueError, match="have no image"):
        class_aware_batches(np.array([], dtype=int), 0, 0, 4)


def tally(loss, tmp_path, monkeypatch, seed=0):
    """Indices of every batch of two epochs of a training on long-tailed digits, and the labels of the training set."""
    seen = []
    step = TrainState.step

    def watched(self, batch, *rest):
        seen.append(batch.indices.tolist())
        return step(self, batch, *rest)

    recipe = replace(digits(), epochs=2, width=4)
    with monkeypatch.context() as patched:
        patched.setattr(TrainState, "step", watched)
        record = train(Job(recipe, loss, seed, None, RunOptions(cpu=True)))
    return seen, load(recipe.data, tmp_path, seed).train.labels, record


def test_balanced_sampler_draws_every_class_alike(tmp_path, monkeypatch):
    balanced, focal = losses_in("ce:sampler=balanced,focal:sampler=balanced")
    seen, labels, record = tally(balanced, tmp_path, monkeypatch)
    assert sum(map(len, seen)) == 2 * len(labels)
    assert max(map(len, seen)) == digits().batch_size
    counts = np.bincount(labels[np.concatenate(seen[: len(seen) // 2])])
    assert counts.max() - counts.min() <= 1  # of the data the largest class has 50 times the smallest
    assert np.ptp(np.bincount(labels)) > 50
    assert record.train_counts == np.bincount(labels).tolist()
    assert record.tau == 0
    assert record.adjusted == {key: record.metrics[key] for key in record.adjusted}
    assert tally(focal, tmp_path, monkeypatch)[0] == seen
    assert tally(balanced, tmp_path, monkeypatch, seed=1)[0] != seen


def test_without_the_sampler_every_sample_comes_once(tmp_path, monkeypatch):
    seen, labels, _ = tally(losses_in("ce")[0], tmp_path, monkeypatch)
    for part in (seen[: len(seen) // 2], seen[len(seen) // 2 :]):
        assert sorted(np.concatenate(part)) == list(range(len(labels)))


def test_runs_without_the_sampler_keep_their_identity():
    plain, balanced = losses_in("ce,ce:sampler=balanced")
    assert "sampler" not in plain.flat()
    assert "estimator" not in plain.flat()
    assert balanced.flat() == plain.flat() | {
        "name": "ce:sampler=balanced",
        "title": "cross-entropy (sampler balanced)",
        "sampler": "balanced",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("logit-adjusted:sampler=balanced", "no prior to adjust; set tau=0 or no sampler"),
        ("ce:tau=1,sampler=balanced", "no prior to adjust"),
        ("weighted:sampler=balanced", "a second time; set class_weight=none or no sampler"),
        ("ldam-drw:sampler=balanced", "class_weight is 'effective'"),
        ("ce:sampler=blanced", "it must be one of balanced, none. Did you mean 'balanced'?"),
    ],
)
def test_frequencies_that_are_corrected_twice_are_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        losses_in(text)


def test_margins_and_factors_keep_the_counts_of_the_data():
    ldam, vs = losses_in("ldam-drw:class_weight=none,weight_start=0,sampler=balanced,vs:tau=0,sampler=balanced")
    margins, factors = (build_criterion(loss, [100, 1]) for loss in (ldam, vs))
    assert isinstance(margins, ScaledMarginLoss)
    assert isinstance(factors, ScaledMarginLoss)
    assert margins.margin.tolist() == pytest.approx([15 * 100**-0.25, 15])
    assert factors.factor.tolist() == pytest.approx([1, 100**-0.3])
