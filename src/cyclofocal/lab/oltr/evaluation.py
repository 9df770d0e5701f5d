"""Every number of open long-tailed recognition, from stored logits."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cyclofocal.lab import metrics
from cyclofocal.lab.longtail import OLTR, ShotGroups, rarer_class
from cyclofocal.lab.metrics import METRICS, Metric
from cyclofocal.lab.oltr.open_set_metrics import THRESHOLD, auroc, confidence, f_measure, fpr_at_95, predict_or_reject
from cyclofocal.lab.training.predictions import Predictions, read

OPEN_METRICS = (
    Metric("open_accuracy", "accuracy, open set", "open accuracy"),
    Metric("open_many", "many-shot accuracy, open set", "open many-shot"),
    Metric("open_medium", "medium-shot accuracy, open set", "open medium-shot"),
    Metric("open_few", "few-shot accuracy, open set", "open few-shot"),
    Metric("unknown_rejected", "unknown images rejected", "unknown rejected"),
    Metric("f_oltr", "F-measure, oltr", "F (oltr)"),
    Metric("f_oltr_old", "F-measure, oltr-old", "F (oltr-old)"),
    Metric("auroc", "AUROC, known against unknown", "AUROC"),
    Metric("fpr95", "unknown accepted at 95 % known", "FPR@95", higher_is_better=False),
)
"""Metrics of an open set, after :data:`~cyclofocal.lab.metrics.METRICS`; all but the last two need the threshold."""

ALL_METRICS = (*METRICS, *OPEN_METRICS)
"""Every metric, in the order of tables."""


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one file of logits, and what they mean.

    Attributes:
        title: of the run.
        groups: the convention of many-, medium- and few-shot classes.
        threshold: confidence below which an image is rejected as unknown; None without unknown images.
        n_images, n_unknown: how many known and unknown images there are.
        numbers: by the keys of METRICS, of the known images alone; with unknown images by those of OPEN_METRICS too.
            Fractions (nats for nll), None for a shot group without classes.
        recall: accuracy of each class on the known images, nothing rejected.
        train_counts: training images of each class.
        rarer: name of the rarer of two classes in training; "" for more, as in
            :func:`~cyclofocal.lab.metrics.metrics_of`.
    """

    title: str
    groups: ShotGroups
    threshold: float | None
    n_images: int
    n_unknown: int
    numbers: dict[str, float | None]
    recall: list[float]
    train_counts: list[int]
    rarer: str = ""


def evaluate_file(path: Path, threshold: float = THRESHOLD, groups: ShotGroups = OLTR) -> Evaluation:
    """The numbers of a file of logits; see :mod:`~cyclofocal.lab.training.predictions` for its format.

    Raises:
        FileNotFoundError, DamagedPredictionsError: of reading it.
        ValueError: a threshold outside [0, 1], or a class without a test image.
    """
    return evaluate_logits(read(path), threshold, groups)


def evaluate_logits(predictions: Predictions, threshold: float = THRESHOLD, groups: ShotGroups = OLTR) -> Evaluation:
    """The numbers of predictions: closed set on the known images, open set on all, where there are unknown ones.

    Args:
        predictions: every class must occur in the target.
        threshold: confidence below which an image is rejected, in [0, 1]; a part of the open-set numbers' definition.
        groups: the convention of the shot groups.

    Raises:
        ValueError: a threshold outside [0, 1], or a class without a test image.
    """
    known, counts = predictions.known, predictions.train_counts.tolist()
    logits, target = predictions.logits[known], predictions.target[known]
    rejected = predict_or_reject(predictions.logits, threshold)  # before any number: checks the threshold
    numbers = metrics.compute_metrics(logits, target, counts, groups)
    rarer = rarer_class(counts)
    if predictions.thresholds:
        numbers |= metrics.metrics_with(logits, target, rarer, None, predictions.thresholds)
    n_unknown = int((~known).sum())
    if n_unknown:
        numbers |= _open(predictions, rejected, groups)
    return Evaluation(
        title=predictions.title,
        groups=groups,
        threshold=threshold if n_unknown else None,
        n_images=int(known.sum()),
        n_unknown=n_unknown,
        numbers=numbers,
        recall=metrics.recall_per_class(logits.argmax(1), target, len(counts)).tolist(),
        train_counts=counts,
        rarer=_name(predictions, rarer) if len(counts) == 2 else "",
    )


def _name(predictions: Predictions, c: int) -> str:
    return predictions.classes[c] if predictions.classes else f"class {c}"


def _open(predictions: Predictions, predicted: metrics.LabelArray, groups: ShotGroups) -> dict[str, float | None]:
    known, target, counts = predictions.known, predictions.target, predictions.train_counts.tolist()
    recall = metrics.recall_per_class(predicted[known], target[known], len(counts))
    shots = groups.classes_of(counts)
    sure = confidence(predictions.logits)
    return {
        "open_accuracy": float(np.mean(predicted[known] == target[known])),
        **{f"open_{name}": float(recall[members].mean()) if members else None for name, members in shots.items()},
        "unknown_rejected": float(np.mean(predicted[~known] == target[~known])),
        "f_oltr": f_measure(predicted, target, "oltr"),
        "f_oltr_old": f_measure(predicted, target, "oltr-old"),
        "auroc": auroc(sure, known),
        "fpr95": fpr_at_95(sure, known),
    }
