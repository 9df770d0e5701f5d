"""WebDataset shards in random access: an index of all members is made once, then any image can be read."""

import io
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cyclofocal.lab.data.dataset import DataSet, Samples, on_demand
from cyclofocal.lab.data.files import decode
from cyclofocal.lab.data.splits import LABEL_DIGITS, SPLIT_NAMES, make_splits
from cyclofocal.lab.messages import DamagedDataError, MissingDataError, preview

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
TAR_BLOCK = 512  # a tar file is made of such blocks, and ends with two of zeros


@dataclass(frozen=True, eq=False)
class Shards:
    """Read images in tar files; ``places`` (N, 3) holds shard, offset and size in bytes of each."""

    shards: tuple[Path, ...]
    keys: NDArray[np.bytes_]
    places: NDArray[np.int64]

    def read(self, position: int) -> Image.Image:
        """Read and decode one member."""
        return decode(io.BytesIO(self.tail(position, self.size(position))), self.name(position))

    def name(self, position: int) -> str:
        """Path of the shard and key of the sample."""
        return f"{self.shards[self.places[position, 0]]}:{os.fsdecode(self.keys[position])}"

    def size(self, position: int) -> int:
        """Number of bytes of one member."""
        return int(self.places[position, 2])

    def tail(self, position: int, count: int) -> bytes:
        """Last ``count`` bytes of one member."""
        shard, offset, size = self.places[position].tolist()
        with open(self.shards[shard], "rb") as file:
            file.seek(offset + size - count)
            return file.read(count)


def read_shards(folder: Path, test_fraction: float = 0.0) -> DataSet:
    """Read all ``.tar`` files in or below a folder; their names contain the word train, val or test, or a synonym.

    A sample is the members that share a name up to its first dot: one image (jpg, jpeg, png or webp) and its class
    number in decimal (cls). Members of other kinds, such as json, are not read. Samples come in the order of the
    shards' names, so subsets, resumed runs and several processes see the same numbers.

    Args:
        folder: folder of the shards.
        test_fraction: part of every class for the test set, in (0, 1) where there are only training shards, else 0.

    Raises:
        MissingDataError: no training shard.
        DamagedDataError: a shard that is cut off, or a sample without image or class; names shard and key.
        ValueError: a shard that is packed or belongs to no split; a class without image, a label beyond the classes.

    Reference: the WebDataset format, github.com/webdataset/webdataset.
    """
    found = _shards_by_split(folder)
    if not found["train"]:
        raise MissingDataError(f"{folder}: no shards for training; they are .tar files with 'train' in their name")
    train = index_shards(found["train"], f"{folder} train")
    others = {name: index_shards(found[name], f"{folder} {name}") for name in ("val", "test") if found[name]}
    classes = tuple(map(str, range(int(train.labels.max()) + 1)))
    return make_splits(str(folder), classes, train, others.get("val"), others.get("test"), test_fraction)


def index_shards(shards: list[Path], title: str) -> Samples:
    """Index the images of shards, in this order; reads headers and class numbers, but no image.

    Raises:
        DamagedDataError: as :func:`read_shards` raises it.
    """
    keys: list[bytes] = []
    labels: list[int] = []
    places: list[tuple[int, int, int]] = []
    for number, path in enumerate(shards):
        for key, (label, offset, size) in _samples(path).items():
            keys.append(os.fsencode(key))
            labels.append(label)
            places.append((number, offset, size))
    reader = Shards(tuple(shards), np.array(keys, dtype=np.bytes_), np.array(places, dtype=np.int64).reshape(-1, 3))
    return on_demand(reader, labels, title)


def _samples(path: Path) -> dict[str, tuple[int, int, int]]:
    """Find label, offset and size of every image of a shard, by key."""
    labels: dict[str, int] = {}
    images: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile():
                    _note(path, tar, member, labels, images)
            _check_end(path, tar)
    except (tarfile.TarError, EOFError) as error:
        raise DamagedDataError(f"{path}: cut off or not an uncompressed tar file ({error})") from error
    if labels.keys() != images.keys():
        lonely = sorted(labels.keys() ^ images.keys())
        raise DamagedDataError(f"{path}: {len(lonely)} samples lack their image or their class: {preview(lonely)}")
    return {key: (labels[key], *place) for key, place in images.items()}


def _note(
    path: Path,
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    labels: dict[str, int],
    images: dict[str, tuple[int, int]],
) -> None:
    folder, _, file = member.name.rpartition("/")
    stem, _, extension = file.partition(".")
    key = f"{folder}/{stem}" if folder else stem
    kind = extension.lower()
    if key in (labels if kind == "cls" else images if kind in IMAGE_EXTENSIONS else ()):
        raise DamagedDataError(f"{path}: sample {key} has more than one {'class' if kind == 'cls' else 'image'}")
    if kind in IMAGE_EXTENSIONS:
        images[key] = (member.offset_data, member.size)
    elif kind == "cls":
        content = tar.extractfile(member)
        assert content is not None
        text = content.read().strip()
        if not text.isdigit() or len(text) > LABEL_DIGITS:
            raise DamagedDataError(f"{path}: class of sample {key} is {text[:20]!r}; it must be a number from 0")
        labels[key] = int(text)


def _check_end(path: Path, tar: tarfile.TarFile) -> None:
    """Refuse a shard that is cut between two members, which lacks only the blocks of zeros at the end."""
    members = tar.getmembers()
    end = members[-1].offset_data + -(-members[-1].size // TAR_BLOCK) * TAR_BLOCK if members else 0
    with path.open("rb") as file:
        file.seek(end)
        if file.read(2 * TAR_BLOCK) != bytes(2 * TAR_BLOCK):
            raise DamagedDataError(f"{path}: cut off; it does not end as a tar file does")


def _shards_by_split(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    packed = sorted(path for path in folder.rglob("*") if path.name.endswith(PACKED))
    if packed:
        raise ValueError(f"{folder}: {len(packed)} shards are packed: {preview(packed)}; unpack them to .tar files")
    for path in sorted(folder.rglob("*.tar")):
        words = set(re.split(r"[^a-z]+", str(path.relative_to(folder)).lower()))
        splits = {SPLIT_NAMES[word] for word in words & SPLIT_NAMES.keys()}
        if len(splits) != 1:
            raise ValueError(
                f"{path}: its name must have exactly one of the words train, val and test in it, or a synonym"
            )
        found[splits.pop()].append(path)
    return found
