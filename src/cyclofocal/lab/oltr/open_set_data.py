"""Images of known classes to learn from, and images of unknown ones to reject."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cyclofocal.lab.data.dataset import DataSet, Samples, on_demand
from cyclofocal.lab.data.files import EXTENSIONS, files
from cyclofocal.lab.data.lists import check_present, list_images
from cyclofocal.lab.messages import MissingDataError
from cyclofocal.lab.training.predictions import UNKNOWN


@dataclass(frozen=True)
class OpenData(DataSet):
    """A data set of known classes; ``unknown`` test images have the label -1, None: there are none."""

    unknown: Samples | None = None

    @property
    def splits(self) -> dict[str, Samples | None]:
        """All splits by their names in messages."""
        return {**super().splits, "open-set": self.unknown}


def with_unknown(data: DataSet, unknown: Samples | None) -> OpenData:
    """The data set with an open set."""
    return OpenData(data.title, data.classes, data.train, data.validation, data.test, unknown=unknown)


def hold_out(data: DataSet, classes: int) -> OpenData:
    """Take the last ``classes`` classes out; their test images are the unknown ones.

    Raises:
        ValueError: fewer than 2 known classes would be left.
    """
    n_known = len(data.classes) - classes
    if classes < 1 or n_known < 2:
        raise ValueError(
            f"held_out_classes is {classes} of {len(data.classes)}; it must be at least 1 and leave at least 2"
        )

    def known(images: Samples) -> Samples:
        return images.select(np.flatnonzero(images.labels < n_known))

    return OpenData(
        f"{data.title}, last {classes} of {len(data.classes)} classes held out",
        data.classes[:n_known],
        known(data.train),
        None if data.validation is None else known(data.validation),
        known(data.test),
        unknown=_unlabelled(data.test.select(np.flatnonzero(data.test.labels >= n_known))),
    )


def open_images(source: Path, root: Path | None = None) -> Samples:
    """Images of no known class: of a list file, whatever its labels, or all that lie in a folder.

    Args:
        source: list file, or folder.
        root: where the paths of a list begin; by default in its own folder.

    Raises:
        MissingDataError: neither file nor folder, or no image in it.
        MissingImageError: a listed image is not there.
    """
    if source.is_dir():
        paths = sorted(
            path.relative_to(source).as_posix() for path in source.rglob("*") if path.suffix.lower() in EXTENSIONS
        )
        if not paths:
            raise MissingDataError(f"{source}: no image in this folder; an open set needs some")
        return on_demand(files(source, paths), np.full(len(paths), UNKNOWN), str(source))
    images = list_images(source, source.parent if root is None else root)
    check_present(images)
    return _unlabelled(images)


def _unlabelled(images: Samples) -> Samples:
    return replace(images, labels=np.full_like(images.labels, UNKNOWN))
