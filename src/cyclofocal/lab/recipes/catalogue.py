"""All recipes by their names."""

import functools
from collections.abc import Callable

from cyclofocal.lab.recipes import fashion
from cyclofocal.lab.recipes.cifar import cifar, cifar_4000, cifar_4000_small, cifar_fast, cifar_lt, cifar_lt_small
from cyclofocal.lab.recipes.detection import bccd, digit_scenes
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.gtsrb import gtsrb
from cyclofocal.lab.recipes.imagenet import imagenet
from cyclofocal.lab.recipes.plankton import plankton
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.recipes.tiny_imagenet import tiny_imagenet_lt

CIFAR_SUBSETS = {"cifar10": ("first-4000", "5_3", "5_3-released", "6_2"), "cifar100": ("first-4000", "5_3", "6_2")}
IMBALANCES = (10, 50, 100, 200)
SMALL_SUBSETS = ("first-4000", "5_3", "6_2")
SMALL_IMBALANCES = (10, 50, 100)

_MAKERS: list[Callable[[], Recipe]] = [
    digits,
    fashion.fashion_mnist,
    fashion.fashion_mnist_4000,
    fashion.fashion_mnist_imbalanced,
    fashion.fashion_mnist_lt,
    *(functools.partial(maker, source) for maker in (cifar, cifar_fast) for source in CIFAR_SUBSETS),
    *(functools.partial(cifar_4000, source, subset) for source, subsets in CIFAR_SUBSETS.items() for subset in subsets),
    *(functools.partial(cifar_lt, source, imbalance) for source in CIFAR_SUBSETS for imbalance in IMBALANCES),
    *(functools.partial(cifar_4000_small, source, subset) for source in CIFAR_SUBSETS for subset in SMALL_SUBSETS),
    *(functools.partial(cifar_lt_small, source, ratio) for source in CIFAR_SUBSETS for ratio in SMALL_IMBALANCES),
    tiny_imagenet_lt,
    plankton,
    gtsrb,
    imagenet,
    functools.partial(bccd, "retinanet"),
    functools.partial(bccd, "fcos"),
    digit_scenes,
]

RECIPES: dict[str, Callable[[], Recipe]] = {make().name: make for make in _MAKERS}
"""Functions without arguments that return the recipe of that name."""
