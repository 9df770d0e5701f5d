"""Recipe for custom images."""

import re

from cyclofocal.lab.data.config import PREFIXES, SHARDS, data_config, path_of
from cyclofocal.lab.recipes.recipe import Facts, Recipe

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet, which pretrained models expect."""

SMALL_NETWORK = (
    "model=small-resnet",
    "width=8",
    "image_size=32",
    "epochs=20",
    "batch_size=64",
    "learning_rate=0.1",
    "warmup_epochs=2",
    "weight_decay=5e-4",
    "decay_norms=true",
    "augment=crop",
)
"""Settings of a small network on images of 32 pixels, which takes minutes on a CPU.

They are those of the recipe ``cifar10-4000-small`` with a third of its epochs, two thirds of its channels, and without
flips, which change the class of digits or arrows.
"""


def image_recipe(source: str) -> Recipe:
    """Any source of images, with a residual network of usual size; a start for ``--set``."""
    return Recipe(
        name=source_name(source),
        title=source,
        data=data_config(source),
        model="resnet18",
        image_size=224,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        epochs=90,
        batch_size=128,
        learning_rate=0.05,
        warmup_epochs=5,
        weight_decay=1e-4,
        decay_norms=False,
        augment="timm",
        channels_last=True,
        facts=Facts(cost="depends on the data", expected="depends on the data"),
    )


def source_name(source: str) -> str:
    """Name of the images in paths and tables: the last part of the source, without the suffix of a list file.

    Example:
        >>> source_name("~/my flowers/"), source_name("torch/country211")
        ('my-flowers', 'country211')
    """
    path = path_of(source.partition("/")[2] if source.startswith((*PREFIXES, SHARDS)) else source)
    path = path.resolve() if path.name in ("", "..") else path
    name = path.stem if path.is_file() else path.name
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "images"
