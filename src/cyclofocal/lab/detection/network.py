"""Detectors of torchvision with its backbones, or a small one that a CPU can train."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cyclofocal.lab.messages import MissingDataError, did_you_mean, preview
from cyclofocal.lab.recipes.detection import SMALL_BACKBONE, DetectionRecipe
from cyclofocal.lab.training.augment import per_channel
from cyclofocal.lab.training.models import Residual, convolution

SMALL_WIDTH = 16
"""Default width of :class:`SmallPyramid`."""

OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
"""Sides of a RetinaNet's anchors in relation to the smallest of a stage."""

RATIOS = (0.5, 1.0, 2.0)
"""Height in relation to width of a RetinaNet's anchors."""


class SmallPyramid(nn.Module):
    """Features at strides 8, 16 and 32, joined from coarse to fine: a feature pyramid on eleven convolutions.

    Args:
        width: channels of the first stage; the pyramid has four times as many.
        channels: colour channels of the input.

    Example:
        >>> import torch
        >>> [features.shape[1:] for features in SmallPyramid(width=8)(torch.zeros(1, 3, 64, 64)).values()]
        [torch.Size([32, 8, 8]), torch.Size([32, 4, 4]), torch.Size([32, 2, 2])]

    Reference: Lin et al., *Feature Pyramid Networks for Object Detection*, CVPR 2017.
    """

    strides = (8, 16, 32)

    def __init__(self, width: int = SMALL_WIDTH, channels: int = 3) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        self.out_channels = 4 * width
        widths = [2 * width, 4 * width, 8 * width, 8 * width]
        first = widths[0]
        self.stem = nn.Sequential(convolution(channels, width, 2), convolution(width, first, 2), Residual(first))
        self.stages = nn.ModuleList(
            nn.Sequential(convolution(inputs, outputs, 2), Residual(outputs)) for inputs, outputs in pairwise(widths)
        )
        self.pyramid = FeaturePyramidNetwork(widths[1:], self.out_channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features (N, 4 width, height, width) by stage of images (N, channels, height, width)."""
        features, found = self.stem(images), OrderedDict[str, Tensor]()
        for number, stage in enumerate(self.stages):
            features = found[str(number)] = stage(features)
        return self.pyramid(found)


def check_detector(recipe: DetectionRecipe) -> None:
    """Refuse a backbone that there is not.

    Raises:
        ValueError: an unknown name; the message suggests the nearest one.
        MissingDataError: no such file of weights.
    """
    if recipe.backbone != SMALL_BACKBONE:
        from torchvision import models

        known = [name for name in models.list_models(models) if name.startswith(("resnet", "resnext", "wide"))]
        if recipe.backbone not in known:
            hint = did_you_mean(recipe.backbone, [SMALL_BACKBONE, *known])
            raise ValueError(f"backbone is {recipe.backbone!r}; it must be {SMALL_BACKBONE}, {', '.join(known)}.{hint}")
    if recipe.backbone_weights and not Path(recipe.backbone_weights).is_file():
        raise MissingDataError(f"backbone_weights is {recipe.backbone_weights}: no such file")


def build_detector(recipe: DetectionRecipe, classes: int, first_weights: bool = True) -> nn.Module:
    """The detector of a recipe, initialised from torch's global random state; class labels count from 0.

    It is called on images in [0, 1] and, in training, their boxes and labels, as torchvision's detectors are.

    Args:
        recipe: names the detector and its backbone.
        classes: number of classes.
        first_weights: load the pretrained weights of the backbone, if the recipe has some.

    Raises:
        ValueError: an unknown backbone, or a file with other weights.
        MissingDataError: no such file.
    """
    from torchvision.models.detection import FCOS, RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    if first_weights:
        check_detector(recipe)
    backbone, strides = _backbone(recipe, first_weights)
    settings: dict[str, Any] = {
        "min_size": recipe.image_size,
        "max_size": recipe.image_size,
        "image_mean": per_channel(recipe.mean, recipe.channels),
        "image_std": per_channel(recipe.std, recipe.channels),
    }
    if recipe.model == "fcos":
        anchors = AnchorGenerator(tuple((stride,) for stride in strides), ((1.0,),) * len(strides))
        return FCOS(backbone, classes, anchor_generator=anchors, **settings)
    sides = tuple(tuple(recipe.anchor_scale * stride * octave for octave in OCTAVES) for stride in strides)
    return RetinaNet(backbone, classes, anchor_generator=AnchorGenerator(sides, (RATIOS,) * len(strides)), **settings)


def _backbone(recipe: DetectionRecipe, first_weights: bool) -> tuple[nn.Module, tuple[int, ...]]:
    """Feature pyramid and the strides of its stages."""
    if recipe.backbone == SMALL_BACKBONE:
        pyramid = SmallPyramid(recipe.width or SMALL_WIDTH, recipe.channels)
        return pyramid, pyramid.strides
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    has_weights = recipe.pretrained or bool(recipe.backbone_weights)
    norm: Callable[..., nn.Module] = FrozenBatchNorm2d if has_weights else nn.BatchNorm2d
    found = resnet_fpn_backbone(
        backbone_name=recipe.backbone,
        weights="DEFAULT" if recipe.pretrained and first_weights else None,
        norm_layer=norm,
        trainable_layers=3 if has_weights else 5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    if recipe.backbone_weights and first_weights:
        weights = torch.load(recipe.backbone_weights, map_location="cpu", weights_only=True)
        if missing := found.body.load_state_dict(weights, strict=False).missing_keys:
            raise ValueError(
                f"{recipe.backbone_weights}: no weights of {recipe.backbone} named {preview(missing)}; it must hold a"
                " state dictionary as torchvision's networks have"
            )
    return found, (8, 16, 32, 64, 128)
