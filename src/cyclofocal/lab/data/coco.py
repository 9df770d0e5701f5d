"""Boxes in the format of COCO: one JSON file of images, annotations and categories."""

import json
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cyclofocal.lab.data.dataset import Boxes, Samples, on_demand
from cyclofocal.lab.data.files import files, image_size
from cyclofocal.lab.messages import DamagedDataError, MissingDataError, MissingImageError, preview
from cyclofocal.lab.schema import fault


class CocoFile(NamedTuple):
    """Content of a COCO file.

    Attributes:
        categories: names by id, in the order of the ids.
        images: images with their boxes.
    """

    categories: dict[int, str]
    images: Samples


@dataclass(frozen=True)
class _Image:
    id: int
    file_name: str
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True)
class _Category:
    id: int
    name: str


@dataclass(frozen=True)
class _Annotation:
    image_id: int
    category_id: int
    bbox: list[float]
    iscrowd: int = 0


COCO_PARTS: dict[str, type] = {"images": _Image, "categories": _Category, "annotations": _Annotation}
"""Lists of a COCO file, and the fields that are read of their entries."""


def read_coco(path: Path, image_root: Path | None = None) -> CocoFile:
    """Read a COCO file of object detection; boxes are not checked against their images.

    Args:
        path: JSON file.
        image_root: folder of the images; None is the folder of the file.

    Raises:
        MissingDataError: no such file, or no such folder.
        DamagedDataError: not JSON, a field that is missing or of another type, an id that occurs twice, or an
            annotation of an unknown image or category.

    Reference: cocodataset.org, "Data format".
    """
    if not path.is_file():
        raise MissingDataError(f"{path}: no such file; boxes are in a COCO file (.json), or in a folder of Pascal VOC")
    root = image_root or path.parent
    if not root.is_dir():
        raise MissingDataError(f"{root}: no such folder; image_root (--images) must hold the images of {path}")
    content = _parse(path)
    images = {entry.id: entry for entry in content["images"]}
    categories = {entry.id: entry.name for entry in sorted(content["categories"], key=lambda entry: entry.id)}
    for name, known in (("images", images), ("categories", categories)):
        if len(known) != len(content[name]):
            counts = Counter(entry.id for entry in content[name])
            repeated = [number for number, count in counts.items() if count > 1]
            raise DamagedDataError(f"{path}: {name} have these ids more than once: {preview(repeated)}")
        if not known:
            raise DamagedDataError(f"{path}: {name} is empty; it must have one or more")
    names = Counter(name.strip() for name in categories.values())
    if wrong := [repr(name) for name, count in names.items() if count > 1 or not name]:
        raise DamagedDataError(
            f"{path}: categories have {preview(wrong)} as a name more than once, or none; rename them"
        )
    of_image: dict[int, list[_Annotation]] = {number: [] for number in images}
    for place, entry in enumerate(content["annotations"]):
        if entry.image_id not in images or entry.category_id not in categories:
            which, known = ("category_id", categories) if entry.image_id in images else ("image_id", images)
            raise DamagedDataError(
                f"{path}: annotations[{place}].{which} is {getattr(entry, which)}, which is unknown; known are"
                f" {preview([*known])}"
            )
        of_image[entry.image_id].append(entry)
    places = {number: place for place, number in enumerate(categories)}
    boxes = tuple(_boxes(entry, _size(entry, root), of_image[entry.id], places) for entry in images.values())
    reader = files(root, [entry.file_name for entry in images.values()])
    return CocoFile(categories, replace(on_demand(reader, np.zeros(len(images)), str(path)), boxes=boxes))


def coco_results(
    image_ids: list[int], found: list[dict[str, Any]], category_ids: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Detections in the results format of COCO: image_id, category_id, bbox (left, top, width, height), score.

    Args:
        image_ids: number of each image.
        found: of each image ``boxes`` (M, 4) as corners, ``labels`` (M,) and ``scores`` (M,).
        category_ids: number of each class; empty numbers them from 1.
    """
    results = []
    for image_id, one in zip(image_ids, found, strict=True):
        rows = zip(one["boxes"].tolist(), one["labels"].tolist(), one["scores"].tolist(), strict=True)
        for (left, top, right, bottom), label, score in rows:
            number = category_ids[label] if category_ids else label + 1
            bbox = [round(side, 3) for side in (left, top, right - left, bottom - top)]
            results.append({"image_id": image_id, "category_id": number, "bbox": bbox, "score": round(score, 6)})
    return results


def read_results(path: Path, category_ids: tuple[int, ...]) -> dict[int, dict[str, Any]]:
    """Detections of a file of :func:`coco_results`, as that takes them, in arrays by the number of the image.

    Raises:
        DamagedDataError: not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedDataError(f"{path}: not JSON ({error}); it may have been cut off") from None
    places = {number: place for place, number in enumerate(category_ids)}
    rows: dict[int, list[tuple[list[float], int, float]]] = {}
    try:
        for entry in content:
            left, top, width, height = entry["bbox"]
            label = places[entry["category_id"]] if category_ids else entry["category_id"] - 1
            found = [left, top, left + width, top + height], label, entry["score"]
            rows.setdefault(entry["image_id"], []).append(found)
    except (KeyError, TypeError, ValueError):
        raise DamagedDataError(f"{path}: no detections in the results format of COCO") from None
    return {
        number: {
            "boxes": np.array([corners for corners, _, _ in found], dtype=np.float64),
            "labels": np.array([label for _, label, _ in found], dtype=np.int64),
            "scores": np.array([score for _, _, score in found], dtype=np.float64),
        }
        for number, found in rows.items()
    }


def _parse(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        why = "it is empty" if not path.stat().st_size else f"{error}; it must be UTF-8, and may have been cut off"
        raise DamagedDataError(f"{path}: not JSON ({why})") from None
    parts = content if isinstance(content, dict) else {}
    if missing := [name for name in COCO_PARTS if not isinstance(parts.get(name), list)]:
        raise DamagedDataError(
            f"{path}: no list {' and no list '.join(missing)}; a COCO file of boxes has {', '.join(COCO_PARTS)}"
        )
    return {name: [_entry(path, name, place, e) for place, e in enumerate(parts[name])] for name in COCO_PARTS}


def _entry(path: Path, name: str, place: int, content: Any) -> Any:
    kind, given = COCO_PARTS[name], content if isinstance(content, dict) else {}
    known = {entry.name: given[entry.name] for entry in fields(kind) if entry.name in given}
    said = fault(known, kind, f"{name}[{place}]")
    if not said and name == "annotations" and len(known["bbox"]) != 4:
        said = f"{name}[{place}].bbox has {len(known['bbox'])} numbers; it must have 4: left, top, width, height"
    if said:
        raise DamagedDataError(f"{path}: {said}")
    return kind(**known)


def _size(image: _Image, root: Path) -> tuple[int, int]:
    """Width and height; of the image itself where the file does not give them."""
    if image.width and image.height:
        return image.width, image.height
    try:
        return image_size(str(root / image.file_name))
    except MissingImageError:
        return 0, 0  # they are reported together


def _boxes(image: _Image, size: tuple[int, int], annotations: list[_Annotation], places: dict[int, int]) -> Boxes:
    bbox = np.array([entry.bbox for entry in annotations], dtype=np.float64).reshape(-1, 4)
    return Boxes(
        corners=np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1),
        classes=np.array([places[entry.category_id] for entry in annotations], dtype=np.int64),
        ignored=np.array([bool(entry.iscrowd) for entry in annotations], dtype=np.bool_),
        size=size,
        image_id=image.id,
    )
