"""The numbers of a run are those computed by hand and by scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_auc_score,
)

from cyclofocal.lab.longtail import ShotGroups
from cyclofocal.lab.metrics import (
    METRICS,
    NEED_VALIDATION,
    ONLY_TWO_CLASSES,
    THRESHOLDS,
    compute_metrics,
    default_margin,
    expected_calibration_error,
    metrics_of,
    metrics_with,
    one_against_rest,
    threshold_scores,
    two_class_auroc,
)

GROUPS = ShotGroups("test", many_from=10, few_up_to=2)


@pytest.fixture
def run():
    rng = np.random.default_rng(0)
    target = np.concatenate([np.arange(4), rng.integers(4, size=196)])
    return rng.normal(size=(200, 4)) + 1.5 * np.eye(4)[target], target


def test_as_scikit_learn(run):
    logits, target = run
    numbers = compute_metrics(logits, target, [20, 10, 5, 2], GROUPS)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert numbers["accuracy"] == pytest.approx(accuracy_score(target, p.argmax(1)))
    assert numbers["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(target, p.argmax(1)))
    assert numbers["macro_f1"] == pytest.approx(f1_score(target, p.argmax(1), average="macro"))
    assert numbers["brier"] == pytest.approx(((p - np.eye(4)[target]) ** 2).sum(1).mean())
    assert numbers["nll"] == pytest.approx(log_loss(target, p))
    assert list(numbers) == [metric.key for metric in METRICS]


def test_further_metrics_are_those_of_scikit_learn(run):
    logits, target = run
    numbers = compute_metrics(logits, target, [20, 10, 5, 2], GROUPS)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    recall = recall_score(target, p.argmax(1), average=None)
    assert numbers["macro_auroc"] == pytest.approx(roc_auc_score(target, p, multi_class="ovr"))
    assert numbers["macro_ap"] == pytest.approx(average_precision_score(np.eye(4)[target], p, average="macro"))
    assert numbers["mcc"] == pytest.approx(matthews_corrcoef(target, p.argmax(1)))
    assert numbers["gmean"] == pytest.approx(math.prod(recall) ** 0.25)
    assert numbers["least_recall"] == min(recall)


def test_equal_scores_count_as_in_scikit_learn():
    rng = np.random.default_rng(0)
    target = np.concatenate([[0, 1], rng.integers(2, size=58)])
    p = rng.integers(5, size=(60, 2)) / 4
    for c, (auroc, average_precision) in enumerate(one_against_rest(p, target)):
        assert auroc == pytest.approx(roc_auc_score(target == c, p[:, c]))
        assert average_precision == pytest.approx(average_precision_score(target == c, p[:, c]))


def test_a_perfect_order_scores_exactly_1():
    for positives in range(1, 200):
        for others in (1, 7, 97):
            p = np.linspace(0, 1, positives + others)
            target = (p >= p[others]).astype(int)
            assert one_against_rest(np.stack([1 - p, p], 1), target).tolist() == [[1, 1], [1, 1]]
            assert {float(score) for score in threshold_scores(positives, 0, positives, others).values()} == {1}


def test_class_wise_calibration_error_by_a_loop(run):
    logits, target = run
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gaps = []
    for c in range(4):
        for k in range(15):
            inside = [i for i in range(len(p)) if k / 15 < p[i, c] <= (k + 1) / 15]
            gaps.append(abs(sum(p[i, c] for i in inside) - sum(target[i] == c for i in inside)) / len(p))
    assert compute_metrics(logits, target, [20] * 4, GROUPS)["class_ece"] == pytest.approx(sum(gaps) / 4)


def test_temperature_and_threshold_by_hand():
    logits, target = np.log([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.5, 0.5]]), np.array([0, 0, 1, 1])
    found = metrics_with(logits, target, 1, 2.0, {"balanced_accuracy": 0.15, "f1": 0.3, "mcc": 0.45})
    p = np.sqrt(np.exp(logits)) / np.sqrt(np.exp(logits)).sum(1, keepdims=True)
    assert found["scaled_nll"] == pytest.approx(log_loss(target, p))
    assert found["scaled_ece"] == pytest.approx(expected_calibration_error(p, target))
    assert found["tuned_f1"] == 0.5  # one of two is found, and one of the two predicted is right
    assert found["tuned_balanced_accuracy"] == 0.75  # both are found, and one of the two others is right
    assert found["tuned_mcc"] == pytest.approx(1 / math.sqrt(3))  # 1 of 2 found and nothing else: 2 / sqrt(1*2*2*3)
    assert list(found) == list(NEED_VALIDATION)
    assert set(metrics_with(logits, target, 1, None, {}).values()) == {None}


@pytest.mark.parametrize("counts", [[90, 10], [10, 90]])
def test_the_rarer_of_two_classes_has_metrics_of_its_own(run, counts):
    logits, target = run[0][:, :2], run[1] % 2
    numbers = compute_metrics(logits, target, counts, GROUPS)
    positive, predicted = int(counts[1] < counts[0]), logits.argmax(1)
    p, truth = np.exp(logits[:, positive]) / np.exp(logits).sum(1), target == positive
    found = predicted == positive
    assert numbers["macro_auroc"] == pytest.approx(roc_auc_score(truth, p))
    assert numbers["rare_ap"] == pytest.approx(average_precision_score(truth, p))
    assert numbers["rare_recall"] == pytest.approx(recall_score(truth, found))
    assert numbers["rare_precision"] == pytest.approx(precision_score(truth, found))
    assert numbers["rare_f1"] == pytest.approx(f1_score(truth, found))
    assert list(numbers) == [metric.key for metric in METRICS]


def test_a_class_that_is_never_predicted_has_a_precision_of_0():
    numbers = compute_metrics(np.array([[2.0, 0], [1, 0], [3, 0]]), np.array([0, 1, 0]), [9, 1], GROUPS)
    assert [numbers[key] for key in ("rare_recall", "rare_precision", "rare_f1", "mcc")] == [0, 0, 0, 0]


def test_saturated_probabilities_are_no_ties():
    """Beyond a difference of about 37 every probability is 1 in float64, but the order of the samples remains."""
    logits = np.array([[0.0, 50], [0, 60], [0, -50], [0, -60]])
    assert compute_metrics(logits, np.array([0, 1, 1, 0]), [9, 1], GROUPS)["macro_auroc"] == 0.75


def test_the_auroc_of_two_classes_is_that_of_scikit_learn():
    logits, target = np.random.default_rng(0).normal(size=(40, 2)).round(1), np.arange(40) % 3 % 2
    found = two_class_auroc(logits, target)
    assert found == pytest.approx(roc_auc_score(target, logits[:, 1] - logits[:, 0]), rel=1e-12)
    assert found == pytest.approx(compute_metrics(logits, target, [2, 1], GROUPS)["macro_auroc"], rel=1e-12)
    assert two_class_auroc(logits, np.zeros_like(target)) is two_class_auroc(logits, np.ones_like(target)) is None


def test_three_classes_have_no_metrics_of_a_rarer_class(run):
    numbers = compute_metrics(*run, [20, 10, 5, 2], GROUPS)
    assert {numbers[key] for key in ONLY_TWO_CLASSES} == {None}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30))
def test_scores_of_counts_are_those_of_scikit_learn(pairs):
    truth, found = (np.array(column) for column in zip(*pairs, (True, False), (False, True), strict=True))
    right, wrong = (truth & found).sum(), (~truth & found).sum()
    scores = threshold_scores(right, wrong, truth.sum(), (~truth).sum())
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, found))
    assert scores["f1"] == pytest.approx(f1_score(truth, found))
    assert scores["mcc"] == pytest.approx(matthews_corrcoef(truth, found), abs=1e-12)


def test_two_classes_lead_with_auroc_and_average_precision():
    found = metrics_of("yes")
    assert [metric.title for metric in found[:2]] == ["AUROC", "average precision of yes"]
    assert {metric.key for metric in METRICS} - {metric.key for metric in found} == {"many", "medium", "few"}
    assert not any("rarer" in metric.title + metric.short_title for metric in found)
    assert found[0] == next(metric for metric in METRICS if metric.key == found[0].key)
    order = [metric.key for metric in found]
    for name, key in THRESHOLDS.items():
        assert order.index(f"tuned_{name}") == order.index(key) + 1


def test_shot_groups_by_hand():
    target = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    predicted = np.array([0, 0, 1, 0, 2, 0, 0, 0])
    numbers = compute_metrics(np.eye(4)[predicted], target, [50, 10, 3, 1], GROUPS)
    assert (numbers["many"], numbers["medium"], numbers["few"]) == (0.75, 0.5, 0.0)


def test_a_group_without_classes_has_no_number(run):
    assert compute_metrics(*run, [20, 20, 20, 20], GROUPS)["few"] is None


def test_calibration_error_by_hand():
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.45, 0.55]])
    target = np.array([0, 1, 1, 1])  # bins: 0.9 twice, half right; 0.7, right; 0.55, right
    by_hand = (2 * abs(0.9 - 0.5) + abs(0.7 - 1) + abs(0.55 - 1)) / 4
    assert expected_calibration_error(p, target) == pytest.approx(by_hand)


def test_bins_are_closed_on_the_right():
    p = np.array([[0.6, 0.4], [0.56, 0.44]])  # 0.6 is 9/15: with 0.56 in the bin above 8/15
    assert expected_calibration_error(p, np.array([0, 1])) == pytest.approx(abs(0.6 + 0.56 - 1) / 2)


def test_calibration_error_is_as_written_in_the_paper(run):
    logits, target = run
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    total = 0.0
    for k in range(15):
        inside = [i for i in range(len(p)) if k / 15 < p[i].max() <= (k + 1) / 15]
        if inside:
            accuracy = sum(p[i].argmax() == target[i] for i in inside) / len(inside)
            confidence = sum(p[i].max() for i in inside) / len(inside)
            total += len(inside) / len(p) * abs(accuracy - confidence)
    assert expected_calibration_error(p, target) == pytest.approx(total)


def test_confident_logits_stay_finite():
    numbers = compute_metrics(np.array([[1e4, 0.0], [1e4, 0.0]], dtype=np.float32), np.array([0, 1]), [20, 1], GROUPS)
    assert numbers["nll"] == 5000.0
    assert numbers["ece"] == 0.5


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ValueError, match="class 2 is missing"):
        compute_metrics(np.eye(3), np.array([0, 1, 1]), [9, 9, 9], GROUPS)
    with pytest.raises(ValueError, match="not finite"):
        compute_metrics(np.array([[math.nan, 0.0]]), np.array([0]), [9, 9], GROUPS)


def test_the_default_margin_is_in_the_unit_of_the_metric():
    assert [default_margin(key) for key in ("balanced_accuracy", "ece", "nll", "mcc")] == [0.5, 0.5, 0.005, 0.005]
