"""Class weights follow from the counts as their papers say, with mean 1."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from cyclofocal.lab.longtail import balanced_weights, effective_number_weights

COUNTS = st.lists(st.integers(1, 5000), min_size=2, max_size=30)


def test_balanced_is_scikit_learns_up_to_a_factor():
    counts = [50, 20, 5]
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=np.repeat(np.arange(3), counts))
    np.testing.assert_allclose(balanced_weights(counts), theirs / theirs.mean())


@given(COUNTS, st.floats(0.01, 0.9999))
def test_effective_number_is_a_geometric_sum(counts, beta):
    effective = [sum(beta**k for k in range(count)) for count in counts]
    expected = np.array([1 / number for number in effective])
    np.testing.assert_allclose(effective_number_weights(counts, beta), expected / expected.mean(), rtol=1e-9)


@given(COUNTS)
def test_limits(counts):
    np.testing.assert_array_equal(effective_number_weights(counts, 0.0), np.ones(len(counts)))
    np.testing.assert_allclose(effective_number_weights(counts, 1 - 1e-12), balanced_weights(counts), rtol=1e-6)


def test_counts_without_a_weight_are_refused():
    with pytest.raises(ValueError, match="class 1 has 0 images"):
        balanced_weights([3, 0])
    with pytest.raises(ValueError, match=r"beta is 1; it must be in \[0, 1\)"):
        effective_number_weights([3, 1], 1)
