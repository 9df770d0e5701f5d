"""Image files: find a data set's folder, decode images, and list missing files."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cyclofocal.lab.messages import MissingDataError, MissingImageError, UnreadableImageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""File names of images, as torchvision's ImageFolder has them."""

DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def decode(file: str | BinaryIO, name: str) -> Image.Image:
    """Decode the image in ``file``, in mode L if it is grey, else in RGB.

    Raises:
        MissingImageError: no such file.
        UnreadableImageError: cut off, not an image, or of more than 8 bits per channel; begins with ``name``.
    """
    try:
        with Image.open(file) as image:
            if image.mode not in DEEP_MODES:
                return image.convert("L" if image.mode in ("1", "L") else "RGB")
            mode = image.mode
    except FileNotFoundError as error:
        raise MissingImageError(f"{name}: no such file") from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"{name}: not a readable image (no format that Pillow knows)") from error
    except Exception as error:  # Pillow's decoders raise more than OSError on damaged files
        raise UnreadableImageError(f"{name}: not a readable image ({error})") from error
    raise UnreadableImageError(f"{name}: mode {mode}; images must have 8 bits per channel")


def image_size(path: str) -> tuple[int, int]:
    """Width and height of an image file, without decoding its pixels.

    Raises:
        MissingImageError: no such file.
        UnreadableImageError: no image; begins with the path.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError as error:
        raise MissingImageError(f"{path}: no such file") from error
    except Exception as error:  # Pillow's decoders raise more than OSError on damaged files
        raise UnreadableImageError(f"{path}: not a readable image ({error})") from error


@dataclass(frozen=True, eq=False)
class Files:
    """Read image files below ``root`` by relative path."""

    root: Path
    paths: NDArray[np.bytes_]  # bytes in one block: a list of a million strings would be copied into every worker

    def read(self, position: int) -> Image.Image:
        """Decode one file."""
        path = self.name(position)
        return decode(path, path)

    def name(self, position: int) -> str:
        """Full path of one file."""
        return os.path.join(self.root, os.fsdecode(self.paths[position]))

    def size(self, position: int) -> int:
        """Number of bytes of one file."""
        return os.stat(self.name(position)).st_size

    def tail(self, position: int, count: int) -> bytes:
        """Last ``count`` bytes of one file."""
        with open(self.name(position), "rb") as file:
            file.seek(-count, os.SEEK_END)
            return file.read(count)

    def missing(self, positions: NDArray[np.intp]) -> list[str]:
        """List missing files by relative path; every folder is listed once, and no image is opened."""
        listings: dict[bytes, set[bytes]] = {}
        absent = []
        for path in self.paths[positions].tolist():
            folder, _, file = path.rpartition(b"/")
            if folder not in listings:
                listings[folder] = _listing(os.path.join(os.fsencode(self.root), folder))
            if file not in listings[folder]:
                absent.append(os.fsdecode(path))
        return absent


def files(root: Path, paths: list[str]) -> Files:
    """Build the reader of files below ``root``."""
    return Files(root, np.array([os.fsencode(path) for path in paths], dtype=np.bytes_))


def _listing(folder: bytes) -> set[bytes]:
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def find_dataset(names: Sequence[str], folders: Iterable[Path], data_set: str, remedy: str) -> Path:
    """Find the first of ``folders`` that has any of ``names``.

    Raises:
        MissingDataError: there is none; the message lists the folders and the ``remedy``.
    """
    searched = list(folders)
    for folder in searched:
        if any((folder / name).exists() for name in names):
            return folder
    places = ", ".join(map(str, searched))
    raise MissingDataError(f"{data_set} not found: no {' or '.join(names)} in {places}. To get it: {remedy}")
