"""The experiments in two stages, each with the losses of its stages."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cyclofocal.lab.data.config import FolderData, ListData, PublishedData
from cyclofocal.lab.oltr.stage_recipe import StageRecipe, TwoStages
from cyclofocal.lab.recipes.loss import ASYMMETRIC, CROSS_ENTROPY, FOCAL, LossSettings
from cyclofocal.lab.recipes.recipe import Facts


def cyclical(gamma_pos: float, cyclical_factor: float) -> LossSettings:
    """The cyclical focal loss of the published long-tailed experiments."""
    return LossSettings(
        "cyclical",
        "cyclical focal",
        gamma_pos=gamma_pos,
        gamma_neg=4.0,
        gamma_hc=2.0,
        cyclical_factor=cyclical_factor,
        label_smoothing=0.1,
    )


def losses(first: LossSettings, second: LossSettings) -> tuple[tuple[LossSettings, LossSettings], ...]:
    """Those without a cycle are the same in both stages; then the cyclical ones."""
    return (*((loss, loss) for loss in (CROSS_ENTROPY, FOCAL, ASYMMETRIC)), (first, second))


def imagenet_lt() -> TwoStages:
    """ImageNet-LT with the ResNet-10 of OLTR, 115,846 images of 1,000 classes.

    The lists lie in data/imagenet-lt or where ``--lists`` says, and the images of ImageNet in train/ and val/ below
    them or where ``--images`` says.

    Differs from the release: its stage 2 puts a new linear layer before the classifier of stage 1, which then no
    longer fits the features it gets; here there is none.
    """
    first = StageRecipe(
        name="imagenet-lt-1",
        title="ImageNet-LT, stage 1",
        data=_lists("imagenet-lt", "ImageNet_LT"),
        model="resnet-10",
        epochs=30,
        learning_rate=0.1,
        milestones=(10, 20),
        **_PUBLISHED,
    )
    second = _second(first, epochs=60, milestones=(20, 40), features_lr_scale=0.1, centroids_lr_scale=2.0)
    return TwoStages(
        first,
        second,
        losses(cyclical(0.0, 4.0), cyclical(0.0, 4.0)),
        facts=Facts(cost="90 epochs of 115,846 images, some hours on a data-centre GPU, estimated"),
    )


def places_lt() -> TwoStages:
    """Places-LT with a ResNet-152 that begins with ImageNet weights, 62,500 images of 365 classes.

    The lists lie in data/places-lt or where ``--lists`` says, and the images of Places365 in the lists' layout below
    them or where ``--images`` says.

    Differs from the release: the weights are timm's, for they are easily had. With
    ``--set pretrained=false --set 1:weights_file=PATH`` they are those of a file, such as Caffe's.
    """
    first = StageRecipe(
        name="places-lt-1",
        title="Places-LT, stage 1",
        data=_lists("places-lt", "Places_LT"),
        model="resnet152",
        pretrained=True,
        feature_length=512,
        epochs=30,
        learning_rate=0.1,
        milestones=(10, 20),
        features_lr_scale=0.01,
        **_PUBLISHED,
    )
    second = _second(first, learning_rate=0.01, frozen=True, centroids_lr_scale=20.0)
    return TwoStages(
        first,
        second,
        losses(cyclical(1.0, 2.0), cyclical(0.0, 2.0)),
        facts=Facts(cost="60 epochs of 62,500 images, about a day on a data-centre GPU, estimated"),
    )


def fashion_mnist_open() -> TwoStages:
    """Fashion-mnist made long-tailed, 1,500 images of the first class to 14 of the eighth; two classes are unknown.

    Bags and ankle boots are not trained; their 2,000 test images are the open set. As there are 8 classes, no
    confidence is below 1/8; the threshold is 0.5.
    """
    first = StageRecipe(
        name="fashion-mnist-open-1",
        title="fashion-mnist, long-tailed, open set, stage 1",
        data=PublishedData(
            "fashion-mnist",
            subset="long-tailed",
            imbalance=373.0,  # 100:1 from the first class to the eighth
            head_images=1500,
            validation_images=2000,
        ),
        held_out_classes=2,
        threshold=0.5,
        model="small-resnet",
        width=8,
        image_size=28,
        channels=1,
        mean=(0.2860,),
        std=(0.3530,),
        epochs=14,
        batch_size=64,
        learning_rate=0.1,
        warmup_epochs=2,
        augment="crop-flip",
        crop_padding=1,
        channels_last=True,
    )
    second = _second(first, features_lr_scale=0.1, centroids_lr_scale=2.0)
    return TwoStages(
        first,
        second,
        losses(cyclical(0.0, 4.0), cyclical(0.0, 4.0)),
        facts=Facts(
            cost="under two minutes on one core, for both stages",
            expected="83.2 % after stage 2, 68.9 % before (cross-entropy, mean of three seeds)",
        ),
    )


def own_lt() -> TwoStages:
    """Custom images, in data/own or where ``--set source=`` says: a folder of class folders, or a list file.

    With a list file go ``--set image_root=``, ``--set validation_list=`` and ``--set test_list=``; the open set is
    ``--set open_source=``, another list or any folder of images, or ``--set held_out_classes=``.
    """
    first = StageRecipe(
        name="own-lt-1",
        title="own images, stage 1",
        data=FolderData("data/own"),
        model="resnet18",
        epochs=90,
        learning_rate=0.1,
        **(_PUBLISHED | {"schedule": "cosine"}),
        warmup_epochs=5,
    )
    second = _second(first, epochs=30, warmup_epochs=0, features_lr_scale=0.1, centroids_lr_scale=2.0)
    return TwoStages(
        first,
        second,
        losses(cyclical(0.0, 4.0), cyclical(0.0, 4.0)),
        facts=Facts(expected="depends on the data"),
        custom_images=True,
    )


def _second(first: StageRecipe, **settings: Any) -> StageRecipe:
    """Stage 2 of the same experiment; ``settings`` are those in which it differs from stage 1."""
    name, title = (text.removesuffix("1") + "2" for text in (first.name, first.title))
    return replace(first, name=name, title=title, stage=2, **settings)


def _lists(folder: str, name: str) -> ListData:
    """The published lists, and the images in the same folder."""
    train, validation, test = (f"data/{folder}/{name}_{split}.txt" for split in ("train", "val", "test"))
    return ListData(train, image_root=f"data/{folder}", validation_list=validation, test_list=test)


# Differs from the release: its centroids' gradient lacks the loss's weight of 0.01 and is divided by 5, one plus the
# images of a class in a batch. Their learning rate of 0.01 is thus one of 0.01 / 0.01 / 5 = 0.2 here.
_PUBLISHED: dict[str, Any] = {
    "image_size": 224,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "batch_size": 128,
    "nesterov": False,
    "schedule": "step",
    "augment": "timm",
}

TWO_STAGES: dict[str, Callable[[], TwoStages]] = {
    "imagenet-lt": imagenet_lt,
    "places-lt": places_lt,
    "fashion-mnist-open": fashion_mnist_open,
    "own-lt": own_lt,
}
"""Functions without arguments that return the experiment of that name."""
