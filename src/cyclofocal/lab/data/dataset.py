"""Labelled images, in memory or read on demand, or rows of a table, and the three splits that an experiment needs."""

import hashlib
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

Labels = NDArray[np.int64]
Positions = NDArray[np.intp]


class Reader(Protocol):
    """Where images lie that are read on demand; picklable, so that a data loader's workers can have it."""

    def read(self, position: int) -> Image.Image:
        """Decoded image in mode L or RGB; an ``UnreadableImageError`` if it cannot be had."""

    def name(self, position: int) -> str:
        """What a message calls this image, such as its path."""


@runtime_checkable
class StoredReader(Reader, Protocol):
    """A reader of images that lie on disk as they were encoded, so that equal ones can be found without decoding."""

    def size(self, position: int) -> int:
        """Bytes of the encoded image."""

    def tail(self, position: int, count: int) -> bytes:
        """Its last ``count`` bytes, at most ``size``."""


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images, or rows of a table, of one split; subsets of them cost no decoding.

    Attributes:
        labels: class per image, (N,), int64.
        positions: number of each image in the set as it was published, (N,); a subset keeps it.
        title: of the set, such as "cifar10 train".
        pixels: uint8 (N, channels, height, width) where they lie in memory, else None; rows of a table, which a model
            takes as they are, float32 (N, inputs).
        white: the largest pixel value; ``pixels / white`` lies in [0, 1].
        reader: where to read them otherwise.
    """

    labels: Labels
    positions: Positions
    title: str
    pixels: Tensor | None = None
    white: int = 255
    reader: Reader | None = None

    def __post_init__(self) -> None:
        if (self.pixels is None) == (self.reader is None):
            raise ValueError(f"{self.title}: give either pixels or a reader")
        if self.pixels is not None and (self.pixels.dtype, self.pixels.ndim) not in (
            (torch.uint8, 4),
            (torch.float32, 2),
        ):
            seen = f"{self.pixels.dtype} of shape {tuple(self.pixels.shape)}"
            raise ValueError(
                f"{self.title}: pixels are {seen}; they must be uint8 (N, channels, height, width), or of a table"
                " float32 (N, inputs)"
            )
        lengths = {len(self.labels), len(self.positions)} | ({len(self.pixels)} if self.pixels is not None else set())
        if len(lengths) > 1:
            raise ValueError(f"{self.title}: {len(self.labels)} labels, but other lengths {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def inputs(self) -> int:
        """Numbers in a row of a table; 0 for images."""
        return self.pixels.shape[1] if self.pixels is not None and self.pixels.ndim == 2 else 0

    def image(self, index: int) -> Image.Image:
        """Image number ``index`` in mode L or RGB.

        Raises:
            IndexError: ``index`` is not in [0, N).
            ValueError: these are rows of a table.
            UnreadableImageError: the file is missing, cut off or not an image; names its path.
        """
        position = self._position(index)
        if self.inputs:
            raise ValueError(f"{self.title}: rows of a table are no images")
        if self.reader is not None:
            return self.reader.read(position)
        assert self.pixels is not None
        pixels = self.pixels[index].numpy()
        if self.white != 255:
            pixels = np.rint(pixels * (255 / self.white)).astype(np.uint8)
        return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))

    def name(self, index: int) -> str:
        """What a message calls the image: its path, or "image 17 of cifar10 train"."""
        position = self._position(index)
        if self.reader is not None:
            return self.reader.name(position)
        return f"{'row' if self.inputs else 'image'} {position} of {self.title}"

    def take(self, indices: ArrayLike) -> "Images":
        """The images at ``indices``, in this order.

        Raises:
            IndexError: an index is not in [0, N).
        """
        chosen = np.asarray(indices, dtype=np.intp)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"{self.title}: indices from {chosen.min()} to {chosen.max()} of {len(self)} images")
        return replace(
            self,
            labels=self.labels[chosen],
            positions=self.positions[chosen],
            pixels=None if self.pixels is None else self.pixels[torch.from_numpy(chosen)],
        )

    def _position(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.title}: index {index} of {len(self)} images")
        return int(self.positions[index])


def in_memory(pixels: Tensor, labels: ArrayLike, title: str, white: int = 255) -> Images:
    """Images whose pixels are all at hand, numbered from 0."""
    return Images(np.asarray(labels, dtype=np.int64), np.arange(len(pixels)), title, pixels, white)


def on_demand(reader: Reader, labels: ArrayLike, title: str) -> Images:
    """Images that ``reader`` reads one by one, numbered from 0."""
    known = np.asarray(labels, dtype=np.int64)
    return Images(known, np.arange(len(known)), title, reader=reader)


@dataclass(frozen=True)
class DataSet:
    """What one experiment learns from and is judged on.

    Attributes:
        title: for people, such as "fashion-mnist, long-tailed 100:1".
        classes: their names, in label order.
        train: training images, after the subset rule.
        validation: to choose settings by; None where none was asked for.
        test: touched once, after the last epoch.
    """

    title: str
    classes: tuple[str, ...]
    train: Images
    validation: Images | None
    test: Images

    @property
    def counts(self) -> tuple[int, ...]:
        """Training images per class."""
        return tuple(np.bincount(self.train.labels, minlength=len(self.classes)).tolist())

    @property
    def splits(self) -> dict[str, Images | None]:
        """The three splits by their names in messages."""
        return {"training": self.train, "validation": self.validation, "test": self.test}

    @property
    def digest(self) -> str:
        """Of the labels of training and validation, in order, and of what identifies each image; not of the pixels."""
        return _digest(self.train, self.validation)

    @property
    def digest_with_test(self) -> str:
        """The same of all three splits."""
        return _digest(self.train, self.validation, self.test)


def _digest(*splits: Images | None) -> str:
    content = hashlib.sha256()
    for split in splits:
        if split is not None:
            content.update(split.labels.tobytes() + split.positions.tobytes())
            names = () if split.reader is None else map(split.name, range(len(split)))
            content.update("\n".join(names).encode())
    return content.hexdigest()[:16]
