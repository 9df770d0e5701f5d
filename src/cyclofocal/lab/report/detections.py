"""Precision-recall curves of detections, and test images with the boxes of two losses."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cyclofocal.lab.data.coco import read_results
from cyclofocal.lab.data.dataset import Boxes, Samples
from cyclofocal.lab.detection.draw import CORRECT, MISSED, WRONG, DrawnBox, draw_boxes, matched
from cyclofocal.lab.messages import UnreadableImageError
from cyclofocal.lab.records import RECALLS
from cyclofocal.lab.report.charts import Lines
from cyclofocal.lab.report.curves import curve_chart
from cyclofocal.lab.report.experiment import by_run
from cyclofocal.lab.report.mistakes import data_uri
from cyclofocal.lab.report.run_predictions import PredictionFiles
from cyclofocal.lab.report.statistics import half_width
from cyclofocal.lab.report.summary import Summary
from cyclofocal.lab.training.predictions import DETECTIONS

MOST_IMAGES = 4
"""Most images of a strip."""

STRIP_WIDTH = 360
"""Width of an image in a strip, in pixels."""


@dataclass(frozen=True)
class BoxStrip:
    """Test images with the boxes of two losses.

    Attributes:
        losses: titles of the two.
        images: of each image its name and, of each loss, its picture as a data URI and the number of right boxes, in
            words.
        missing: why there are no images, as the end of a sentence; "" otherwise.
    """

    losses: tuple[str, ...] = ()
    images: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    missing: str = ""


def precision_recall_chart(summary: Summary) -> str:
    """Precision over recall of each loss at an overlap of 0.5, mean over classes and seeds; "" if records lack it."""
    found = {
        name: 100 * by_run(runs, lambda run: run.precision_recall) for name, runs in summary.experiment.runs.items()
    }
    x, overlap = np.linspace(0, 100, RECALLS), summary.experiment.overlap
    lines: Lines = {name: (x, runs.mean(0), half_width(runs, overlap)) for name, runs in found.items() if runs.size}
    if not lines:
        return ""
    return curve_chart(summary, lines, ("recall, %", "precision, %"), "Precision and recall of boxes")


def box_strip(summary: Summary, files: PredictionFiles | None, root: Path, show: bool) -> BoxStrip:
    """The test images on which the reference and the loss that differs most from it disagree most, at one seed.

    Of each loss as many boxes are drawn as the image has, those of the highest scores, so that no threshold decides.

    Args:
        summary: a comparison of detectors.
        files: files of the runs.
        root: folder of data sets, from which the images are read.
        show: False shows none.
    """
    if files and not show:
        return BoxStrip(missing="the images are not shown, as asked for")
    experiment = summary.experiment
    paths = {
        name: path
        for name, runs in experiment.runs.items()
        if files and (path := files.of(runs[0], DETECTIONS)) is not None
    }
    shown = [name for name in _two_losses(summary) if name in paths]
    if len(shown) < 2:
        return BoxStrip(missing=f"they need {DETECTIONS} of the runs of two losses: report the folder of the runs")
    from cyclofocal.lab.data.lookup import SampleLookup  # imports torch

    try:
        lookup = SampleLookup(experiment.recipe, root)
        found = [read_results(paths[name], lookup.category_ids) for name in shown]
    except (ImportError, OSError, TypeError, ValueError) as error:
        return BoxStrip(missing=" ".join(str(error).split()))
    images = lookup.source
    assert isinstance(images, Samples)
    assert images.boxes is not None
    chosen = [[_most_certain(of_loss.get(b.image_id), b) for of_loss in found] for b in images.boxes]
    right = np.array([[matched(one, b)[0].sum() for one in ones] for ones, b in zip(chosen, images.boxes, strict=True)])
    apart = np.abs(right[:, 0] - right[:, 1])
    order = [i for i in np.argsort(-apart, kind="stable")[:MOST_IMAGES].tolist() if apart[i]]
    if not order:
        return BoxStrip(missing="the two losses find as many right boxes in every image")
    titles = tuple(experiment.titles[name] for name in shown)
    try:
        strips = tuple(
            (
                Path(images.name(i)).name,
                tuple(_picture(images, i, one, experiment.classes) for one in chosen[i]),
            )
            for i in order
        )
    except UnreadableImageError as error:
        return BoxStrip(missing=str(error))
    return BoxStrip(titles, strips)


def _two_losses(summary: Summary) -> list[str]:
    """The reference and the loss with the largest difference to it; without one, the first two."""
    compared = sorted(summary.compared(summary.primary), key=lambda found: -abs(found.estimate.mean))
    names = list(summary.experiment.runs)
    reference = [name for name in names if summary.experiment.titles[name] == summary.reference]
    return [*reference, *(found.name for found in compared)][:2] if reference and compared else names[:2]


def _most_certain(found: dict[str, Any] | None, truth: Boxes) -> dict[str, Any]:
    """The boxes of the highest scores, as many as there are true ones."""
    if found is None:
        return {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, np.int64), "scores": np.zeros(0)}
    first = np.argsort(-found["scores"], kind="stable")[: int((~truth.ignored).sum())]
    return {name: values[first] for name, values in found.items()}


def _picture(images: Samples, index: int, found: dict[str, Any], classes: list[str]) -> tuple[str, str]:
    """Picture of an image with the found boxes and the missed ones, and the number of right ones in words."""
    assert images.boxes is not None
    truth = images.boxes[index]
    right, taken = matched(found, truth)
    drawn = [DrawnBox(tuple(truth.corners[k]), "", MISSED) for k in np.flatnonzero(~taken)] + [
        DrawnBox(tuple(corners), classes[label], CORRECT if correct else WRONG)
        for corners, label, correct in zip(found["boxes"], found["labels"].tolist(), right, strict=True)
    ]
    total = int((~truth.ignored).sum())
    return data_uri(draw_boxes(images.image(index), drawn, STRIP_WIDTH), STRIP_WIDTH), f"{right.sum()} of {total} boxes"
