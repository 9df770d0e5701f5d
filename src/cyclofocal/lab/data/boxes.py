"""Images with boxes: checks that all formats share, and the splits of a data set."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cyclofocal.lab.data.coco import read_coco
from cyclofocal.lab.data.config import TEST_FRACTION, VOC, BoxData, path_of
from cyclofocal.lab.data.dataset import DataSet, Labels, Samples
from cyclofocal.lab.data.files import find_dataset, image_size
from cyclofocal.lab.data.lists import check_present
from cyclofocal.lab.data.scenes import read_digit_scenes
from cyclofocal.lab.data.splits import FRACTION_SEED, test_or_validation
from cyclofocal.lab.data.voc import read_voc
from cyclofocal.lab.messages import DamagedDataError, counted, preview


class BoxSplits(NamedTuple):
    """Images with boxes as they are stored, checked.

    Attributes:
        title: name of the data set.
        classes: names of the classes.
        category_ids: numbers of the classes in a COCO file; empty for other formats.
        splits: by "train", "val" and "test".
    """

    title: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    splits: dict[str, Samples]


def read_boxes(data: BoxData, root: Path) -> DataSet:
    """Read a data set of images with boxes; without a test set its validation set is the test set.

    Args:
        data: source, and the treatment of boxes that cannot be right.
        root: folder of published data sets.

    Raises:
        MissingDataError, MissingImageError, DamagedDataError: as of :func:`box_splits`.
        ValueError: categories that differ between files, or one without a training box; a test set and a
            ``test_fraction``.
    """
    if data.source == "digit-scenes":
        return read_digit_scenes()
    title, classes, category_ids, splits = box_splits(data, root)
    train, validation, test = (splits.get(name) for name in ("train", "val", "test"))
    if train is None:
        raise ValueError(f"{title} has no training images; its splits are {', '.join(splits)}")
    validation, test = test_or_validation(title, validation, test, data.test_fraction)
    if test is None:
        train, test = _split_off(train, data.test_fraction or TEST_FRACTION)
    for images, part in ((train, "training"), (test, "test")):
        empty = [f"{c} ({classes[c]})" for c, count in enumerate(images.class_counts(len(classes))) if not count]
        if empty:
            raise ValueError(
                f"{title}: {len(empty)} of {len(classes)} categories have no {part} box: {preview(empty)}; annotate"
                " some, remove the category, or give other splits (--set validation_list=FILE --set test_list=FILE, or"
                " test_fraction=0.3)"
            )
    return DataSet(title, classes, train, validation, test, category_ids=category_ids)


def box_splits(data: BoxData, root: Path) -> BoxSplits:
    """Read and check the images and boxes of a COCO file, of Pascal VOC, or of a published data set.

    Raises:
        MissingDataError: a file, folder or package that is not there.
        MissingImageError: an image that is annotated and not there; several are named, with a count.
        DamagedDataError: a file of another format, an annotation of an unknown image or category, a box outside of its
            image or without area; several are named, with a count.
        ValueError: categories that differ between files.
    """
    found = _coco_splits(data) if data.source.endswith(".json") else _voc_splits(data, root)
    if hollow := [images.title for images in found.splits.values() if not len(images)]:
        raise DamagedDataError(f"{', '.join(hollow)}: no image in it; list some, or remove the file")
    splits = {
        name: checked_boxes(images, found.classes, data.bad_boxes == "drop") for name, images in found.splits.items()
    }
    return found._replace(splits=splits)


def _coco_splits(data: BoxData) -> BoxSplits:
    paths = {"train": data.source, "val": data.validation_list, "test": data.test_list}
    read = {
        name: read_coco(Path(path).expanduser(), Path(data.image_root) if data.image_root else None)
        for name, path in paths.items()
        if path
    }
    categories = read["train"].categories
    for name, found in read.items():
        if found.categories != categories:
            raise ValueError(f"{paths[name]} has other categories than {data.source}; they must have the same ids")
    splits = {name: found.images for name, found in read.items()}
    return BoxSplits(data.source, tuple(categories.values()), tuple(categories), splits)


def _voc_splits(data: BoxData, root: Path) -> BoxSplits:
    if data.source.startswith(VOC):
        folder = path_of(data.source)
    else:
        places = [root / "bccd" / "BCCD", root / "BCCD", root / "bccd"]
        folder = find_dataset(("Annotations",), places, data.source, "prepare it as docs/data.md describes")
    classes, splits = read_voc(folder, Path(data.image_root) if data.image_root else None)
    return BoxSplits(data.source, classes, (), splits)


def checked_boxes(images: Samples, classes: Sequence[str], drop: bool = False) -> Samples:
    """The images with corners moved into the image where they are less than a pixel outside of it.

    Args:
        images: images with boxes.
        classes: names of the classes.
        drop: leave out boxes that are further outside or without area, instead of refusing them.

    Raises:
        MissingImageError, DamagedDataError: images and boxes that cannot be used; several are named, with a count.
    """
    assert images.boxes is not None
    check_present(images, "; give the folder of the images with --images")
    bad, found, resized = [], [], []
    for i, boxes in enumerate(images.boxes):
        if (size := image_size(images.name(i))) != boxes.size:
            resized.append(f"{images.name(i)} ({size[0]} x {size[1]}, annotated {boxes.size[0]} x {boxes.size[1]})")
        edge = np.array(boxes.size * 2)
        corners = boxes.corners.clip(0, edge)
        right = (np.abs(corners - boxes.corners) <= 1).all(1) & (corners[:, 2:] > corners[:, :2]).all(1)
        for k in np.flatnonzero(~right):
            kind = f"{boxes.corners[k].tolist()} of {classes[boxes.classes[k]]}"
            bad.append(f"{images.name(i)}, {boxes.size[0]} x {boxes.size[1]} pixels: {kind}")
        found.append(replace(boxes, corners=corners[right], classes=boxes.classes[right], ignored=boxes.ignored[right]))
    if resized:
        raise DamagedDataError(
            f"{images.title}: {counted(len(resized), 'image is', 'images are')} of another size than annotated:"
            f" {preview(resized)}; correct the annotations"
        )
    if bad and not drop:
        raise DamagedDataError(
            f"{images.title}: {counted(len(bad), 'box is', 'boxes are')} outside of the image or without area (left,"
            f" top, right, bottom): {preview(bad)}; correct the annotations, or leave such boxes out with"
            " --set bad_boxes=drop"
        )
    checked = replace(images, boxes=tuple(found))
    return replace(checked, labels=_rarest(checked, len(classes)))


def _split_off(images: Samples, fraction: float) -> tuple[Samples, Samples]:
    """Split off a ``fraction`` of the images by a fixed seed, evenly over their rarest classes; rest and fraction."""
    rng = np.random.default_rng(FRACTION_SEED)
    order = np.lexsort((rng.random(len(images)), images.labels))
    steps = np.floor(np.arange(len(images) + 1) * fraction + rng.random())
    drawn = set(order[np.diff(steps) > 0].tolist())
    assert images.boxes is not None
    classes_of = [set(found.classes[~found.ignored].tolist()) for found in images.boxes]
    for c in sorted(set().union(*classes_of)):  # each has an image for testing, if it has two
        having = [i for i, found in enumerate(classes_of) if c in found]
        if len(having) > 1 and drawn.isdisjoint(having):
            drawn.add(having[0])
    for c in sorted(set().union(*classes_of)):  # each keeps one for training
        having = [i for i, found in enumerate(classes_of) if c in found]
        if drawn.issuperset(having):
            drawn.remove(having[-1])
    test = np.array(sorted(drawn), dtype=np.int64)
    return images.select(np.setdiff1d(order, test)), images.select(test)


def _rarest(images: Samples, classes: int) -> Labels:
    """Class of the rarest box of each image; ``classes`` for an image without one."""
    counts = [*images.class_counts(classes), np.inf]
    return np.array(
        [min({*found.classes.tolist()} or {classes}, key=lambda c: (counts[c], c)) for found in images.boxes or ()],
        dtype=np.int64,
    )
