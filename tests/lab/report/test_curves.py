"""Promise: drawn curves have the areas that scikit-learn computes, and precision and recall are its own."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_score, recall_score, roc_auc_score

from cyclofocal.lab.metrics import log_softmax
from cyclofocal.lab.report.curves import STRIPS, all_curves, curves_of_class, precision_chart, roc_chart, strip_means
from cyclofocal.lab.report.experiment import group_experiments
from cyclofocal.lab.report.load import read_stored_runs
from cyclofocal.lab.report.result_tables import class_table, confusion_table, precision_table
from cyclofocal.lab.report.run_predictions import PredictionFiles, read_predictions
from cyclofocal.lab.report.summary import summaries
from evidence import store_runs


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=60))
@settings(max_examples=50, deadline=None)
def test_areas_equal_those_of_scikit_learn(samples):
    score, positive = np.array([s / 6 for s, _ in samples]), np.array([p for _, p in samples])
    positive[:2] = True, False
    roc, precision = curves_of_class(score, positive)
    assert roc.mean() == pytest.approx(roc_auc_score(positive, score))
    assert precision.mean() == pytest.approx(average_precision_score(positive, score))
    assert np.diff(roc).min() > -1e-9  # a ROC curve never falls
    assert len(roc) == len(precision) == STRIPS


def test_strips_are_means_of_the_curve():
    x = np.array([0.0, 0.105, 0.105, 1.0])
    found = strip_means(x, np.array([0.0, 0.0, 1.0, 1.0]))
    assert found[:10] == pytest.approx(0)
    assert found[10] == pytest.approx(0.5)
    assert found[11:] == pytest.approx(1)


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def experiment(request, tmp_path):
    target = np.arange(60) % request.param
    target[:20] = 0
    logits = store_runs(tmp_path, target, np.arange(60), seeds=3, signal=1.0)
    stored = read_stored_runs([tmp_path])
    (summary,) = summaries(group_experiments(stored.records))
    return summary, read_predictions(summary.experiment, PredictionFiles(stored)), logits, target


def test_curves_are_of_the_rarer_class_or_averaged(experiment):
    summary, found, logits, target = experiment
    curves = all_curves(summary, found)
    assert not found.missing
    for name in ("ce", "focal"):
        for seed in range(3):
            p, classes = np.exp(log_softmax(logits[name, seed].astype(np.float64))), range(target.max() + 1)
            drawn = [1] if len(classes) == 2 else classes  # class 1 has 99 training samples, class 0 has 100
            auroc = np.mean([roc_auc_score(target == c, p[:, c]) for c in drawn])
            ap = np.mean([average_precision_score(target == c, p[:, c]) for c in drawn])
            assert curves[name].roc[seed].mean() == pytest.approx(auroc)
            assert curves[name].precision[seed].mean() == pytest.approx(ap)


def test_charts_have_lines_bands_and_areas(experiment):
    summary, found, *_ = experiment
    curves = all_curves(summary, found)
    for svg, kind in ((roc_chart(summary, curves), "roc"), (precision_chart(summary, curves, found), "precision")):
        lines = re.findall(r'<polyline class="line [^"]*" points="([^"]*)"', svg)
        assert [len(points.split()) for points in lines] == [STRIPS, STRIPS]
        assert svg.count('class="band ') == 2
        assert svg.count('class="diagonal"') == 1
        for name, title in (("ce", "cross-entropy"), ("focal", "focal")):
            assert f"{title}: area {100 * getattr(curves[name], kind).mean():.1f} %" in svg
    heights = [float(point.split(",")[1]) for point in lines[0].split()]
    shares = (194 - np.array(heights)) / (194 - 28)  # of the axis, whose ends are 0 and 100 %
    assert shares.mean() == pytest.approx(curves["ce"].precision.mean(), abs=1e-3)  # as drawn, with one decimal


def test_precision_and_recall_equal_those_of_scikit_learn(experiment):
    summary, _, logits, target = experiment
    shown = {c: float(row[1].key) for c, row in enumerate(precision_table(summary).rows)}
    found = summary.experiment.class_precision["ce"]
    for seed in range(3):
        predicted = logits["ce", seed].argmax(1)
        precision = precision_score(target, predicted, average=None, zero_division=0)
        matrix = np.array(summary.experiment.runs["ce"][seed].confusion)
        assert found[seed] == pytest.approx(100 * precision)
        assert matrix.diagonal() / matrix.sum(1) == pytest.approx(recall_score(target, predicted, average=None))
    assert list(shown.values()) == pytest.approx(found.mean(0))
    assert "recall" in class_table(summary).title


def test_frequent_confusions_are_those_of_the_matrix(experiment):
    summary, *_ = experiment
    matrices, names = summary.experiment.confusion, summary.experiment.classes
    rows = confusion_table(summary).rows
    means = []
    for row in rows:
        true, predicted = names.index(row[0].text), names.index(row[1].text)
        assert true != predicted
        assert [cell.key for cell in row[2:]] == [matrix[true, predicted] for matrix in matrices.values()]
        means.append(np.mean([cell.key for cell in row[2:]]))
    assert means == sorted(means, reverse=True)
    assert means[0] > 0
