"""A report on the images of a data set: how many, of how many classes, and which cannot be read."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cyclofocal.lab.data.errors import MissingImageError, UnreadableImageError, several
from cyclofocal.lab.data.images import Images


@dataclass(frozen=True)
class Report:
    """What was found when every image of a split was opened.

    Attributes:
        title: of the split.
        images: how many are listed.
        counts: listed images per class, from class 0 to the highest label.
        missing: one message per image that is not there.
        unreadable: one message per image that is there and cannot be decoded.
    """

    title: str
    images: int
    counts: tuple[int, ...]
    missing: tuple[str, ...]
    unreadable: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether every image can be read and every class has one."""
        return not self.missing and not self.unreadable and all(self.counts)

    def __str__(self) -> str:
        present = sum(count > 0 for count in self.counts)
        lines = [
            f"{self.title}: {self.images} images of {present} classes, {min(self.counts)} to {max(self.counts)} each;"
            f" {len(self.missing)} missing, {len(self.unreadable)} unreadable"
        ]
        lines += [f"  {several(messages)}" for messages in (self.missing, self.unreadable) if messages]
        return "\n".join(lines)


def check(images: Images, workers: int = 1) -> Report:
    """Decode every image once, in ``workers`` threads, and report what cannot be had; nothing is raised for an image.

    Args:
        images: to be looked at.
        workers: threads, at least 1.

    Raises:
        ValueError: ``workers`` is below 1, or there is no image.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    if not len(images):
        raise ValueError(f"{images.title} has no image to check")
    with ThreadPoolExecutor(workers) as pool:
        faults = [fault for fault in pool.map(lambda i: _fault(images, i), range(len(images))) if fault is not None]
    missing = tuple(str(fault) for fault in faults if isinstance(fault, MissingImageError))
    unreadable = tuple(str(fault) for fault in faults if not isinstance(fault, MissingImageError))
    counts = np.bincount(images.labels[images.labels >= 0], minlength=1).tolist()
    return Report(images.title, len(images), tuple(counts), missing, unreadable)


def _fault(images: Images, index: int) -> UnreadableImageError | None:
    try:
        images.image(index)
    except UnreadableImageError as error:
        return error
    return None
