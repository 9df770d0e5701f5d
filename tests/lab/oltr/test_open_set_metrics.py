"""Open-set numbers are those counted by hand, each variant by its own definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclofocal.lab.oltr.open_set_metrics import auroc, confidence, f_measure, fpr_at_95, predict_or_reject

#           right  wrong  rejected  right  unknown taken for known, twice  unknown rejected
PREDICTED = np.array([0, 1, -1, 2, 0, 2, -1])
TARGET = np.array([0, 2, 1, 2, -1, -1, -1])


def test_variants_by_hand():
    precision, recall = 2 / 4, 2 / 4  # 2 right, 1 wrong and 1 rejected; 2 unknown accepted
    assert f_measure(PREDICTED, TARGET, "oltr") == pytest.approx(2 * precision * recall / (precision + recall))
    precision = 2 / 3  # the rejected one no longer counts
    assert f_measure(PREDICTED, TARGET, "oltr-old") == pytest.approx(2 * precision * recall / (precision + recall))


def test_nothing_right_is_0_and_all_right_is_1():
    for variant in ("oltr", "oltr-old"):
        assert f_measure(np.full(7, -1), TARGET, variant) == 0
        assert f_measure(TARGET, TARGET, variant) == 1


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3)), min_size=1, max_size=40))
def test_variants_as_loops(pairs):
    predicted, target = np.array(pairs).T
    right = sum(p == t != -1 for p, t in pairs)
    wrong = sum(t not in (-1, p) and p != -1 for p, t in pairs)
    rejected = sum(t != -1 and p == -1 for p, t in pairs)
    accepted = sum(t == -1 and p != -1 for p, t in pairs)
    for variant, false_positive in (("oltr", wrong + rejected), ("oltr-old", wrong)):
        expected = 0.0
        if right:
            precision, recall = right / (right + false_positive), right / (right + accepted)
            expected = 2 * precision * recall / (precision + recall)
        assert f_measure(predicted, target, variant) == pytest.approx(expected)


def test_threshold_rejects_lower_confidence():
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.4, 0.35, 0.25], [0.1, 0.1, 0.8]]))
    assert confidence(logits) == pytest.approx([0.5, 0.4, 0.8])
    assert predict_or_reject(logits, 0.45).tolist() == [0, -1, 2]
    assert predict_or_reject(logits, 0.0).tolist() == [0, 0, 2]
    assert predict_or_reject(np.zeros((1, 4)), 0.25).tolist() == [0]  # not below it


def test_auroc_is_the_share_of_pairs_in_order():
    sure, known = np.array([0.9, 0.8, 0.8, 0.3, 0.7, 0.8]), np.array([1, 1, 1, 1, 0, 0], dtype=bool)
    pairs = [(a > b) + 0.5 * (a == b) for a in sure[known] for b in sure[~known]]
    assert auroc(sure, known) == pytest.approx(np.mean(pairs)) == pytest.approx(5 / 8)


def test_fpr_at_95_by_hand():
    known = np.array([1] * 20 + [0] * 4, dtype=bool)
    sure = np.array([*np.arange(1, 21) / 20, 0.05, 0.1, 0.5, 0.01])
    assert fpr_at_95(sure, known) == 2 / 4  # 19 of 20 known are at 0.1 or above, and so are 0.1 and 0.5
    assert fpr_at_95(np.where(known, 1.0, 0.0), known) == 0


def test_undefined_metrics_are_refused():
    with pytest.raises(ValueError, match="variant is 'f1'; it must be one of oltr, oltr-old"):
        f_measure(PREDICTED, TARGET, "f1")
    with pytest.raises(ValueError, match="threshold is 10"):
        predict_or_reject(np.zeros((1, 2)), 10)
    with pytest.raises(ValueError, match="must agree"):
        f_measure(PREDICTED, TARGET[:3], "oltr")
    for number in (auroc, fpr_at_95):
        with pytest.raises(ValueError, match="all are of one kind"):
            number(np.array([0.1, 0.2]), np.array([True, True]))
