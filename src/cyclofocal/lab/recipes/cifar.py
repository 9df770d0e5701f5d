"""CIFAR-10 and CIFAR-100: as published, as a fast setting, the 4,000-sample sets, and the long tails.

A name without suffix is the published setting, for a GPU; ``-small`` is the same data with a small network, for a CPU.
The small settings were chosen for cross-entropy alone, on validation images; no other loss was tuned.
"""

from dataclasses import replace

from cyclofocal.lab.data.config import PublishedData
from cyclofocal.lab.recipes.recipe import Facts, Recipe

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def cifar(source: str) -> Recipe:
    """Published command: tresnet_m on 224-pixel crops, RandAugment in three splits, 201 epochs.

    Differs from the release: as many logits as classes (it had timm's 1,000), and metrics of the last epoch on the
    test set, not of the best one.
    """
    return Recipe(
        name=source,
        title=source,
        data=PublishedData(source),
        model="tresnet_m",
        image_size=224,
        epochs=200,
        cooldown_epochs=1,
        batch_size=384,
        learning_rate=0.15,
        min_learning_rate=1e-6,
        warmup_epochs=3,
        warmup_learning_rate=0.01,
        weight_decay=5e-4,
        decay_norms=False,
        augment="timm",
        auto_augment="rand-m9-mstd0.5-inc1",
        random_erasing=0.6,
        aug_splits=3,
        split_batch_norm=True,
        sync_batch_norm=False,
        precision="fp16",
        facts=Facts(cost="3 x 201 x 50,000 images of 224 pixels, about a day on one data-centre GPU"),
    )


def cifar_fast(source: str) -> Recipe:
    """Small residual network, 24 epochs, data and augmentation on the device; made for 94 % on CIFAR-10."""
    return Recipe(
        name=f"{source}-fast",
        title=f"{source}, small residual network",
        data=PublishedData(source, validation_images=5000),
        model="small-resnet",
        width=64,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        epochs=24,
        batch_size=512,
        learning_rate=0.4,
        warmup_epochs=5,
        warmup_learning_rate=0.0,
        schedule="linear",
        clock="step",
        augment="crop-flip",
        cutout=8,
        precision="bf16",
        channels_last=True,
        facts=Facts(cost="about a minute on one data-centre GPU, estimated"),
    )


def cifar_4000(source: str, subset: str) -> Recipe:
    """4,000 training images, drawn as published, in the published setting."""
    name = f"{source}-4000" if subset == "first-4000" else f"{source}-{subset}"
    title = f"{source}, 4,000 images ({subset})"
    return replace(
        cifar(source),
        name=name,
        title=title,
        data=PublishedData(source, subset=subset),
        facts=Facts(cost="3 x 201 x 4,000 images of 224 pixels, about two hours on one data-centre GPU"),
    )


def cifar_lt(source: str, imbalance: int) -> Recipe:
    """Long-tailed, in the protocol of the papers that report CIFAR-LT: ResNet-32, 200 epochs."""
    return Recipe(
        name=f"{source}-lt-{imbalance}",
        title=f"{source}, long-tailed {imbalance}:1",
        data=PublishedData(source, subset="long-tailed", imbalance=float(imbalance)),
        model="cifar-resnet-32",
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        epochs=200,
        learning_rate=0.1,
        nesterov=False,
        weight_decay=2e-4,
        schedule="step",
        milestones=(160, 180),
        decay=0.01,
        warmup_epochs=5,
        augment="crop-flip",
        channels_last=True,
        facts=Facts(cost="about 20 minutes on one data-centre GPU, estimated"),
    )


def cifar_4000_small(source: str, subset: str) -> Recipe:
    """4,000 training images, drawn as published, and a small residual network; 2,000 others for validation.

    The published setting is the recipe of this name without ``-small``.
    """
    name = cifar_4000(source, subset).name
    cost, expected = SMALL[name]
    return Recipe(
        name=f"{name}-small",
        title=f"{source}, 4,000 images ({subset}), small network",
        data=PublishedData(source, subset=subset, validation_images=2000),
        model="small-resnet",
        width=12,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        epochs=60,
        batch_size=64,
        learning_rate=0.1,
        warmup_epochs=2,
        augment="crop-flip",
        channels_last=True,
        facts=Facts(cost, expected),
    )


def cifar_lt_small(source: str, imbalance: int) -> Recipe:
    """Long-tailed, with a small residual network, 2,000 images for validation that are not in the tail.

    The published tail has every image of the first class, so that none is left for validation. Here each class has
    the first 96 % of its images in that tail. The published setting is the recipe of this name without ``-small``.

    In equal time a narrow network with more epochs is better than a wider one with fewer: on validation images
    cross-entropy has 65 % after 40 epochs at width 8, 57 % after 20 at width 12.
    """
    name = f"{source}-lt-{imbalance}"
    cost, expected = SMALL[name]
    return replace(
        cifar_4000_small(source, "first-4000"),
        name=f"{name}-small",
        title=f"{source}, long-tailed {imbalance}:1, small network",
        data=PublishedData(
            source,
            subset="long-tailed",
            imbalance=float(imbalance),
            head_images={"cifar10": 4800, "cifar100": 480}[source],
            validation_images=2000,
        ),
        width=8,
        facts=Facts(cost, expected),
    )


SMALL = {
    "cifar10-4000": ("about 3 minutes on one core", "77.3 % of validation images (cross-entropy, one seed)"),
    "cifar10-5_3": ("about 3 minutes on one core", "not yet run"),
    "cifar10-6_2": ("about 3 minutes on one core", "not yet run"),
    "cifar100-4000": ("about 3 minutes on one core", "34.5 % of validation images (cross-entropy, one seed)"),
    "cifar100-5_3": ("about 3 minutes on one core", "not yet run"),
    "cifar100-6_2": ("about 3 minutes on one core", "not yet run"),
    "cifar10-lt-10": ("about 8 minutes on one core", "not yet run"),
    "cifar10-lt-50": ("about 6 minutes on one core", "not yet run"),
    "cifar10-lt-100": (
        "about 5.5 minutes on one core",
        "64.6 % of validation images after 40 epochs (cross-entropy, one seed)",
    ),
    "cifar100-lt-10": ("about 8 minutes on one core", "not yet run"),
    "cifar100-lt-50": ("about 6 minutes on one core", "not yet run"),
    "cifar100-lt-100": ("about 5 minutes on one core", "not yet run"),
}
"""Cost and expected result of the small settings, by the name without suffix."""
