"""Average precision of detections, as COCO defines it, by torchmetrics."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cyclofocal.lab.data.dataset import Boxes
from cyclofocal.lab.messages import MissingDataError

EVALUATORS = ("faster_coco_eval", "pycocotools")
"""Packages that compute the average precision, which torchmetrics knows by these names, the faster one first."""


class BoxMetrics(NamedTuple):
    """Metrics of detections, as fractions.

    Attributes:
        metrics: those of :data:`~cyclofocal.lab.metrics.BOX_METRICS`; None where no box is of that size.
        per_class: average precision of each class, (C,).
        curve: precision at recall 0, 0.01, ..., 1 and an overlap of 0.5, mean over the classes, (101,).
    """

    metrics: dict[str, float | None]
    per_class: list[float]
    curve: list[float]


def check_evaluation() -> None:
    """Refuse before training what could not be evaluated after it.

    Raises:
        MissingDataError: torchmetrics, or both of its backends, are not installed.
    """
    if find_spec("torchmetrics") is None or not any(map(find_spec, EVALUATORS)):
        raise MissingDataError(
            "average precision needs torchmetrics and faster-coco-eval. Install with: pip install torchmetrics"
            " faster-coco-eval"
        )


def evaluate_boxes(
    found: Sequence[dict[str, Tensor]], truth: Sequence[Boxes], train_counts: Sequence[int]
) -> BoxMetrics:
    """Evaluate the detections of images against their boxes.

    Args:
        found: of each image ``boxes`` (M, 4), ``labels`` (M,) and ``scores`` (M,), in pixels of the image.
        truth: boxes of each image.
        train_counts: training boxes per class, which decide the rarest.

    Reference: Lin et al., *Microsoft COCO: Common Objects in Context*, ECCV 2014; the mean is over ten overlaps, 0.5
    to 0.95.
    """
    from torchmetrics.detection import MeanAveragePrecision

    check_evaluation()
    backend: Any = next(filter(find_spec, EVALUATORS))
    metric = MeanAveragePrecision(class_metrics=True, extended_summary=True, backend=backend)
    metric.warn_on_many_detections = False
    metric.update([*found], [_target(boxes) for boxes in truth])
    computed = metric.compute()
    classes = len(train_counts)
    known = dict(
        zip(computed["classes"].reshape(-1).tolist(), computed["map_per_class"].reshape(-1).tolist(), strict=True)
    )
    per_class = [max(known.get(c, 0.0), 0.0) for c in range(classes)]
    metrics = {key: _fraction(computed[name]) for key, name in TORCHMETRICS.items()}
    metrics["rarest_ap"] = per_class[min(range(classes), key=lambda c: train_counts[c])]
    precision = computed["precision"][0, :, :, 0, -1]  # overlap 0.5, boxes of all sizes, most detections
    curve = precision.clamp_min(0).double().mean(1)
    return BoxMetrics(metrics, per_class, curve.tolist())


TORCHMETRICS = {
    "ap": "map",
    "ap50": "map_50",
    "ap75": "map_75",
    "ap_small": "map_small",
    "ap_medium": "map_medium",
    "ap_large": "map_large",
}
"""Names of the metrics for torchmetrics."""


def _target(boxes: Boxes) -> dict[str, Tensor]:
    return {
        "boxes": torch.from_numpy(boxes.corners).float(),
        "labels": torch.from_numpy(boxes.classes),
        "iscrowd": torch.from_numpy(boxes.ignored.astype(int)),
    }


def _fraction(value: Tensor) -> float | None:
    number = value.item()
    return None if number < 0 else min(number, 1.0)
