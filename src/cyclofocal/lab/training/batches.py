"""Batches of an epoch: the same samples in the same batches whatever the number of processes and of workers."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cyclofocal.lab.data.dataset import Samples
from cyclofocal.lab.messages import UnreadableImageError
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training import rng
from cyclofocal.lab.training.augment import augment, epoch_draws, scale
from cyclofocal.lab.training.transforms import EvalTransform, Key, TimmTransform

MOST_BYTES = 2**29
"""Most bytes of decoded images in the memory of a process, a byte per pixel and channel."""

DECODED_AT_ONCE = 256

Pixels = TypeVar("Pixels", Tensor, list[Tensor])
"""Decoded images, uint8 (N, channels, height, width), or (channels, height, width) each."""

_DECODED: dict[str, Tensor | list[Tensor]] = {}
"""Decoded images of the runs of this process, the oldest first."""


@dataclass(frozen=True)
class Batch:
    """This process's share of a batch.

    Attributes:
        images: float32 (N, channels, height, width) on the device, or (N, inputs) of a table.
        labels: (N,) on the device.
        indices: of the images in the training set, on the CPU; N / aug_splits of them.
        total: images of the batch in all processes, splits counted.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    total: int


@dataclass(frozen=True)
class Shard:
    """Which process of how many."""

    rank: int = 0
    world: int = 1

    def of(self, batch: Tensor) -> Tensor:
        """This process's part of a batch: places p and N - 1 - p go together, as mixup pairs them.

        Example:
            >>> [Shard(rank, 2).of(torch.arange(7)).tolist() for rank in (0, 1)]
            [[0, 2, 4, 6], [1, 3, 5]]
        """
        if self.world == 1:
            return batch
        place = torch.arange(len(batch))
        return batch[torch.minimum(place, len(batch) - 1 - place) % self.world == self.rank]


class BatchLoader(Protocol):
    """Images as the model takes them."""

    def train(self, batches: Sequence[Tensor], share: Shard, seed: int, epoch: int) -> Iterator[Batch]:
        """Augmented batches of the given indices."""

    def eval_batches(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Images of the given indices, not augmented."""


def build_loader(
    images: Samples,
    recipe: Recipe,
    device: torch.device,
    workers: int = 0,
    training: bool = False,
    every_epoch: bool = False,
) -> BatchLoader:
    """Choose a loader: in memory where the inputs have the model's size, else image by image, as timm's recipes need.

    Args:
        images: samples of a split.
        recipe: settings of model and augmentation.
        device: device of the batches.
        workers: number of processes that read images from disk.
        training: augment the images that are for training.
        every_epoch: the images are read in every epoch; without timm's augmentation they are then decoded once, and
            stay in memory at the model's size, up to :data:`MOST_BYTES` of them.

    Raises:
        ValueError: rows of a table that the recipe would augment as images.
    """
    if images.n_features and (recipe.augment != "none" or recipe.cutmix):
        raise ValueError(
            f"{images.title} is a table; augment is {recipe.augment!r} and cutmix is {recipe.cutmix}, which are of"
            " images and must be 'none' and 0"
        )
    shape = (recipe.channels, recipe.image_size, recipe.image_size)
    fits = images.inputs is not None and images.inputs.shape[1:] == shape and recipe.augment != "timm"
    if images.n_features or fits:
        return InMemoryLoader(images, recipe, device)
    if every_epoch and recipe.augment != "timm" and len(images) * math.prod(shape) <= MOST_BYTES:
        return InMemoryLoader(_decoded(images, recipe, workers), recipe, device)
    return ImageFileLoader(images, recipe, device, workers, training)


def _decoded(images: Samples, recipe: Recipe, workers: int) -> Samples:
    """Images at the model's size in memory."""

    def decode() -> Tensor:
        loader = ImageFileLoader(images, recipe, torch.device("cpu"), workers, training=False)
        return torch.cat([*loader.pixels(torch.arange(len(images)).split(DECODED_AT_ONCE))])

    return replace(images, inputs=decoded_once(images, recipe, decode), reader=None)


def decoded_once(images: Samples, recipe: Recipe, decode: Callable[[], Pixels]) -> Pixels:
    """Return the decoded images of this run, or of an earlier one of this process that had the same.

    Of all runs :data:`MOST_BYTES` stay in memory.
    """
    key = f"{type(recipe).__name__} {images.digest} {recipe.channels} {recipe.image_size}"
    if key not in _DECODED:
        pixels = decode()
        while _DECODED and sum(map(_size, [pixels, *_DECODED.values()])) > MOST_BYTES:
            del _DECODED[next(iter(_DECODED))]
        _DECODED[key] = pixels
    return cast(Pixels, _DECODED[key])


def _size(pixels: Tensor | list[Tensor]) -> int:
    return sum(map(torch.numel, pixels))


def check_last_batch(n_images: int, batch_size: int, world: int) -> None:
    """Every process must have its share of every batch.

    Raises:
        ValueError: the last batch of an epoch is too small for ``world`` processes.
    """
    last = n_images % batch_size or batch_size
    if (last + 1) // 2 < world:
        raise ValueError(
            f"batch_size is {batch_size} for {n_images} images, so the last batch has {last}; {world} processes need"
            f" {2 * world - 1} or more in every batch"
        )


def epoch_batches(seed: int, epoch: int, n_images: int, batch_size: int) -> tuple[Tensor, ...]:
    """Indices of every batch of an epoch, all images once; the last batch may be smaller."""
    return rng.epoch_permutation(seed, epoch, n_images).split(batch_size)


class InMemoryLoader:
    """The whole set on the device: images, augmented there, or rows of a table, as they are."""

    def __init__(self, images: Samples, recipe: Recipe, device: torch.device) -> None:
        assert images.inputs is not None
        self.recipe, self.device, self.is_table = recipe, device, images.n_features > 0
        self.inputs = images.inputs.to(device)
        self.labels = torch.from_numpy(images.labels).to(device)
        to_float = nn.Identity() if images.n_features else scale(recipe, images.max_pixel, device)
        self.scale: Callable[[Tensor], Tensor] = to_float

    def train(self, batches: Sequence[Tensor], share: Shard, seed: int, epoch: int) -> Iterator[Batch]:
        if self.is_table and share.world == 1:
            yield from self._rows(batches)
            return
        drawn = epoch_draws(self.recipe, seed, epoch, len(self.labels)).to(self.device)
        for batch in batches:
            indices = share.of(batch)
            own = indices.to(self.device, non_blocking=True)
            images = augment(self.inputs[own], drawn[own] if len(drawn) else drawn, self.recipe, self.scale)
            yield Batch(images, self.labels[own], indices, len(batch))

    def _rows(self, batches: Sequence[Tensor]) -> Iterator[Batch]:
        """Rows of all batches, fetched at once: one by one they would take a tenth of the time of a small network."""
        order, sizes = torch.cat([*batches]).to(self.device), [len(batch) for batch in batches]
        parts = zip(self.inputs[order].split(sizes), self.labels[order].split(sizes), batches, strict=True)
        for rows, labels, batch in parts:
            yield Batch(rows, labels, batch, len(batch))

    def eval_batches(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            yield self.scale(self.inputs[batch.to(self.device)])


class ImageFileLoader:
    """Images read and transformed one by one, in worker processes if there are any."""

    def __init__(self, images: Samples, recipe: Recipe, device: torch.device, workers: int, training: bool) -> None:
        self.recipe, self.device = recipe, device
        self.labels = torch.from_numpy(images.labels)
        self.scale = scale(recipe, 255, device)
        self.batches: list[list[Key]] = []
        transform = TimmTransform(recipe) if training and recipe.augment == "timm" else EvalTransform(recipe)
        self.loader = DataLoader(
            TransformedDataset(images, transform),
            batch_sampler=self.batches,
            num_workers=workers,
            collate_fn=torch.stack,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else it would draw from the global random numbers
        )

    def train(self, batches: Sequence[Tensor], share: Shard, seed: int, epoch: int) -> Iterator[Batch]:
        shares = [share.of(batch) for batch in batches]
        self.batches[:] = [[(seed, epoch, int(index)) for index in indices] for indices in shares]
        drawn = epoch_draws(self.recipe, seed, epoch, len(self.labels))
        for indices, batch, images in zip(shares, batches, self._loaded(), strict=True):
            images = images.to(self.device, non_blocking=True)
            labels = self.labels[indices].to(self.device, non_blocking=True)
            if images.ndim == 5:
                splits = self.recipe.aug_splits  # all first splits, then all second ones, as split batch norm expects
                yield Batch(images.transpose(0, 1).flatten(0, 1), labels.repeat(splits), indices, len(batch) * splits)
            else:
                own = drawn[indices].to(self.device) if len(drawn) else drawn
                yield Batch(augment(images, own, self.recipe, self.scale), labels, indices, len(batch))

    def eval_batches(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        for images in self.pixels(batches):
            yield self.scale(images.to(self.device, non_blocking=True))

    def pixels(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Images of the given indices, uint8 (N, channels, height, width), not augmented, on the CPU."""
        self.batches[:] = [[(0, 0, int(index)) for index in batch] for batch in batches]
        return self._loaded()

    def _loaded(self) -> Iterator[Tensor]:
        try:
            yield from self.loader
        except UnreadableImageError as error:  # of a worker the message is a traceback that ends in the error's own
            said = str(error).strip().rpartition(f"{type(error).__name__}: ")[2]
            raise type(error)(f"{said}; `cyclofocal data check DATA` lists all that cannot be read") from None


class TransformedDataset(Dataset):
    """Images by key, a batch at a time, ready to be stacked."""

    def __init__(self, images: Samples, transform: EvalTransform | TimmTransform) -> None:
        self.images, self.transform = images, transform

    def __getitems__(self, keys: Sequence[Key]) -> list[Tensor]:
        with rng.preserve_rng_state():  # once a batch: saving and restoring numpy's random state takes 0.1 ms
            return [self.transform(self.images.image(key[2]), key) for key in keys]
