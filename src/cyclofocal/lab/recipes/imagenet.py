"""ImageNet-1k as published."""

from cyclofocal.lab.data.config import PublishedData
from cyclofocal.lab.recipes.recipe import Facts, Recipe


def imagenet() -> Recipe:
    """Published command: tresnet_m, RandAugment, mixup, moving average, on 4 GPUs with 384 images each.

    Run it on all of them with
    ``accelerate launch --multi_gpu $(which cyclofocal) reproduce imagenet --data-workers 8``.
    """
    return Recipe(
        name="imagenet",
        title="imagenet",
        data=PublishedData("imagenet"),
        model="tresnet_m",
        image_size=224,
        epochs=200,
        cooldown_epochs=1,
        batch_size=1536,
        learning_rate=0.6,
        min_learning_rate=1e-6,
        warmup_epochs=3,
        warmup_learning_rate=0.02,
        weight_decay=2e-5,
        decay_norms=False,
        augment="timm",
        auto_augment="rand-m9-mstd0.5-inc1",
        random_erasing=0.4,
        mixup=0.2,
        ema_decay=0.9998,
        sync_batch_norm=False,
        precision="fp16",
        facts=Facts(cost="201 epochs of 1.28 million images, about 3 days on four data-centre GPUs, estimated"),
    )
