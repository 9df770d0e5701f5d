"""Recipes of object detection: a RetinaNet or FCOS on images with boxes."""

from dataclasses import dataclass
from typing import Literal

from cyclofocal.lab.data.config import BoxData, data_config
from cyclofocal.lab.recipes.image_folder import IMAGENET_MEAN, IMAGENET_STD, source_name
from cyclofocal.lab.recipes.recipe import Facts, Recipe

SMALL_BACKBONE = "small"
"""Name of the built-in backbone; see :class:`~cyclofocal.lab.detection.network.SmallPyramid`."""

BCCD_EXPECTED = {"retinanet": "AP 52.0 % of test images (focal, three seeds)"}
"""Result of the recipes of blood cells that were run, by model."""

SMALL_DETECTOR = (
    "backbone=small",
    "width=16",
    "image_size=320",
    "anchor_scale=2",
    "epochs=40",
    "batch_size=8",
    "optimizer=adamw",
    "learning_rate=0.001",
    "weight_decay=0.05",
    "warmup_epochs=2",
    "clip_norm=1",
)
"""Settings of a small network on images of 320 pixels, those of the recipe ``bccd-retinanet``."""

LEAST_IMAGE = 32
"""Fewest pixels of the longer side of an image, the coarsest stride of the small backbone."""

NOT_OF_BOXES = {
    "cooldown_epochs": 0,
    "early_stopping": 0,
    "cutout": 0,
    "auto_augment": "",
    "random_erasing": 0.0,
    "aug_splits": 1,
    "mixup": 0.0,
    "cutmix": 0.0,
    "temperature_range": None,
}
"""Settings of classification that a detector does not have, and their only value here."""


@dataclass(frozen=True)
class DetectionRecipe(Recipe):
    """A detector of torchvision: its data, network and training.

    Attributes:
        task: "detection".
        model: "retinanet" or "fcos".
        image_size: pixels of the longer side of an image; images keep their shape.
        width: channels of the first stage of the small backbone; 0 for the others.
        backbone: "small", or a residual network that torchvision knows, such as "resnet50".
        backbone_weights: file with a state dictionary of that network; "" for none. ``pretrained`` takes torchvision's.
        anchor_scale: side of a RetinaNet's smallest anchor at each stage, in strides of the stage.
        augment: "none", or "flip" every other image left to right.

    Raises:
        ValueError: as of a recipe; a setting that detectors do not have.
    """

    task: Literal["detection"] = "detection"
    model: Literal["retinanet", "fcos"] = "retinanet"
    backbone: str = SMALL_BACKBONE
    backbone_weights: str = ""
    anchor_scale: float = 4.0
    augment: Literal["none", "flip"] = "flip"  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.data, BoxData):
            raise ValueError(f"source is {self.data.source!r}, {self.data.kind}; a detector needs images with boxes")
        for name, only in NOT_OF_BOXES.items():
            if getattr(self, name) != only:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {only!r}, for detectors have none")
        if self.image_size < LEAST_IMAGE:
            raise ValueError(f"image_size is {self.image_size}; of a detector it must be at least {LEAST_IMAGE}")
        if not self.anchor_scale > 0:
            raise ValueError(f"anchor_scale is {self.anchor_scale}; it must be greater than 0")
        if self.backbone != SMALL_BACKBONE and self.width:
            raise ValueError(f"width is {self.width}, but {self.backbone} has its own; it must be 0")
        if self.backbone == SMALL_BACKBONE and (self.pretrained or self.backbone_weights):
            raise ValueError("pretrained and backbone_weights are for a network of torchvision; backbone is 'small'")
        if self.model == "fcos" and self.backbone == SMALL_BACKBONE and self.width % 8:
            raise ValueError(f"width is {self.width}; for fcos it must be a multiple of 8, as its group norms need")
        if self.pretrained and self.backbone_weights:
            raise ValueError("pretrained and backbone_weights exclude each other; set one of them")


def bccd(model: Literal["retinanet", "fcos"]) -> DetectionRecipe:
    """Blood cells, three classes 11:1, in 364 images, split as published; two boxes of no area are left out.

    Resolution, anchors and epochs were chosen for ``focal`` on validation images: 320 pixels are half of the published
    ones, on which platelets still have 16 to 25 pixels, and of 12 epochs the validation AP was 43.7 %, which 40 exceed
    before half of their time.
    """
    return DetectionRecipe(
        name=f"bccd-{model}",
        title=f"BCCD blood cells, {TITLES[model]}",
        data=BoxData("bccd", bad_boxes="drop"),
        model=model,
        image_size=320,
        width=16,
        anchor_scale=2.0,
        mean=(0.5,),
        std=(0.25,),
        epochs=40,
        batch_size=8,
        optimizer="adamw",
        learning_rate=0.001,
        weight_decay=0.05,
        decay_norms=False,
        warmup_epochs=2,
        clip_norm=1.0,
        channels_last=True,
        facts=Facts("12 to 15 minutes on one core", BCCD_EXPECTED.get(model, "not yet run")),
    )


def digit_scenes() -> DetectionRecipe:
    """Generated scenes of digits, ten classes 10:1."""
    return DetectionRecipe(
        name="digit-scenes",
        title="scenes of digits, RetinaNet",
        data=BoxData("digit-scenes"),
        image_size=64,
        channels=1,
        width=8,
        anchor_scale=2.0,
        mean=(0.3,),
        std=(0.3,),
        epochs=30,
        batch_size=8,
        optimizer="adamw",
        learning_rate=0.003,
        weight_decay=0.05,
        decay_norms=False,
        warmup_epochs=1,
        clip_norm=1.0,
        augment="none",
        channels_last=True,
        facts=Facts(cost="about a minute on one core", expected="AP 41 % of validation images (focal, one seed)"),
    )


def box_recipe(source: str) -> DetectionRecipe:
    """Any source of boxes, with a RetinaNet of usual size; a start for ``--set``."""
    data = data_config(source)
    assert isinstance(data, BoxData)
    return DetectionRecipe(
        name=source_name(source),
        title=source,
        data=data,
        image_size=800,
        backbone="resnet50",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        epochs=24,
        batch_size=8,
        learning_rate=0.005,
        weight_decay=1e-4,
        decay_norms=False,
        warmup_epochs=1,
        clip_norm=10.0,
        facts=Facts(cost="depends on the data", expected="depends on the data"),
    )


TITLES = {"retinanet": "RetinaNet", "fcos": "FCOS"}
"""Detectors by their names."""
