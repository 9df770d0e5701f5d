"""A trained detector, and its boxes in new images in the results format of COCO."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import nn

from cyclofocal.lab.data.boxes import checked_boxes
from cyclofocal.lab.data.coco import coco_results, read_coco
from cyclofocal.lab.data.dataset import Boxes, Samples
from cyclofocal.lab.data.files import image_size
from cyclofocal.lab.detection.batches import BoxLoader
from cyclofocal.lab.detection.draw import CLASS_COLOURS, DrawnBox, draw_boxes
from cyclofocal.lab.detection.precision import check_evaluation, evaluate_boxes
from cyclofocal.lab.detection.task import detect
from cyclofocal.lab.predict.images import find_images
from cyclofocal.lab.predict.model import new_images
from cyclofocal.lab.recipes.detection import DetectionRecipe
from cyclofocal.lab.records import write_atomically
from cyclofocal.lab.training.accelerator import start_accelerator
from cyclofocal.lab.training.job import RunOptions
from cyclofocal.lab.training.saved_model import ModelDescription

LEAST_SCORE = 0.3
"""Score from which a box is drawn by default."""

PICTURE_WIDTH = 960
"""Width of a picture with boxes, in pixels."""


class TrainedDetector:
    """A trained detector.

    Attributes:
        module: network, in evaluation mode, called as torchvision's detectors are; class labels count from 0.
        classes: names of the classes.
        recipe: recipe of the run, without its data.
        description: content of ``model.json``.
    """

    def __init__(self, module: nn.Module, recipe: DetectionRecipe, description: ModelDescription) -> None:
        self.module, self.recipe, self.description = module, recipe, description
        self.classes = tuple(description.classes)
        self.category_ids = tuple(description.preprocessing.get("category_ids", ()))

    def detect(self, images: Samples, workers: int = 0) -> list[dict[str, Any]]:
        """Boxes of images, with labels and scores, in pixels of the image.

        Raises:
            UnreadableImageError: an image cannot be decoded; names its path.
        """
        device = next(self.module.parameters()).device
        accelerator = start_accelerator(self.recipe, RunOptions(cpu=device.type == "cpu"))
        return detect(self.module, BoxLoader(images, self.recipe, device, workers), len(images), accelerator)


class DetectionSummary(NamedTuple):
    """Result of detecting: number of images and of boxes, and average precision where the true boxes are known."""

    images: int
    boxes: int
    metrics: dict[str, float | None]


def detect_files(
    model: TrainedDetector,
    sources: Sequence[Path],
    output: Path,
    pictures: Path | None = None,
    least_score: float = LEAST_SCORE,
    workers: int = 0,
    image_root: Path | None = None,
) -> DetectionSummary:
    """Find the boxes of images, and write them in the results format of COCO.

    Args:
        model: detector.
        sources: image files, folders of images or list files; or one COCO file, whose boxes are then evaluated.
        output: JSON file; entries of images without a number in a COCO file have their ``file_name``.
        pictures: folder for pictures with boxes; None draws none.
        least_score: score from which a box is drawn.
        workers: number of processes that decode images.
        image_root: folder of the images of a COCO file; None is that of the file.

    Raises:
        MissingDataError, DamagedDataError, ValueError: images or a COCO file that cannot be used.
    """
    is_coco = any(source.suffix.lower() == ".json" for source in sources)
    if is_coco and len(sources) > 1:
        raise ValueError(f"{', '.join(map(str, sources))}: a COCO file is given alone; omit the others")
    if image_root is not None and not is_coco:
        raise ValueError(f"{image_root}: a folder of images is for a COCO file (.json); omit it")
    images, ids = _annotated(sources[0], image_root, model.classes) if is_coco else (_plain(sources, model.classes), ())
    assert images.boxes is not None
    found = model.detect(images, workers)
    image_ids = [boxes.image_id for boxes in images.boxes]
    results = coco_results(image_ids, found, ids or model.category_ids)
    if not is_coco:
        names = {boxes.image_id: images.name(i) for i, boxes in enumerate(images.boxes)}
        results = [entry | {"file_name": names[entry["image_id"]]} for entry in results]
    write_atomically(output, json.dumps(results).encode())
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        for i, one in enumerate(found):
            path = pictures / f"{i + 1:05d}-{Path(images.name(i)).stem}.jpg"
            _picture(images.image(i), one, model.classes, least_score).save(path, quality=90)
    known = is_coco and any(len(boxes.classes) for boxes in images.boxes)
    metrics = evaluate_boxes(found, images.boxes, model.description.train_counts).metrics if known else {}
    return DetectionSummary(len(images), len(results), metrics)


def _annotated(path: Path, root: Path | None, classes: tuple[str, ...]) -> tuple[Samples, tuple[int, ...]]:
    """Images of a COCO file, whose categories must be the classes of the model, and the numbers of these."""
    check_evaluation()
    file = read_coco(path, root)
    if (names := tuple(file.categories.values())) != classes:
        raise ValueError(f"{path} has the categories {', '.join(names)}; those of the model are {', '.join(classes)}")
    return checked_boxes(file.images, classes), tuple(file.categories)


def _plain(sources: Sequence[Path], classes: tuple[str, ...]) -> Samples:
    """Images without annotations, numbered from 1."""
    images = new_images(find_images(sources, classes).paths)
    none = (np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, np.bool_))
    boxes = [Boxes(*none, image_size(images.name(i)), i + 1) for i in range(len(images))]
    return replace(images, boxes=tuple(boxes))


def _picture(image: Image.Image, found: dict[str, Any], classes: tuple[str, ...], least: float) -> Image.Image:
    rows = zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
    rising = sorted(rows, key=lambda row: row[2])  # so that of boxes in one place the likeliest is seen
    drawn = [
        DrawnBox((corners[0], corners[1], corners[2], corners[3]), f"{classes[c]} {score:.2f}", _colour(c))
        for corners, c, score in rising
        if score >= least
    ]
    return draw_boxes(image, drawn, min(PICTURE_WIDTH, max(image.width, 320)))


def _colour(c: int) -> str:
    return CLASS_COLOURS[c % len(CLASS_COLOURS)]
