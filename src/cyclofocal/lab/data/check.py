"""A report on the images of a data set: how many, of how many classes, which cannot be read, which are copies."""

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from cyclofocal.lab.data.dataset import Samples, StoredReader
from cyclofocal.lab.messages import MissingImageError, UnreadableImageError, preview

TAIL = 4096
"""Bytes at the end, which tell files of equal size apart at the cost of one block each; only equal ones are read."""

PART = 1000
"""Images that a thread looks at in one go."""


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
        """Whether every image can be read, every class has one, and there is more than one class."""
        return not self.missing and not self.unreadable and all(self.counts) and len(self.counts) > 1

    def __str__(self) -> str:
        present = sum(count > 0 for count in self.counts)
        lines = [
            f"{self.title}: {self.images} images of {present} classes, {min(self.counts)} to {max(self.counts)} each;"
            f" {len(self.missing)} missing, {len(self.unreadable)} unreadable"
        ]
        lines += [f"  {preview(messages)}" for messages in (self.missing, self.unreadable) if messages]
        return "\n".join(lines)


@dataclass(frozen=True)
class Copies:
    """Images that are equal byte for byte, each named with the first that it equals, as "A = B".

    Attributes:
        sizes: images per split.
        shared: by (split, earlier split), those that lie in both.
        torn: those of two classes, with their labels.
        repeated: those that lie twice in one class of one split.
    """

    sizes: Mapping[str, int]
    shared: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    torn: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """What makes a result wrong, in words: images in two splits, or of two classes."""
        lines = [
            f"{len(pairs)} of {self.sizes[split]} {split} images are {earlier} images too, byte for byte:"
            f" {preview(pairs)}"
            for (split, earlier), pairs in self.shared.items()
        ]
        return lines + ([f"{len(self.torn)} images are of two classes: {preview(self.torn)}"] if self.torn else [])

    def __str__(self) -> str:
        repeated = f"{len(self.repeated)} images are repeated within their class: {preview(self.repeated)}"
        return "\n".join(self.faults + ([repeated] if self.repeated else []))


def copies(splits: Mapping[str, Samples | None], workers: int = 8) -> Copies:
    """Find images that are equal byte for byte, within and between splits, without decoding any.

    Sizes are compared first, then the last 4 KiB of files of equal size, then the SHA-256 of what is still equal, so
    that hardly any file but a copy is read. Missing files and images that do not lie on disk one by one are passed
    over.

    Args:
        splits: by name, training images first; None is passed over.
        workers: threads that read.
    """
    stored = {name: images for name, images in splits.items() if images and isinstance(images.reader, StoredReader)}
    found = Copies({name: len(images) for name, images in stored.items()})
    groups = [[_Stored(name, images, index) for name, images in stored.items() for index in range(len(images))]]
    with ThreadPoolExecutor(workers) as pool:
        for key in (_Stored.size, _Stored.tail, _Stored.whole):
            groups = _alike(groups, key, pool)
    for first, *others in groups:
        for other in others:
            _note(found, first, other)
    return found


def check(images: Samples, workers: int = 1) -> Report:
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
    """The groups cut into those of equal ``key``, without what is alone or cannot be read."""
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
    except OSError:  # missing, which is reported elsewhere
        return None


def _note(found: Copies, first: _Stored, other: _Stored) -> None:
    is_torn = first.label != other.label and min(first.label, other.label) >= 0
    if is_torn:
        found.torn.append(f"{other} (label {other.label}) = {first} (label {first.label})")
    if first.split != other.split:
        found.shared.setdefault((other.split, first.split), []).append(f"{other} = {first}")
    elif not is_torn:
        found.repeated.append(f"{other} = {first}")
