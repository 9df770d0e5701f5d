"""Recipe of a head: a small classifier trained on the features that a frozen network gives once.

Settings were chosen for cross-entropy alone, by validation images (seeds 1000 and 1001, which no comparison uses) of
three sets of features: long-tailed Fashion-MNIST by a network trained on 4,000 of its images (128 features) and by one
trained on digits (512), and 1,200 of its images by an untrained ResNet-18 (512). Of 24 combinations of normalisation,
epochs, learning rate and weight decay this one had the smallest mean NLL, 0.795; with the deviation of each feature in
place of one for all it was 0.884. AdamW's steps do not grow with the gradient, as for tables.
"""

from dataclasses import dataclass, field
from typing import Any

from cyclofocal.lab.data.config import BoxData, TableData
from cyclofocal.lab.recipes.recipe import Facts, Recipe

HEADS = ("linear", "mlp")
"""Models of rows: a linear classifier, and one with two hidden layers."""


@dataclass(frozen=True)
class HeadRecipe(Recipe):
    """A head on the features of images; ``image_size``, ``channels``, ``mean`` and ``std`` are the frozen network's.

    Attributes:
        backbone: title of the frozen network; set by the program, as are the fields below.
        backbone_digest: hash of its name and weights.
        center_crop: resize a little larger and crop the centre, as networks trained with random resized crops need.
        features_digest: hash of the network, of the images and of their preparation; names the stored features.
        features_folder: folder of the stored features; not compared, and not stored with the run.

    Raises:
        ValueError: as of a recipe; a model of images, or augmentation, which features cannot have.
    """

    backbone: str = ""
    backbone_digest: str = ""
    center_crop: bool = False
    features_digest: str = ""
    features_folder: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model not in HEADS:
            raise ValueError(f"model is {self.model!r}; on features it must be {' or '.join(HEADS)}")
        for name, off in {"augment": "none", "cutmix": 0.0, "pretrained": False}.items():
            if getattr(self, name) != off:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is for images, and on features must be {off}")


def head_recipe(images: Recipe, **frozen: Any) -> HeadRecipe:
    """A linear head on the features of the images of a recipe.

    Args:
        images: data and shot groups.
        frozen: ``backbone``, ``backbone_digest``, ``image_size`` and the other fields that the frozen network decides.

    Raises:
        ValueError: a table, which has no images, or data that draw another test set for every seed.
    """
    if isinstance(images.data, TableData):
        raise ValueError(f"{images.name} is a table; a network gives features of images, so give it without --features")
    if isinstance(images.data, BoxData):
        raise ValueError(f"{images.name} has images with boxes, of which a head has no use; give it without --features")
    if images.data.draws_test_set:
        raise ValueError(
            f"{images.name} draws another test set for every seed; features are computed once, and need data whose"
            " splits are fixed, such as a folder of images"
        )
    return HeadRecipe(
        name=f"{images.name}-head",
        title=f"{images.title}, head on frozen features",
        data=images.data,
        groups=images.groups,
        model="linear",
        epochs=30,
        batch_size=128,
        optimizer="adamw",
        learning_rate=0.01,
        weight_decay=0.3,
        decay_norms=False,
        warmup_epochs=3,
        facts=Facts(cost="about a second per run and 1,000 images on one core, after the features"),
        **frozen,
    )
