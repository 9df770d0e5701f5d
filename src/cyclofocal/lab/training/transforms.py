"""Transform one image on the CPU: decode it to the model's size, and augment it as timm does."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training import rng
from cyclofocal.lab.training.augment import per_channel

Key = tuple[int, int, int]
"""Seed, epoch and index of an image: all that its augmentation depends on."""

CROP = 0.875
"""Part of the image's shorter side, for evaluation where training uses random resized crops; timm's default."""


def crop_fraction(recipe: Recipe) -> float:
    """Part of the image's shorter side that evaluation sees."""
    return CROP if recipe.augment == "timm" else 1.0


class EvalTransform:
    """Resize and centre-crop to uint8 (channels, image_size, image_size); nothing random."""

    def __init__(self, recipe: Recipe) -> None:
        from timm.data import create_transform

        self.mode = "RGB" if recipe.channels == 3 else "L"
        self.transform: Callable[[Image.Image], Tensor] = create_transform(
            recipe.image_size, crop_pct=crop_fraction(recipe), normalize=False
        )

    def __call__(self, image: Image.Image, key: Key) -> Tensor:
        return self.transform(image.convert(self.mode))


class TimmTransform:
    """timm's training augmentation, float32 (splits, channels, image_size, image_size).

    Random resized crop, flip, ``auto_augment`` (without one: colour jitter) and random erasing; with
    ``aug_splits`` the first split has the crop and the flip only. A call leaves the CPU's random numbers reseeded.
    """

    def __init__(self, recipe: Recipe) -> None:
        from timm.data import auto_augment, create_transform
        from timm.data.random_erasing import RandomErasing

        self.mode = "RGB" if recipe.channels == 3 else "L"
        self.splits = recipe.aug_splits
        self.crop, self.policy, self.to_tensor = create_transform(
            recipe.image_size,
            is_training=True,
            auto_augment=recipe.auto_augment or None,
            interpolation="random",
            mean=per_channel(recipe.mean, recipe.channels),
            std=per_channel(recipe.std, recipe.channels),
            separate=True,
        )
        for operation in _operations(self.policy):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = posterize
        self.erase = RandomErasing(recipe.random_erasing, mode="pixel", device="cpu")

    def __call__(self, image: Image.Image, key: Key) -> Tensor:
        seed, epoch, index = key
        rng.reseed_cpu(seed, rng.AUGMENT, epoch, index)
        cropped = self.crop(image.convert(self.mode))
        clean = [self.to_tensor(cropped)] if self.splits > 1 else []
        augmented = [self.erase(self.to_tensor(self.policy(cropped.copy()))) for _ in range(self.splits - len(clean))]
        return torch.stack(clean + augmented)


def posterize(image: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    """Reduce to a number of bits per channel, as timm does; 0 bits give a black image, which Pillow 13 refuses."""
    from timm.data.auto_augment import posterize as at_least_one_bit

    return at_least_one_bit(image, bits_to_keep) if bits_to_keep else Image.new(image.mode, image.size)


def _operations(policy: Any) -> Iterator[Any]:
    """timm's operations in a policy, which has lists of them or of pairs; none in colour jitter."""
    for transform in policy.transforms:
        for entry in getattr(transform, "policy", getattr(transform, "ops", ())):
            yield from entry if isinstance(entry, list) else [entry]
