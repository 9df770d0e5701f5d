"""Boxes in the format of Pascal VOC: an XML file per image."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cyclofocal.lab.data.dataset import Boxes, Samples, on_demand
from cyclofocal.lab.data.files import files
from cyclofocal.lab.data.splits import SPLIT_NAMES
from cyclofocal.lab.messages import DamagedDataError, MissingDataError, preview

EDGES = ("xmin", "ymin", "xmax", "ymax")


class _Annotated(NamedTuple):
    """Content of an XML file: file name and size of the image, and of each object class, corners and difficulty."""

    file_name: str
    size: tuple[int, int]
    objects: list[tuple[str, list[float], bool]]


def read_voc(folder: Path, image_root: Path | None = None) -> tuple[tuple[str, ...], dict[str, Samples]]:
    """Read a folder of Pascal VOC; boxes are not checked against their images.

    XML files are in ``Annotations/`` or the folder itself, images in ``JPEGImages/`` or with the XML files, and the
    splits in ``ImageSets/Main/train.txt``, ``val.txt`` and ``test.txt``, names without suffix; without these files all
    images are for training.

    Args:
        folder: of the data set.
        image_root: folder of the images; None looks for them.

    Returns:
        Names of the classes in alphabetical order, and the splits by "train", "val" and "test".

    Raises:
        MissingDataError: no such folder, no XML file in it, a listed one that is not there, or defusedxml is missing.
        DamagedDataError: not XML, XML with a document type or entities, or a field that is missing or no number.
    """
    annotations = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    if image_root is None:
        image_root = folder / "JPEGImages" if (folder / "JPEGImages").is_dir() else annotations
    paths = {path.stem: path for path in sorted(annotations.glob("*.xml"))}
    if not paths:
        raise MissingDataError(f"{annotations}: no XML file there; a folder of Pascal VOC has them in Annotations/")
    listed = _listed(folder / "ImageSets" / "Main") or {"train": list(paths)}
    for name, stems in listed.items():
        if missing := [stem for stem in stems if stem not in paths]:
            raise MissingDataError(
                f"{folder}: {len(missing)} of {len(stems)} images of {name} have no XML file: {preview(missing)}"
            )
    read = {name: [_read(paths[stem]) for stem in stems] for name, stems in listed.items()}
    classes = tuple(sorted({kind for found in read.values() for image in found for kind, _, _ in image.objects}))
    numbers = {stem: number for number, stem in enumerate(paths, start=1)}
    return classes, {
        name: _samples(f"{folder.name} {name}", image_root, read[name], classes, [numbers[stem] for stem in stems])
        for name, stems in listed.items()
    }


def _listed(folder: Path) -> dict[str, list[str]]:
    """Names of the images of each split; empty without lists of them."""
    found = {SPLIT_NAMES[path.stem]: path for path in sorted(folder.glob("*.txt")) if path.stem in SPLIT_NAMES}
    return {name: path.read_text(encoding="utf-8-sig").split() for name, path in found.items()}


def _read(path: Path) -> _Annotated:
    """Parse an XML file, of which nothing but its own elements is read."""
    if find_spec("defusedxml") is None:
        raise MissingDataError("Pascal VOC needs defusedxml. Install with: pip install defusedxml")
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, parse

    try:
        root = parse(path, forbid_dtd=True).getroot()
    except DefusedXmlException:
        raise DamagedDataError(
            f"{path}: it has a document type, an entity or an external reference, which are not read; remove them"
        ) from None
    except (ParseError, ValueError, LookupError) as error:
        raise DamagedDataError(f"{path}: not XML ({error})") from None
    size = [int(_number(path, root, f"size/{side}")) for side in ("width", "height")]
    objects = [
        (
            _text(path, entry, "name"),
            [_number(path, entry, f"bndbox/{edge}") for edge in EDGES],
            (entry.findtext("difficult") or "0").strip() == "1",
        )
        for entry in root.iter("object")
    ]
    return _Annotated(_text(path, root, "filename"), (size[0], size[1]), objects)


def _text(path: Path, element: Any, name: str) -> str:
    found = (element.findtext(name) or "").strip()
    if not found:
        raise DamagedDataError(f"{path}: <{element.tag}> has no <{name.replace('/', '><')}>")
    return found


def _number(path: Path, element: Any, name: str) -> float:
    text = _text(path, element, name)
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < 1e9:
        raise DamagedDataError(f"{path}: <{name.replace('/', '><')}> is {text!r}; it must be a number of pixels")
    return number


def _samples(title: str, root: Path, read: list[_Annotated], classes: tuple[str, ...], ids: list[int]) -> Samples:
    places = {name: place for place, name in enumerate(classes)}
    boxes = tuple(
        Boxes(
            corners=np.array([corners for _, corners, _ in image.objects], dtype=np.float64).reshape(-1, 4),
            classes=np.array([places[name] for name, _, _ in image.objects], dtype=np.int64),
            ignored=np.array([difficult for _, _, difficult in image.objects], dtype=np.bool_),
            size=image.size,
            image_id=image_id,
        )
        for image, image_id in zip(read, ids, strict=True)
    )
    reader = files(root, [image.file_name for image in read])
    return replace(on_demand(reader, np.zeros(len(read)), title), boxes=boxes)
