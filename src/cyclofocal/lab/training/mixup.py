"""Mixup and cutmix over a batch that may be odd, and may be spread over processes."""

from typing import Protocol

import torch
from torch import Tensor

from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training import rng


class Mixer(Protocol):
    """Mix images; return them with soft targets (N, C)."""

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]: ...


def build_mixer(recipe: Recipe, classes: int) -> Mixer | None:
    """timm's mixup, cutmix, or one of both by chance; None where the recipe has neither."""
    if not recipe.mixup and not recipe.cutmix:
        return None
    from timm.data import Mixup

    return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=0.0, num_classes=classes)


def mix(mixer: Mixer, images: Tensor, labels: Tensor, *key: int) -> tuple[Tensor, Tensor]:
    """Mix each image with its mirror image in the batch; targets stay soft, for the loss smooths them itself.

    All processes draw the same by the same ``key``, and hold pairs whole, so the mixing is that of one process.
    timm wants an even number of images: the middle one of an odd batch is its own partner.
    """
    n = len(images)
    places = torch.cat([torch.arange((n + 1) // 2), torch.arange(n // 2, n)]).to(images.device)
    with rng.seeded(rng.MIX, *key):
        mixed, target = mixer(images[places], labels[places])
    once = torch.cat([torch.arange((n + 1) // 2), torch.arange(len(places) - n // 2, len(places))]).to(images.device)
    return mixed[once], target[once]
