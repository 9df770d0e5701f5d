"""Labelled samples: images in memory or on disk, or rows of a table; and the three splits of an experiment."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from cyclofocal.lab.data.encoder import TableEncoder

if TYPE_CHECKING:
    from torch import Tensor

Labels = NDArray[np.int64]
Positions = NDArray[np.intp]


class Reader(Protocol):
    """Read images on demand; picklable, so that a data loader can pass it to its workers."""

    def read(self, position: int) -> Image.Image:
        """Decode one image, in mode L or RGB; raise ``UnreadableImageError`` if that fails."""

    def name(self, position: int) -> str:
        """Name of one image in messages, such as its path."""


@runtime_checkable
class StoredReader(Reader, Protocol):
    """Read encoded images, so that equal ones can be found without decoding."""

    def size(self, position: int) -> int:
        """Number of bytes of the encoded image."""

    def tail(self, position: int, count: int) -> bytes:
        """Last ``count`` bytes of the encoded image, at most ``size``."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of one image.

    Attributes:
        corners: left, top, right and bottom edge of each in pixels of the image, float64 (M, 4).
        classes: class of each, int64 (M,).
        ignored: crowds of COCO and difficult objects of Pascal VOC, bool (M,): not trained on, and neither right nor
            wrong in the evaluation.
        size: width and height of the image in pixels.
        image_id: number of the image in results in the format of COCO.
    """

    corners: NDArray[np.float64]
    classes: Labels
    ignored: NDArray[np.bool_]
    size: tuple[int, int]
    image_id: int


@dataclass(frozen=True, eq=False)
class Samples:
    """Labelled images, or rows of a table, of one split; selecting some costs no decoding.

    Attributes:
        labels: class per sample, (N,), int64; of images with boxes that of their rarest box, to draw splits by.
        positions: number of each sample in its source, (N,); unchanged by a selection.
        title: name of the split, such as "cifar10 train".
        inputs: images in memory, uint8 (N, channels, height, width), or the encoded rows of a table, float32
            (N, features); None for images that ``reader`` reads.
        max_pixel: largest value of a pixel; ``inputs / max_pixel`` lies in [0, 1].
        reader: reader of images that are not in memory.
        names: names of all samples in the source, by position; None numbers them.
        boxes: boxes of each image, (N,); None for samples of one class each.
    """

    labels: Labels
    positions: Positions
    title: str
    inputs: "Tensor | None" = None
    max_pixel: int = 255
    reader: Reader | None = None
    names: tuple[str, ...] | None = None
    boxes: tuple[Boxes, ...] | None = None

    def __post_init__(self) -> None:
        if (self.inputs is None) == (self.reader is None):
            raise ValueError(f"{self.title}: give either inputs or a reader")
        if self.inputs is not None and (str(self.inputs.dtype), self.inputs.ndim) not in (
            ("torch.uint8", 4),
            ("torch.float32", 2),
        ):
            seen = f"{self.inputs.dtype} of shape {tuple(self.inputs.shape)}"
            raise ValueError(
                f"{self.title}: inputs are {seen}; images must be uint8 (N, channels, height, width), rows of a table"
                " float32 (N, features)"
            )
        lengths = {len(self.labels), len(self.positions)} | ({len(self.inputs)} if self.inputs is not None else set())
        if len(lengths) > 1:
            raise ValueError(f"{self.title}: {len(self.labels)} labels, but other lengths {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_features(self) -> int:
        """Number of features of a table; 0 for images."""
        return self.inputs.shape[1] if self.inputs is not None and self.inputs.ndim == 2 else 0

    def image(self, index: int) -> Image.Image:
        """Image number ``index`` in mode L or RGB.

        Raises:
            IndexError: ``index`` is not in [0, N).
            ValueError: these are rows of a table.
            UnreadableImageError: the file is missing, cut off or not an image; names its path.
        """
        position = self._position(index)
        if self.n_features:
            raise ValueError(f"{self.title}: rows of a table are no images")
        if self.reader is not None:
            return self.reader.read(position)
        assert self.inputs is not None
        pixels = self.inputs[index].numpy()
        if self.max_pixel != 255:
            pixels = np.rint(pixels * (255 / self.max_pixel)).astype(np.uint8)
        return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))

    def name(self, index: int) -> str:
        """Name of a sample in messages: its path, "image 17 of cifar10 train", or "row P031 of people.csv"."""
        position = self._position(index)
        if self.reader is not None:
            return self.reader.name(position)
        known = position if self.names is None else self.names[position]
        return f"{'row' if self.n_features else 'image'} {known} of {self.title}"

    @property
    def digest(self) -> str:
        """Hash of the labels, the positions, and the names of images that are not in memory."""
        return _digest(self)

    def select(self, indices: ArrayLike) -> "Samples":
        """Select the samples at ``indices``, in this order.

        Raises:
            IndexError: an index is not in [0, N).
        """
        chosen = np.asarray(indices, dtype=np.intp)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"{self.title}: indices from {chosen.min()} to {chosen.max()} of {len(self)} samples")
        return replace(
            self,
            labels=self.labels[chosen],
            positions=self.positions[chosen],
            inputs=None if self.inputs is None else self.inputs[chosen],
            boxes=None if self.boxes is None else tuple(self.boxes[i] for i in chosen),
        )

    def class_counts(self, classes: int) -> tuple[int, ...]:
        """Samples per class; of images with boxes, the boxes per class that are not ignored."""
        labels = self.labels
        if self.boxes is not None:
            labels = np.concatenate([labels[:0], *(found.classes[~found.ignored] for found in self.boxes)])
        return tuple(np.bincount(labels, minlength=classes).tolist())

    def _position(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.title}: index {index} of {len(self)} samples")
        return int(self.positions[index])


def in_memory(pixels: "Tensor", labels: ArrayLike, title: str, max_pixel: int = 255) -> Samples:
    """Build samples of images in memory, numbered from 0."""
    return Samples(np.asarray(labels, dtype=np.int64), np.arange(len(pixels)), title, pixels, max_pixel)


def on_demand(reader: Reader, labels: ArrayLike, title: str) -> Samples:
    """Build samples of images that ``reader`` reads one by one, numbered from 0."""
    known = np.asarray(labels, dtype=np.int64)
    return Samples(known, np.arange(len(known)), title, reader=reader)


@dataclass(frozen=True, eq=False)
class _Joined:
    """Read the images of several splits, numbered through."""

    parts: tuple[Samples, ...]

    def read(self, position: int) -> Image.Image:
        return self._part(position)[0].image(self._part(position)[1])

    def name(self, position: int) -> str:
        return self._part(position)[0].name(self._part(position)[1])

    def _part(self, position: int) -> tuple[Samples, int]:
        for part in self.parts:
            if position < len(part):
                return part, position
            position -= len(part)
        raise IndexError(f"position {position} behind the last image")


def join(first: Samples, second: Samples) -> Samples:
    """Samples of two splits, one after the other; costs no decoding."""
    title, labels = f"{first.title} and {second.title}", np.concatenate([first.labels, second.labels])
    boxes = None if first.boxes is None or second.boxes is None else first.boxes + second.boxes
    if first.inputs is None or second.inputs is None:
        return replace(on_demand(_Joined((first, second)), labels, title), boxes=boxes)
    from torch import cat

    positions, inputs = np.concatenate([first.positions, second.positions]), cat([first.inputs, second.inputs])
    return Samples(labels, positions, title, inputs, first.max_pixel, boxes=boxes)


@dataclass(frozen=True)
class DataSet:
    """Training, validation and test samples of one experiment.

    Attributes:
        title: readable name, such as "fashion-mnist, long-tailed 100:1".
        classes: names of the classes, in label order.
        train: training samples, after the subset rule.
        validation: samples to choose settings by; None without such a split.
        test: samples that are evaluated once, after the last epoch.
        columns: of a table, a description of how each column is encoded; empty for images.
        encoder: encoder of a table, fitted to the training rows; None for images.
        category_ids: of boxes, the number of each class in results in the format of COCO.
    """

    title: str
    classes: tuple[str, ...]
    train: Samples
    validation: Samples | None
    test: Samples
    columns: dict[str, str] = field(default_factory=dict)
    encoder: TableEncoder | None = None
    category_ids: tuple[int, ...] = ()

    @property
    def counts(self) -> tuple[int, ...]:
        """Training samples, or boxes, per class."""
        return self.train.class_counts(len(self.classes))

    @property
    def splits(self) -> dict[str, Samples | None]:
        """Splits by their names in messages."""
        return {"training": self.train, "validation": self.validation, "test": self.test}

    @property
    def digest(self) -> str:
        """Hash of the labels of training and validation, in order, and of the samples' positions and names."""
        return _digest(self.train, self.validation)

    @property
    def digest_with_test(self) -> str:
        """Hash of all three splits, as :attr:`digest`."""
        return _digest(self.train, self.validation, self.test)


def _digest(*splits: Samples | None) -> str:
    content = hashlib.sha256()
    for split in splits:
        if split is not None:
            content.update(split.labels.tobytes() + split.positions.tobytes())
            names = () if split.reader is None else map(split.name, range(len(split)))
            content.update("\n".join(names).encode())
            for boxes in split.boxes or ():
                content.update(boxes.corners.tobytes() + boxes.classes.tobytes() + boxes.ignored.tobytes())
    return content.hexdigest()[:16]
