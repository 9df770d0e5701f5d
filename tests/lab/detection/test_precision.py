"""Promise: average precision is that of COCO, and matches are those of the highest scores."""

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics")
pytest.importorskip("faster_coco_eval")

from PIL import Image

from cyclofocal.lab.data.dataset import Boxes
from cyclofocal.lab.detection.draw import MISSED, DrawnBox, draw_boxes, matched
from cyclofocal.lab.detection.precision import evaluate_boxes
from cyclofocal.lab.messages import MissingDataError


def boxes(*corners, classes=None, ignored=None):
    count = len(corners)
    return Boxes(
        np.array(corners, dtype=np.float64).reshape(-1, 4),
        np.array(classes if classes is not None else [0] * count, dtype=np.int64),
        np.array(ignored if ignored is not None else [False] * count),
        (100, 100),
        1,
    )


def found(*rows):
    """Detections of (corners, class, score)."""
    return {
        "boxes": torch.tensor([corners for corners, _, _ in rows], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
        "scores": torch.tensor([score for _, _, score in rows], dtype=torch.float32),
    }


TRUTH = [boxes((0, 0, 10, 10), (20, 20, 60, 60), classes=[0, 1]), boxes((5, 5, 50, 55), classes=[1])]


def test_finding_every_box_is_perfect():
    exact = [
        found(*((tuple(c), k, 0.9) for c, k in zip(truth.corners, truth.classes.tolist(), strict=True)))
        for truth in TRUTH
    ]
    result = evaluate_boxes(exact, TRUTH, [5, 9])
    assert result.metrics["ap"] == result.metrics["ap50"] == result.metrics["rarest_ap"] == 1
    assert result.metrics["ap_small"] == result.metrics["ap_medium"] == 1
    assert result.metrics["ap_large"] is None
    assert result.per_class == [1, 1]
    assert result.curve == [1.0] * 101


def test_the_rarest_class_is_that_of_training():
    only_second = [found((tuple(TRUTH[0].corners[1]), 1, 0.9)), found((tuple(TRUTH[1].corners[0]), 1, 0.8))]
    assert evaluate_boxes(only_second, TRUTH, [5, 9]).metrics["rarest_ap"] == 0
    assert evaluate_boxes(only_second, TRUTH, [9, 5]).metrics["rarest_ap"] == 1
    assert evaluate_boxes(only_second, TRUTH, [9, 5]).metrics["ap"] == pytest.approx(0.5)


def test_a_wrong_box_of_a_higher_score_costs_half():
    truth = [boxes((0, 0, 10, 10))]
    wrong_first = [found(((50, 50, 60, 60), 0, 0.9), ((0, 0, 10, 10), 0, 0.5))]
    assert evaluate_boxes(wrong_first, truth, [1]).metrics["ap"] == pytest.approx(0.5)
    crowd = [boxes((0, 0, 10, 10), (45, 45, 65, 65), ignored=[False, True])]
    assert evaluate_boxes(wrong_first, crowd, [1]).metrics["ap"] == 1  # neither right nor wrong


def test_nothing_found_is_an_average_precision_of_zero():
    result = evaluate_boxes([found(), found()], TRUTH, [5, 9])
    assert result.metrics["ap"] == 0
    assert result.per_class == [0, 0]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("cyclofocal.lab.detection.precision.find_spec", lambda name: None)
    with pytest.raises(MissingDataError, match="pip install torchmetrics faster-coco-eval"):
        evaluate_boxes([], [], [1])


def test_each_true_box_matches_the_highest_score_alone():
    detections = {
        name: values.numpy()
        for name, values in found(((0, 0, 10, 9), 0, 0.4), ((0, 0, 10, 10), 0, 0.9), ((20, 20, 60, 60), 0, 0.8)).items()
    }
    right, taken = matched(detections, TRUTH[0])
    assert right.tolist() == [False, True, False]  # one is taken, and one is of another class
    assert taken.tolist() == [True, False]


def test_boxes_are_drawn_in_their_colour():
    picture = draw_boxes(Image.new("L", (50, 40)), [DrawnBox((10, 10, 30, 30), "", MISSED)], 100)
    assert picture.size == (100, 80)
    assert picture.getpixel((20, 40)) == (255, 191, 0)
    assert picture.getpixel((40, 40)) == (0, 0, 0)
