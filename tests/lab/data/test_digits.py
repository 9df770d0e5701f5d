"""The digits of a seed are those that the published results were computed on, bit for bit."""

import hashlib

import pytest
import torch

from formats import load


def _split(seed, test_per_class=60, head_images=100, imbalance=50.0):
    return load(
        "digits",
        seed=seed,
        subset="long-tailed",
        test_per_class=test_per_class,
        head_images=head_images,
        imbalance=imbalance,
    )


@pytest.mark.parametrize(
    ("arguments", "digest"),
    [  # of the float32 images in [0, 1] and int64 labels, training then test, as first published
        ((0, 50), "4e3f680115a9e4d510e8a36d44f1ab2698e644435624ef9c8c5e31c85c9ff973"),
        ((1, 50), "967a74d8919a186858db4a3bee9c7c154f74e35acb5cef9977e2e6b2f94a9950"),
        ((4, 50), "9ff3b5274e4acb221305cf1dafa0ff6d0be32f81f55d7586c507852d9bbeb341"),
        ((3, 20, 100, 10.0), "eebfec3ac178e2662a067ff4e465084c9e039139a8a9165d77725ed5dd4a9169"),
    ],
)
def test_the_split_of_a_seed_never_changes(arguments, digest):
    digits = _split(*arguments)
    content = hashlib.sha256()
    for images in (digits.train, digits.test):
        content.update((images.inputs / images.max_pixel).numpy().tobytes())
        content.update(images.labels.astype("<i8").tobytes())
    assert content.hexdigest() == digest


def test_the_test_split_is_balanced_and_training_long_tailed():
    digits = _split(0)
    assert torch.bincount(torch.from_numpy(digits.test.labels)).tolist() == [60] * 10
    assert digits.counts == (100, 64, 41, 27, 17, 11, 7, 4, 3, 2)
    assert not set(digits.train.positions) & set(digits.test.positions)


def test_the_split_follows_the_seed():
    assert _split(0).test.positions.tolist() == _split(0).test.positions.tolist()
    assert _split(0).test.positions.tolist() != _split(1).test.positions.tolist()


def test_all_of_the_rest_is_for_training_without_a_subset():
    digits = load("digits", seed=0, test_per_class=10)
    assert sorted([*digits.train.positions, *digits.test.positions]) == list(range(1797))


def test_a_validation_set_is_of_images_that_are_left_over():
    digits = load(
        "digits", test_per_class=60, subset="long-tailed", head_images=100, imbalance=50, validation_images=55
    )
    assert digits.counts == _split(0).counts
    assert torch.bincount(torch.from_numpy(digits.validation.labels)).tolist() == [6] * 5 + [5] * 5
    assert not set(digits.validation.positions) & {*digits.train.positions, *digits.test.positions}


def test_digits_without_a_test_set_are_refused():
    with pytest.raises(ValueError, match="test_per_class is 0"):
        load("digits")
    with pytest.raises(ValueError, match="class 8 has 174 images; 175"):
        load("digits", test_per_class=175)
    with pytest.raises(ValueError, match="head_images is 0"):
        load("digits", test_per_class=60, subset="long-tailed", imbalance=50)
