"""Features of a frozen network: computed once, stored in checked files, and read as the rows that a head learns.

A folder of features has a file for every :data:`PART_SIZE` images of a split, as ``train-00000.pt``, and in the end
``labels.pt`` with all labels. Each is written atomically with its SHA-256, so a computation that is killed continues
with the file it was at.
"""

import hashlib
import math
import re
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cyclofocal.lab.data.check import TAIL
from cyclofocal.lab.data.dataset import DataSet, Samples, StoredReader
from cyclofocal.lab.hashes import content_hash
from cyclofocal.lab.messages import DamagedDataError, MissingDataError
from cyclofocal.lab.recipes.head import HeadRecipe
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training import rng
from cyclofocal.lab.training.accelerator import start_accelerator
from cyclofocal.lab.training.batches import build_loader
from cyclofocal.lab.training.checkpoint import DamagedCheckpointError, load_checkpoint, write_checked
from cyclofocal.lab.training.job import RunOptions
from cyclofocal.lab.training.predict import predict
from cyclofocal.lab.training.run_folder import lock_run
from cyclofocal.lab.training.train import PLAIN

PART_SIZE = 1024
"""Number of images in a file of features."""

BATCH_SIZE = 64
"""Number of images that pass the frozen network at once."""

SUMMARY = "labels.pt"
"""File that is written last."""

FILE_NAMES = {"training": "train", "validation": "validation", "test": "test"}
"""Splits by their names in messages, and their names in files."""

UNFINISHED = re.compile(r"\.[\w-]+\.pt-\w+\.tmp")
"""Name of a file that a killed process was writing."""


@dataclass(frozen=True, eq=False)
class Part:
    """Images whose features are in one file."""

    path: Path
    images: Samples

    def read(self) -> Tensor:
        """Features (N, D).

        Raises:
            DamagedCheckpointError: no whole file, or one of another number of images.
        """
        features = load_checkpoint(self.path, ("features",))["features"]
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(self.images):
            raise DamagedCheckpointError(f"{self.path}: not the features of {len(self.images)} images")
        return features


def features_digest(data: DataSet, recipe: HeadRecipe) -> str:
    """Hash of all that features follow from: the images, their preparation, and the frozen network.

    Images in memory are hashed whole; of an image file, its size and its last 4 KiB; of an image that another library
    reads, its name.
    """
    splits = [_images_hash(images) for images in data.splits.values() if images is not None]
    prepared = [recipe.image_size, recipe.channels, recipe.mean, recipe.std, recipe.center_crop]
    return content_hash([data.classes, splits, prepared, recipe.backbone_digest])


def missing_parts(data: DataSet, folder: Path) -> tuple[list[Part], list[DamagedCheckpointError]]:
    """Parts whose features are not stored, and what is wrong with files that were meant to hold some."""
    missing: list[Part] = []
    damaged: list[DamagedCheckpointError] = []
    for part in _parts(data, folder):
        if not part.path.exists():
            missing.append(part)
            continue
        try:
            part.read()
        except DamagedCheckpointError as error:
            damaged.append(error)
            missing.append(part)
    return missing, damaged


def compute_features(network: nn.Module, parts: list[Part], recipe: HeadRecipe, options: RunOptions) -> Iterator[int]:
    """Store the features of parts, and yield the number of images of each once it is stored.

    The network is in evaluation mode and images are not augmented; features are float32.

    Args:
        network: gives features (N, D) of images.
        parts: of :func:`missing_parts`.
        recipe: says how images are prepared.
        options: ``cpu`` and ``workers`` are used.

    Raises:
        UnreadableImageError: an image cannot be decoded; names it.
        FloatingPointError: a feature is not finite.
    """
    prepared = _preparation(recipe)
    accelerator = start_accelerator(prepared, options)
    network = network.to(accelerator.device).eval()
    with rng.preserve_rng_state():
        for part in parts:
            loader = build_loader(part.images, prepared, accelerator.device, options.workers)
            features = predict(network, loader, len(part.images), BATCH_SIZE, accelerator)
            if not features.isfinite().all():
                raise FloatingPointError(
                    f"{recipe.backbone}: a feature of {part.images.title} is not finite; its weights are damaged, or"
                    " it takes images of another mean and std"
                )
            write_checked(part.path, {"features": features.clone()})
            yield len(part.images)


def store_features(
    network: nn.Module, data: DataSet, recipe: HeadRecipe, options: RunOptions
) -> Generator[int, None, None]:
    """Store all features that are not stored yet; yield the number of images to compute, then that of each part.

    Another process that does the same is waited for, and its files are used.
    """
    folder = Path(recipe.features_folder)
    with lock_run(folder):
        for leftover in folder.iterdir():
            if UNFINISHED.fullmatch(leftover.name):
                leftover.unlink()
        missing, damaged = missing_parts(data, folder)
        for error in damaged:
            print(f"damaged features, computed again: {error}", file=sys.stderr)
        yield sum(len(part.images) for part in missing)
        if missing:
            yield from compute_features(network, missing, recipe, options)
        write_checked(folder / SUMMARY, _summary(data))


def load_features(recipe: Recipe, root: Path, seed: int) -> DataSet:
    """The stored features as rows, normalised: over the training rows each has mean 0, and all together variance 1.

    Raises:
        MissingDataError: features that are not stored.
        DamagedDataError: a file that is not as it was written.
    """
    assert isinstance(recipe, HeadRecipe)
    folder = Path(recipe.features_folder)
    if not (folder / SUMMARY).is_file():
        raise MissingDataError(f"{folder}: no features there; `cyclofocal compare --features` computes them")
    try:
        return _normalised(_read(folder))
    except DamagedCheckpointError as error:
        raise DamagedDataError(f"{error}; run the same command again, which computes these features again") from None


HEAD = PLAIN._replace(load=load_features)
"""Training of a head on stored features."""


def _preparation(recipe: HeadRecipe) -> Recipe:
    """Recipe that prepares images for the frozen network."""
    return Recipe(
        recipe.name,
        recipe.title,
        recipe.data,
        epochs=1,
        learning_rate=1.0,
        image_size=recipe.image_size,
        channels=recipe.channels,
        mean=recipe.mean,
        std=recipe.std,
        augment="timm" if recipe.center_crop else "none",
    )


def _images_hash(images: Samples) -> str:
    """Hash of the labels of a split and of its images."""
    found = hashlib.sha256(images.labels.tobytes())
    if images.inputs is not None:
        found.update(images.inputs.numpy().tobytes())
    elif isinstance(images.reader, StoredReader):
        for position in images.positions.tolist():
            size = images.reader.size(position)
            found.update(f"{size} ".encode() + images.reader.tail(position, min(size, TAIL)))
    else:
        found.update("\n".join(map(images.name, range(len(images)))).encode())
    return found.hexdigest()


def _parts(data: DataSet, folder: Path) -> Iterator[Part]:
    for name, images in data.splits.items():
        for number, first in enumerate(range(0, len(images), PART_SIZE) if images else ()):
            assert images is not None
            own = images.select(np.arange(first, min(first + PART_SIZE, len(images))))
            yield Part(folder / f"{FILE_NAMES[name]}-{number:05d}.pt", own)


def _summary(data: DataSet) -> dict[str, Any]:
    """Content of the file of labels."""
    splits = {
        FILE_NAMES[name]: {
            "title": images.title,
            "labels": torch.from_numpy(images.labels),
            "positions": torch.from_numpy(images.positions),
        }
        for name, images in data.splits.items()
        if images is not None
    }
    return {"title": data.title, "classes": list(data.classes), "splits": splits}


def _read(folder: Path) -> DataSet:
    """The data set of a folder of features, as they were computed."""
    content = load_checkpoint(folder / SUMMARY, ("title", "classes", "splits"))

    def rows(name: str) -> Samples:
        split = content["splits"][name]
        paths = [folder / f"{name}-{number:05d}.pt" for number in range(-(-len(split["labels"]) // PART_SIZE))]
        features = torch.cat([load_checkpoint(path, ("features",))["features"] for path in paths])
        return Samples(split["labels"].numpy(), split["positions"].numpy(), split["title"], features)

    validation = rows("validation") if "validation" in content["splits"] else None
    return DataSet(content["title"], tuple(content["classes"]), rows("train"), validation, rows("test"))


def _normalised(data: DataSet) -> DataSet:
    """Subtract each feature's mean, and divide all by one number, so that rarely active features stay small; in place.

    The mean and the number are those of the training rows.
    """
    splits = [rows.inputs for rows in (data.train, data.validation, data.test) if rows and rows.inputs is not None]
    train = splits[0]
    mean = train.mean(0, dtype=torch.float64).float()
    for features in splits:
        features -= mean
    scale = torch.linalg.vector_norm(train, dtype=torch.float64).item() / math.sqrt(train.numel())
    for features in splits:
        features /= scale or 1.0  # 0 where all features are constant
    return data
