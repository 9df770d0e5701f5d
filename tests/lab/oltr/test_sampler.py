"""Class-aware batches hold every class alike, and follow from seed and epoch alone."""

import numpy as np
import pytest
import torch

from cyclofocal.lab.oltr.sampler import class_aware_batches

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
