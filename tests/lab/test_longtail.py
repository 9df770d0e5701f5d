"""The long tail has the counts it promises, without doubles, and its shot groups carry their convention's name."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclofocal.lab.longtail import FOLLOWERS, OLTR, ShotGroups, draw_per_class, exponential_counts


def test_counts_by_hand():
    assert exponential_counts(100, 4, 3) == (100, 50, 25)
    assert exponential_counts(7, 1, 4) == (7, 7, 7, 7)


def test_counts_of_cifar10_with_imbalance_100():
    assert exponential_counts(5000, 100, 10) == (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)


@given(st.integers(2, 50), st.floats(1, 200), st.integers(200, 5000))
def test_counts_fall_from_head_to_tail(classes, imbalance, head):
    counts = exponential_counts(head, imbalance, classes)
    assert counts[0] == head
    assert len(counts) == classes
    assert all(a >= b >= 1 for a, b in itertools.pairwise(counts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((10, 50, 10), "head_images must be at least 50"), ((100, 0.5, 10), "imbalance"), ((100, 50, 1), "classes")],
)
def test_impossible_tails_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        exponential_counts(*arguments)


def test_draw_has_the_counts_and_no_doubles():
    labels = np.random.default_rng(0).integers(3, size=300)
    drawn = draw_per_class(labels, (50, 7, 1), np.random.default_rng(1))
    assert len(set(drawn.tolist())) == 58
    assert np.bincount(labels[drawn]).tolist() == [50, 7, 1]
    assert np.array_equal(drawn, draw_per_class(labels, (50, 7, 1), np.random.default_rng(1)))


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(ValueError, match="class 1 has 1 images; 2 are needed"):
        draw_per_class(np.array([0, 0, 0, 1]), (2, 2), np.random.default_rng(0))


def test_conventions_differ_at_their_bounds():
    counts = [100, 101, 20, 19]
    assert OLTR.classes_of(counts) == {"many": [0, 1], "medium": [], "few": [2, 3]}
    assert FOLLOWERS.classes_of(counts) == {"many": [1], "medium": [0, 2], "few": [3]}


def test_bounds_that_overlap_are_refused():
    with pytest.raises(ValueError, match="few_up_to"):
        ShotGroups("wrong", many_from=10, few_up_to=10)
