"""Data sets of torchvision, Hugging Face and TensorFlow, read through timm."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import IterableDataset

from cyclofocal.lab.data.config import TimmData
from cyclofocal.lab.data.dataset import DataSet, Samples, on_demand
from cyclofocal.lab.data.files import decode
from cyclofocal.lab.data.splits import make_splits
from cyclofocal.lab.messages import MissingDataError, UnreadableImageError

EVALUATION = {"val": ("validation", "val", "valid"), "test": ("test",)}


@dataclass(frozen=True, eq=False)
class Torchvision:
    """Read a map-style torchvision data set of (PIL image, label)."""

    data_set: Any
    title: str

    def read(self, position: int) -> Image.Image:
        """Let torchvision decode one image."""
        try:
            image = self.data_set[position][0]
        except Exception as error:  # whatever its loader raises
            raise UnreadableImageError(f"{self.name(position)}: not a readable image ({error})") from error
        return image.convert("L" if image.mode in ("1", "L") else "RGB")

    def name(self, position: int) -> str:
        """Path of the file, if the data set knows it."""
        samples = getattr(self.data_set, "samples", getattr(self.data_set, "imgs", None))
        return str(samples[position][0]) if samples else f"image {position} of {self.title}"


@dataclass(frozen=True, eq=False)
class HuggingFace:
    """Read a Hugging Face data set in random access, by timm's reader.

    timm's data set is not used, because it replaces an unreadable image by the next one.
    """

    dataset: Any
    title: str

    def read(self, position: int) -> Image.Image:
        """Decode one image."""
        try:
            file = self.dataset[position][0]
        except Exception as error:  # a file that is gone, or a row without one
            raise UnreadableImageError(f"{self.name(position)}: its file cannot be opened ({error})") from error
        with file:
            return decode(file, self.name(position))

    def name(self, position: int) -> str:
        """Number of the row; paths of Hugging Face are often those of a cache."""
        return f"image {position} of {self.title}"


@dataclass(frozen=True, eq=False)
class MaterializedImages:
    """Read images of a stream, stored as PNG, which is lossless."""

    packed: list[bytes]
    title: str

    def read(self, position: int) -> Image.Image:
        """Unpack one image."""
        return decode(io.BytesIO(self.packed[position]), self.name(position))

    def name(self, position: int) -> str:
        """Position in the stream."""
        return f"image {position} of {self.title}"


def read_timm(data: TimmData, root: Path) -> DataSet:
    """Read a data set through timm.

    ``torch/NAME`` and ``hfds/NAME`` are read image by image. ``tfds/NAME`` can only be streamed: it is read once, in
    its unshuffled order, and stays in memory, so that subsets, resumed runs and several processes are exact; it has to
    fit. Only ``hfds/`` downloads missing data, where there is a network; ``hfds//DIR`` reads a folder.

    Args:
        data: its source is such as "torch/mnist", "hfds/cifar10" or "tfds/beans".
        root: folder where the library stores its data.

    Raises:
        MissingDataError: the library does not find it below ``root``, or its library is not installed.
        ValueError: the library has no such data set, or it is better read without timm.
    """
    source = data.source
    if source.lower() in ("torch/image_folder", "torch/folder"):
        raise ValueError(f"source is {source!r}; give the folder itself, 'path:DIR'")
    keys: dict[str, Any] = (
        {} if source.startswith("torch/") else {"input_key": data.image_key, "target_key": data.label_key}
    )
    train_host = _create(source, root, "train", keys)
    offered = _evaluation_splits(source, train_host)
    splits = {name: _create(source, root, split, keys) for name, split in offered.items()}
    images = {name: _images(dataset, f"{source} {name}") for name, dataset in splits.items()}
    train = _images(train_host, f"{source} train")
    return make_splits(
        source, _class_names(train_host, train), train, images.get("val"), images.get("test"), data.test_fraction
    )


def _create(source: str, root: Path, split: str, keys: dict[str, Any]) -> Any:
    from timm.data import create_dataset

    try:
        return create_dataset(source, root=str(root), split=split, is_training=False, **keys)
    except ImportError as error:
        raise MissingDataError(f"{source}: its library is not installed ({error})") from error
    except (OSError, RuntimeError, KeyError) as error:  # KeyError: known to TensorFlow's data sets, but not prepared
        call = f"timm.data.create_dataset({source!r}, root={str(root)!r}, split={split!r}, download=True)"
        remedy = "use a network, or 'hfds//DIR' for a folder" if source.startswith("hfds/") else f"in Python `{call}`"
        raise MissingDataError(
            f"{source} {split} is not in {root} ({_first_line(error)}). To get it: {remedy}"
        ) from error
    except (AssertionError, ValueError) as error:
        fields = f" with {keys}" if keys else ""
        raise ValueError(f"source is {source!r}{fields}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """First line of a message; libraries list all their data sets in the others."""
    return str(error).partition("\n")[0]


def _evaluation_splits(source: str, train_host: Any) -> dict[str, str]:
    """Map our names of the evaluation splits to the library's."""
    if source.startswith("torch/"):
        return {"val": "validation"}
    reader = train_host.reader
    info = reader.builder.info if hasattr(reader, "builder") else reader.dataset.info
    offered = set(info.splits or ())
    return {name: next(s for s in names if s in offered) for name, names in EVALUATION.items() if offered & set(names)}


def _images(dataset: Any, title: str) -> Samples:
    if isinstance(dataset, IterableDataset):
        return _materialise(dataset, title)
    if hasattr(dataset, "reader"):
        return on_demand(HuggingFace(dataset.reader, title), _column(dataset.reader, title), title)
    return on_demand(Torchvision(dataset, title), _targets(dataset), title)


def _targets(dataset: Any) -> Any:
    """Read the labels of a torchvision data set, from memory if possible."""
    for name in ("targets", "labels", "_labels"):
        if hasattr(dataset, name):
            return np.asarray(getattr(dataset, name))
    return [dataset[i][1] for i in range(len(dataset))]


def _column(reader: Any, title: str) -> Any:
    fields = reader.dataset.column_names
    # timm's reader adds an empty field where there is none of the name that it was given
    if reader.label_key not in fields or reader.dataset[0][reader.image_key] is None:
        raise ValueError(
            f"{title}: image_key {reader.image_key!r} or label_key {reader.label_key!r} is not among its fields,"
            f" {', '.join(name for name in fields if name != reader.image_key)}"
        )
    labels = np.asarray(reader.dataset[reader.label_key][:])
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{title}: field {reader.label_key!r} holds {labels.dtype}; labels must be class numbers")
    return labels


def _materialise(dataset: Any, title: str) -> Samples:
    # A reader made inside a process group would give every process a part of the stream.
    dataset.reader.dist_rank, dataset.reader.dist_num_replicas = 0, 1
    packed, labels = [], []
    for image, label in dataset:
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        packed.append(file.getvalue())
        labels.append(int(label))
    return on_demand(MaterializedImages(packed, title), labels, title)


def _class_names(dataset: Any, train: Samples) -> tuple[str, ...]:
    names = getattr(dataset, "classes", None)
    if names is None:
        known = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None) or {}
        names = sorted(known, key=known.__getitem__)
    return tuple(map(str, names)) if len(names) else tuple(map(str, range(int(train.labels.max()) + 1)))
