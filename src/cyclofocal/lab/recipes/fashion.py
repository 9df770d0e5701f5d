"""Fashion-MNIST: freely available pictures of clothes, 28 x 28 grey pixels, 10 classes, 10,000 for testing.

Settings were chosen for cross-entropy alone, on validation images; no other loss was tuned.
"""

from dataclasses import replace

from cyclofocal.lab.data.config import PublishedData
from cyclofocal.lab.recipes.recipe import Facts, Recipe


def fashion_mnist() -> Recipe:
    """All 60,000 training images, 5,000 of them for validation."""
    return Recipe(
        name="fashion-mnist",
        title="fashion-mnist",
        data=PublishedData("fashion-mnist", validation_images=5000),
        model="small-resnet",
        width=8,
        image_size=28,
        channels=1,
        mean=(0.2860,),
        std=(0.3530,),
        epochs=16,
        batch_size=128,
        learning_rate=0.2,
        schedule="linear",
        warmup_epochs=2,
        warmup_learning_rate=0.0,
        clock="step",
        augment="crop-flip",
        crop_padding=1,
        channels_last=True,
        facts=Facts(cost="10 minutes on two cores", expected="93.7 % (cross-entropy, one seed)"),
    )


def fashion_mnist_4000() -> Recipe:
    """4,000 training images, 400 of each class, 2,000 others for validation."""
    return replace(
        fashion_mnist(),
        name="fashion-mnist-4000",
        title="fashion-mnist, 4,000 balanced",
        data=PublishedData("fashion-mnist", subset="balanced-4000", validation_images=2000),
        epochs=14,
        batch_size=64,
        learning_rate=0.1,
        schedule="cosine",
        warmup_learning_rate=None,
        clock="epoch",
        facts=Facts(cost="about a minute on one core", expected="89.5 % (cross-entropy, mean of three seeds)"),
    )


def fashion_mnist_imbalanced() -> Recipe:
    """4,000 training images, 600 of each of the first five classes and 200 of the others; validation as above."""
    return replace(
        fashion_mnist_4000(),
        name="fashion-mnist-imbalanced",
        title="fashion-mnist, 4,000 imbalanced 3:1",
        data=PublishedData("fashion-mnist", subset="imbalanced-4000", validation_images=2000),
        facts=Facts(cost="about a minute on one core", expected="88.5 % (cross-entropy, mean of three seeds)"),
    )


def fashion_mnist_lt() -> Recipe:
    """Long-tailed 100:1 by the generator of CIFAR-LT, 1,500 images of the first class down to 15 of the last."""
    return replace(
        fashion_mnist_4000(),
        name="fashion-mnist-lt",
        title="fashion-mnist, long-tailed 100:1",
        data=PublishedData(
            "fashion-mnist", subset="long-tailed", imbalance=100.0, head_images=1500, validation_images=2000
        ),
        facts=Facts(cost="about a minute on one core", expected="76.8 % (cross-entropy, mean of three seeds)"),
    )
