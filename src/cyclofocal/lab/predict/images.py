"""Find new images: files, folders and list files, with classes where their names or lines give them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cyclofocal.lab.data.files import EXTENSIONS
from cyclofocal.lab.data.splits import LABEL_DIGITS
from cyclofocal.lab.data.tables import SUFFIXES
from cyclofocal.lab.messages import DamagedDataError, MissingDataError, preview


class NewImages(NamedTuple):
    """Paths of images, and the class of each, -1 where it is not known."""

    paths: list[str]
    labels: list[int]


def find_images(sources: Sequence[Path], classes: Sequence[str]) -> NewImages:
    """Find the images of files, folders and list files, in this order.

    Folders are searched to any depth, without hidden ones. If a folder in it is called as a class, all with images
    must be.

    Args:
        sources: image files, folders, or list files (``path`` or ``path label`` per line, relative to the list).
        classes: names of the classes of the model.

    Raises:
        MissingDataError: no such file, or no image in a folder.
        DamagedDataError: a list that is not text, or a label beyond the classes.
        ValueError: a table, or a folder of a class that the model does not know; names it.
    """
    paths, labels = list[str](), list[int]()
    for source in sources:
        if source.is_dir():
            found = _in_folder(source, classes)
        elif source.suffix.lower() in SUFFIXES:
            raise ValueError(f"{source}: a table, but the model was trained on images; give images or lists of them")
        elif source.suffix.lower() in EXTENSIONS:
            found = NewImages([str(source)], [-1])
        else:
            found = _in_list(source, classes)
        paths += found.paths
        labels += found.labels
    return NewImages(paths, labels)


def _in_folder(folder: Path, classes: Sequence[str]) -> NewImages:
    paths = []
    for place, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        paths += [os.path.join(place, name) for name in sorted(names) if _is_image(name)]
    if not paths:
        raise MissingDataError(f"{folder}: no images in it; their names end in {' '.join(EXTENSIONS)}")
    parts = [Path(path).relative_to(folder).parts for path in paths]
    tops = [part[0] if len(part) > 1 else "" for part in parts]
    if not set(tops) & set(classes):
        return NewImages(paths, [-1] * len(paths))
    if strange := sorted(set(tops) - {*classes, ""}):
        raise ValueError(
            f"{folder}: the model knows no class {preview(list(map(repr, strange)))}; its classes are"
            f" {preview(classes)}. Rename the folders, or give the images without class folders"
        )
    number = {name: c for c, name in enumerate(classes)}
    return NewImages(paths, [number.get(top, -1) for top in tops])


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _in_list(path: Path, classes: Sequence[str]) -> NewImages:
    if not path.is_file():
        raise MissingDataError(f"{path}: no such file; give images, a folder of images, or a list file")
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise DamagedDataError(f"{path}: neither an image by its name nor a text file ({error})") from error
    if not lines or not all(line.strip() for line in lines):
        raise DamagedDataError(f"{path}: empty, or with an empty line; a list has a path on each line")
    names, labels = [line.strip() for line in lines], [-1] * len(lines)
    pairs = [name.rsplit(maxsplit=1) for name in names]
    if all(len(pair) == 2 and pair[1].isdecimal() and len(pair[1]) <= LABEL_DIGITS for pair in pairs):
        names, labels = [pair[0] for pair in pairs], [int(pair[1]) for pair in pairs]
        if max(labels) >= len(classes):
            raise DamagedDataError(
                f"{path}: label {max(labels)}, but the model has {len(classes)} classes, 0 to {len(classes) - 1}"
            )
    return NewImages([str(path.parent / name) for name in names], labels)
