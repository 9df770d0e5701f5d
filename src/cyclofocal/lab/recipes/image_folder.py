"""Recipe for custom images."""

from cyclofocal.lab.data.config import data_config
from cyclofocal.lab.recipes.recipe import Facts, Recipe

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet, which pretrained models expect."""


def image_recipe(source: str) -> Recipe:
    """Any source of images, with a residual network of usual size; a start for ``--set``."""
    return Recipe(
        name="own",
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
