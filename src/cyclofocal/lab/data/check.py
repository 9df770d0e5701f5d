"""Check the images of a data set: count them, and list those that are missing, unreadable or copies."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from cyclofocal.lab.data.dataset import Samples, StoredReader
from cyclofocal.lab.messages import LISTED_IMAGES, MissingImageError, UnreadableImageError, counted, preview
from cyclofocal.ranges import check_at_least

TAIL = 4096
"""Number of last bytes that are compared before two files of equal size are read as a whole."""

PART = 1000
"""Number of images in a unit of work of a thread."""


@dataclass(frozen=True)
class CheckReport:
    """Result of opening every image of a split.

    Attributes:
        title: name of the split.
        n_images: number of listed images.
        class_counts: listed images per class, from class 0 to the highest label.
        missing: one message per image that is not there.
        unreadable: one message per image that is there and cannot be decoded.
    """

    title: str
    n_images: int
    class_counts: tuple[int, ...]
    missing: tuple[str, ...]
    unreadable: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """True if every image can be read, every class has one, and there is more than one class."""
        return not self.missing and not self.unreadable and all(self.class_counts) and len(self.class_counts) > 1

    def __str__(self) -> str:
        present = sum(count > 0 for count in self.class_counts)
        lines = [
            f"{self.title}: {self.n_images} images of {present} classes,"
            f" {min(self.class_counts)} to {max(self.class_counts)} each;"
            f" {len(self.missing)} missing, {len(self.unreadable)} unreadable"
        ]
        lines += [f"  {preview(self.missing)}"] if self.missing else []
        lines += [f"  {preview(self.unreadable, LISTED_IMAGES)}"] if self.unreadable else []
        return "\n".join(lines)


@dataclass(frozen=True)
class Copies:
    """Images that are equal byte for byte, each named with the first that it equals, as "A = B".

    Attributes:
        sizes: number of images per split.
        shared: images in two splits, by (split, earlier split).
        conflicting: images of two classes, with their labels.
        repeated: images that occur twice in one class of one split.
    """

    sizes: Mapping[str, int]
    shared: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    conflicting: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Sentences on copies that make results wrong: images in two splits, or of two classes."""
        lines = [
            f"{len(pairs)} of {self.sizes[split]} {split} images are {earlier} images too, byte for byte:"
            f" {preview(pairs)}"
            for (split, earlier), pairs in self.shared.items()
        ]
        return lines + (
            [f"{counted(len(self.conflicting), 'image is', 'images are')} of two classes: {preview(self.conflicting)}"]
            if self.conflicting
            else []
        )

    def __str__(self) -> str:
        count = len(self.repeated)
        copies = counted(count, "image is repeated within its class", "images are repeated within their class")
        repeated = f"{copies}: {preview(self.repeated)}"
        return "\n".join(self.problems + ([repeated] if self.repeated else []))


def find_copies(splits: Mapping[str, Samples | None], workers: int = 8, classes: Sequence[str] = ()) -> Copies:
    """Find images that are equal byte for byte, within and between splits, without decoding any.

    Sizes are compared first, then the last 4 KiB of files of equal size, then the SHA-256 of those that are still
    equal, so that hardly any file but a copy is read. Missing files and images that are not single files are skipped.

    Args:
        splits: splits by name, training first; None is skipped.
        workers: number of threads.
        classes: names of the classes for messages; without them labels are given.
    """
    stored = {name: images for name, images in splits.items() if images and isinstance(images.reader, StoredReader)}
    found = Copies({name: len(images) for name, images in stored.items()})
    groups = [[_Stored(name, images, index) for name, images in stored.items() for index in range(len(images))]]
    with ThreadPoolExecutor(workers) as pool:
        for key in (_Stored.size, _Stored.tail, _Stored.whole):
            groups = _alike(groups, key, pool)
    for first, *others in groups:
        for other in others:
            _note(found, first, other, classes)
    return found


def check_images(images: Samples, workers: int = 1) -> CheckReport:
    """Decode every image once and report those that fail; nothing is raised for an image.

    Args:
        images: images to check.
        workers: number of threads, at least 1.

    Raises:
        ValueError: ``workers`` is below 1, or there is no image.
    """
    check_at_least("workers", workers)
    if not len(images):
        raise ValueError(f"{images.title} has no image to check")
    with ThreadPoolExecutor(workers) as pool:
        faults = [fault for fault in pool.map(lambda i: _fault(images, i), range(len(images))) if fault is not None]
    missing = tuple(str(fault) for fault in faults if isinstance(fault, MissingImageError))
    unreadable = tuple(str(fault) for fault in faults if not isinstance(fault, MissingImageError))
    counts = np.bincount(images.labels[images.labels >= 0], minlength=1).tolist()
    return CheckReport(images.title, len(images), tuple(counts), missing, unreadable)


def _fault(images: Samples, index: int) -> UnreadableImageError | None:
    try:
        images.image(index)
    except UnreadableImageError as error:
        return error
    return None


@dataclass(frozen=True, slots=True)
class _Stored:
    """One image of a split."""

    split: str
    images: Samples
    index: int

    @property
    def label(self) -> int:
        return int(self.images.labels[self.index])

    def size(self) -> int:
        return self._reader.size(self._position)

    def tail(self) -> bytes:
        return self._digest(min(TAIL, self.size()))

    def whole(self) -> bytes:
        return self._digest(self.size())

    def _digest(self, count: int) -> bytes:
        return hashlib.sha256(self._reader.tail(self._position, count)).digest()

    @property
    def _reader(self) -> StoredReader:
        assert isinstance(self.images.reader, StoredReader)
        return self.images.reader

    @property
    def _position(self) -> int:
        return int(self.images.positions[self.index])

    def __str__(self) -> str:
        return self.images.name(self.index)


def _alike(
    groups: list[list[_Stored]], key: Callable[[_Stored], object], pool: ThreadPoolExecutor
) -> list[list[_Stored]]:
    """Split groups by ``key``, and leave out images that are alone or cannot be read."""
    members = [(number, image) for number, group in enumerate(groups) for image in group]
    parts = [members[start : start + PART] for start in range(0, len(members), PART)]
    found: dict[tuple[int, object], list[_Stored]] = {}
    for part in pool.map(lambda part: [(number, _key(image, key), image) for number, image in part], parts):
        for number, value, image in part:
            if value is not None:
                found.setdefault((number, value), []).append(image)
    return [group for group in found.values() if len(group) > 1]


def _key(image: _Stored, key: Callable[[_Stored], object]) -> object:
    try:
        return key(image)
    except OSError:  # missing files are reported by check_images
        return None


def _note(found: Copies, first: _Stored, other: _Stored, classes: Sequence[str]) -> None:
    is_conflicting = first.label != other.label and min(first.label, other.label) >= 0
    if is_conflicting:
        named = [
            f"{image} (class {classes[image.label]})" if classes else f"{image} (label {image.label})"
            for image in (other, first)
        ]
        found.conflicting.append(" = ".join(named))
    if first.split != other.split:
        found.shared.setdefault((other.split, first.split), []).append(f"{other} = {first}")
    elif not is_conflicting:
        found.repeated.append(f"{other} = {first}")
