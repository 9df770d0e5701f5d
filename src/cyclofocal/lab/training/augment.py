"""Augmentation on the device, for a whole batch at once: every image by its own rng."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cyclofocal.lab.recipes.recipe import CROPS, Recipe
from cyclofocal.lab.training import rng

DRAWS = 5
"""Per image: row and column of the crop, flip, row and column of the cutout."""

FLIP = 2
"""Place of the flip in these: an image is flipped from 0.5 on."""


@dataclass(frozen=True)
class Normalize:
    """Convert uint8 pixels to the model's input: ``(pixels - mean) * factor``, in float32.

    Attributes:
        mean, factor: (1, channels or 1, 1, 1), in the unit of the pixels.
    """

    mean: Tensor
    factor: Tensor

    def __call__(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) * self.factor


def scale(recipe: Recipe, white: int, device: torch.device) -> Normalize:
    """The recipe's mean and standard deviation, for pixels whose largest value is ``white``."""
    mean = torch.tensor([white * mean for mean in recipe.mean], device=device)
    factor = torch.tensor([1 / (white * std) for std in recipe.std], device=device)
    return Normalize(mean.view(1, -1, 1, 1), factor.view(1, -1, 1, 1))


def per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A mean or standard deviation per channel; one for all is repeated."""
    return values if len(values) == channels else values * channels


def epoch_draws(recipe: Recipe, seed: int, epoch: int, n_images: int) -> Tensor:
    """Random values that decide the augmentation of every image in an epoch, (n_images, DRAWS) in [0, 1)."""
    drawn = rng.uniform(seed, rng.AUGMENT, epoch, size=(n_images if recipe.augment in CROPS else 0, DRAWS))
    if recipe.augment == "crop":
        drawn[:, FLIP] = 0.0
    return drawn


def crop_flip(pixels: Tensor, drawn: Tensor, padding: int) -> Tensor:
    """Cut each image out of itself with ``padding`` black pixels around it, and flip every other one.

    Args:
        pixels: uint8 (N, channels, height, width).
        drawn: (N, DRAWS) in [0, 1).
        padding: pixels; the image moves by as much at most, in both directions.
    """
    n, _, height, width = pixels.shape
    across = torch.arange(width, device=pixels.device)
    down = torch.arange(height, device=pixels.device)
    top, left = (drawn[:, :2] * (2 * padding + 1)).long().unbind(1)
    columns = torch.where(drawn[:, FLIP, None] < 0.5, across, across.flip(0)) + left[:, None]
    rows = down + top[:, None]
    padded = torch.nn.functional.pad(pixels, [padding] * 4).movedim(1, -1)
    sample = torch.arange(n, device=pixels.device)
    return padded[sample[:, None, None], rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def cutout(images: Tensor, drawn: Tensor, side: int) -> Tensor:
    """Set a square of ``side`` pixels to 0, the mean, in each image; its centre is anywhere in the image.

    Reference: DeVries and Taylor, *Improved Regularization of Convolutional Neural Networks with Cutout*, 2017.
    """
    height, width = images.shape[-2:]
    rows = _within(drawn[:, 3], height, side)[:, None, :, None]
    columns = _within(drawn[:, 4], width, side)[:, None, None, :]
    return images.masked_fill(rows & columns, 0.0)


def _within(drawn: Tensor, length: int, side: int) -> Tensor:
    begin = (drawn * length).long()[:, None] - side // 2
    places = torch.arange(length, device=drawn.device)
    return (places >= begin) & (places < begin + side)


def augment(pixels: Tensor, drawn: Tensor, recipe: Recipe, to_float: Callable[[Tensor], Tensor]) -> Tensor:
    """Images as the model sees them in training: augmented, if the recipe says so, and scaled."""
    if recipe.augment not in CROPS:
        return to_float(pixels)
    images = to_float(crop_flip(pixels, drawn, recipe.crop_padding))
    return cutout(images, drawn, recipe.cutout) if recipe.cutout else images
