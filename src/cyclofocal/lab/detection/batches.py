"""Batches of images with boxes: the same images in the same batches whatever the number of processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cyclofocal.lab.data.dataset import Samples
from cyclofocal.lab.recipes.detection import DetectionRecipe
from cyclofocal.lab.training import rng
from cyclofocal.lab.training.batches import MOST_BYTES, Batch, Shard, decoded_once

Target = dict[str, Tensor]
"""``boxes`` (M, 4), corners in pixels of the model's input, and ``labels`` (M,), from 0."""


@dataclass(frozen=True)
class BoxBatch(Batch):
    """This process's share of a batch.

    Attributes:
        images: float32 (channels, height, width) each, in [0, 1], on the device.
        labels: boxes of each image, on the device.
    """

    images: list[Tensor]  # type: ignore[assignment]
    labels: list[Target]  # type: ignore[assignment]


class BoxLoader:
    """Images at the model's size with their boxes; they are decoded once where all of them fit into memory.

    Args:
        images: samples of a split, with boxes.
        recipe: size and augmentation.
        device: device of the batches.
        workers: number of processes that decode images which do not fit.
    """

    def __init__(self, images: Samples, recipe: DetectionRecipe, device: torch.device, workers: int = 0) -> None:
        self.images, self.recipe, self.device = images, recipe, device
        self.resized = _Resized(images, recipe)
        self.order: list[int] = []
        self.loader = DataLoader(
            self.resized,
            sampler=self.order,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else it would draw from the global random numbers
        )

    def train(self, batches: Sequence[Tensor], share: Shard, seed: int, epoch: int) -> Iterator[BoxBatch]:
        """Augmented batches of the given indices, without ignored boxes."""
        shares = [share.of(batch) for batch in batches]
        flipped = rng.uniform(seed, rng.AUGMENT, epoch, size=(len(self.images),)) < 0.5
        flipped &= self.recipe.augment == "flip"
        pixels = self._pixels(torch.cat(shares))
        for indices, batch in zip(shares, batches, strict=True):
            pairs = [self._sample(int(index), next(pixels), bool(flipped[index])) for index in indices]
            yield BoxBatch([image for image, _ in pairs], [target for _, target in pairs], indices, len(batch))

    def eval_images(self, indices: Tensor) -> Iterator[Tensor]:
        """Images of the given indices, float32 in [0, 1], not augmented."""
        for pixels in self._pixels(indices):
            yield self._scaled(pixels)

    def scale_of(self, index: int) -> float:
        """Pixels of the model's input per pixel of an image."""
        assert self.images.boxes is not None
        return self.recipe.image_size / max(self.images.boxes[index].size)

    def _pixels(self, indices: Tensor) -> Iterator[Tensor]:
        longer, channels = self.recipe.image_size, self.recipe.channels
        if len(self.images) * channels * longer**2 <= MOST_BYTES:
            every = range(len(self.images))
            known = decoded_once(self.images, self.recipe, lambda: [self.resized[index] for index in every])
            return (known[int(index)] for index in indices)
        self.order[:] = indices.tolist()
        return iter(self.loader)

    def _scaled(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.device, non_blocking=True).float() / 255

    def _sample(self, index: int, pixels: Tensor, flipped: bool) -> tuple[Tensor, Target]:
        assert self.images.boxes is not None
        found = self.images.boxes[index]
        corners = torch.from_numpy(found.corners[~found.ignored] * self.scale_of(index)).float()
        if flipped:
            pixels = pixels.flip(-1)
            corners = torch.stack(
                [pixels.shape[-1] - corners[:, 2], corners[:, 1], pixels.shape[-1] - corners[:, 0], corners[:, 3]],
                dim=1,
            )
        labels = torch.from_numpy(found.classes[~found.ignored])
        target = {"boxes": corners.to(self.device), "labels": labels.to(self.device)}
        return self._scaled(pixels), target


class _Resized(Dataset):
    """Images, uint8 (channels, height, width), whose longer side is that of the recipe."""

    def __init__(self, images: Samples, recipe: DetectionRecipe) -> None:
        self.images, self.longer, self.mode = images, recipe.image_size, "RGB" if recipe.channels == 3 else "L"

    def __getitem__(self, index: Any) -> Tensor:
        image = self.images.image(int(index))
        return resized(image, self.longer, self.mode)


def resized(image: Image.Image, longer: int, mode: str) -> Tensor:
    """Pixels, uint8 (channels, height, width), of an image whose longer side becomes ``longer``."""
    factor = longer / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    small = image.convert(mode) if image.size == size else image.convert(mode).resize(size, Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(small))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.movedim(-1, 0).contiguous()
