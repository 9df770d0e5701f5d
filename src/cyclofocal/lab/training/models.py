"""Small networks for small images and for tables; every other name goes to timm."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cyclofocal.lab.recipes.head import HEADS
from cyclofocal.lab.recipes.recipe import Recipe


class SmallConvNet(nn.Module):
    """Two 3 x 3 convolutions with batch norm, a max-pooling that halves the image, and a linear classifier.

    Args:
        classes: number of logits.
        width: channels of the first convolution; the second has twice as many.
        image_size: height and width of the input in pixels, even.
        channels: colour channels of the input.

    Example:
        >>> import torch
        >>> SmallConvNet(classes=10)(torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4, 10])
    """

    def __init__(self, classes: int, width: int = 16, image_size: int = 8, channels: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            convolution(channels, width), convolution(width, 2 * width), nn.MaxPool2d(2), nn.Flatten()
        )
        self.classifier = nn.Linear(2 * width * (image_size // 2) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, channels, image_size, image_size)."""
        return self.classifier(self.features(images))


class SmallResNet(nn.Module):
    """Four convolutions that double the channels and halve the image, two residual blocks, a max over the rest.

    A shape that reaches high accuracy on 32-pixel images in few epochs: little depth, a strong pooling at the end,
    logits scaled down.

    Args:
        classes: number of logits.
        width: channels of the first convolution; the last ones have eight times as many.
        image_size: unused, any size from 16 pixels will do.
        channels: colour channels of the input.

    Example:
        >>> import torch
        >>> SmallResNet(classes=10, width=8)(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([4, 10])

    Reference: D. Page, *How to Train Your ResNet*, 2018, for the shape.
    """

    def __init__(self, classes: int, width: int = 64, image_size: int = 32, channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            convolution(channels, width),
            convolution(width, 2 * width),
            nn.MaxPool2d(2),
            Residual(2 * width),
            convolution(2 * width, 4 * width),
            nn.MaxPool2d(2),
            convolution(4 * width, 8 * width),
            nn.MaxPool2d(2),
            Residual(8 * width),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.classifier = ScaledLinear(8 * width, classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, channels, image_size, image_size)."""
        return self.classifier(self.features(images))


class ScaledLinear(nn.Linear):
    """A linear classifier whose logits are scaled down, so that training begins gently."""

    scale = 1 / 8

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) * self.scale


class Residual(nn.Module):
    """Two convolutions whose output is added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(convolution(width, width), convolution(width, width))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.body(features)


class MLP(nn.Module):
    """Two hidden layers; no batch norm, so that a batch may have any size.

    Args:
        classes: number of logits.
        width: hidden units of either layer.
        image_size: height and width of the input in pixels, if it is images.
        channels: colour channels of the input, if it is images.
        inputs: numbers in a row of a table; 0 for images.

    Example:
        >>> import torch
        >>> MLP(classes=3, inputs=7)(torch.zeros(4, 7)).shape
        torch.Size([4, 3])
    """

    def __init__(self, classes: int, width: int = 64, image_size: int = 8, channels: int = 1, inputs: int = 0) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs or channels * image_size**2, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(width, classes)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits (N, classes) of rows (N, inputs), or of images (N, channels, image_size, image_size)."""
        return self.classifier(self.features(rows))


class LinearHead(nn.Module):
    """A linear classifier of rows, or of the pixels of images.

    Args:
        classes: number of logits.
        image_size: height and width of the input in pixels, if it is images.
        channels: colour channels of the input, if it is images.
        inputs: numbers in a row of a table; 0 for images.

    Example:
        >>> import torch
        >>> LinearHead(classes=3, inputs=7)(torch.zeros(4, 7)).shape
        torch.Size([4, 3])
    """

    def __init__(self, classes: int, image_size: int = 8, channels: int = 1, inputs: int = 0) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten())
        self.classifier = nn.Linear(inputs or channels * image_size**2, classes)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits (N, classes) of rows (N, inputs), or of images (N, channels, image_size, image_size)."""
        return self.classifier(self.features(rows))


class CosineClassifier(nn.Module):
    r"""Logits by the angle to each class's weight, and by how long the features are.

    .. math:: z_c = scale \, \frac{x^\top w_c}{(d + |x|) \, |w_c|}

    With d = 0 it is the cosine; d = 1 squashes the features to a length below 1.

    Args:
        features: length of a feature vector, D.
        classes: C.
        scale: largest logit there can be, > 0.

    Example:
        >>> import torch
        >>> CosineClassifier(features=4, classes=3, scale=16.0)(torch.zeros(2, 4))
        tensor([[0., 0., 0.],
                [0., 0., 0.]], grad_fn=<MmBackward0>)

    Reference: Gidaris and Komodakis, *Dynamic Few-Shot Visual Learning without Forgetting*, CVPR 2018; squashing:
    Sabour et al., *Dynamic Routing Between Capsules*, NeurIPS 2017.
    """

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__()
        bound = 1 / math.sqrt(features)
        self.weight = nn.Parameter(torch.empty(classes, features).uniform_(-bound, bound))
        self.scale = scale

    def forward(self, features: Tensor, distance: Tensor | float = 0.0) -> Tensor:
        """Logits (N, C) of ``features`` (N, D); ``distance`` is d >= 0, one for all or (N, 1)."""
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        # As in the release's code: x / (1 + |x|). The paper's formula has the square, |x| x / (1 + |x|^2).
        tiny = torch.finfo(features.dtype).tiny  # features of length 0 at distance 0 have logits 0, not nan
        squashed = features / (length + distance).clamp_min(tiny)
        return self.scale * squashed @ F.normalize(self.weight).mT


class CifarResNet(nn.Module):
    """The 32-layer residual network for CIFAR that long-tailed results are published with.

    Three stages of five blocks, with ``width``, twice and four times as many channels; where the image is halved the
    shortcut takes every other pixel and pads the channels with zeros, so that it has no weights.

    Args:
        classes: number of logits.
        width: channels of the first stage.
        image_size: unused, any size from 4 pixels will do.
        channels: colour channels of the input.

    Example:
        >>> import torch
        >>> CifarResNet(classes=10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Reference: He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016, section 4.2, option A.
    """

    def __init__(self, classes: int, width: int = 16, image_size: int = 32, channels: int = 3) -> None:
        super().__init__()
        widths = [width] * 5 + [2 * width] * 5 + [4 * width] * 5
        blocks = [CifarBlock(inputs, outputs) for inputs, outputs in zip([width, *widths], widths, strict=False)]
        self.features = nn.Sequential(convolution(channels, width), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(4 * width, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, channels, image_size, image_size)."""
        return self.classifier(self.features(images))


class CifarBlock(nn.Module):
    """Two convolutions and a shortcut without weights; more channels out than in halves the image."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.added = (1, 0) if inputs == outputs else (2, outputs - inputs)
        self.body = nn.Sequential(
            convolution(inputs, outputs, self.stride),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, features: Tensor) -> Tensor:
        shortcut = features[:, :, :: self.stride, :: self.stride]
        if self.added:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return F.relu(self.body(features) + shortcut)


def resnet_10(classes: int, width: int = 64, image_size: int = 224, channels: int = 3) -> nn.Module:
    """The residual network of ImageNet-LT: the shape of ResNet-18, with one block in each of its four stages.

    Args:
        classes: number of logits.
        width: channels of the first stage; the others have 2, 4 and 8 times as many. The stem has 64.
        image_size: unused, any size from 32 pixels will do.
        channels: colour channels of the input.

    Reference: Liu et al., *Large-Scale Long-Tailed Recognition in an Open World*, CVPR 2019.
    """
    import timm

    widths = (width, 2 * width, 4 * width, 8 * width)
    return timm.create_model("resnet18", layers=(1, 1, 1, 1), channels=widths, num_classes=classes, in_chans=channels)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "small-convnet": SmallConvNet,
    "small-resnet": SmallResNet,
    "cifar-resnet-32": CifarResNet,
    "resnet-10": resnet_10,
    "mlp": MLP,
    "linear": LinearHead,
}
"""Our own, by name; timm has none of these names."""


def build_model(recipe: Recipe, classes: int, inputs: int = 0) -> nn.Module:
    """The untrained (or pretrained) model of a recipe, initialised from torch's global random state.

    Args:
        recipe: names the model.
        classes: number of logits.
        inputs: numbers in a row of a table; 0 for images.

    Raises:
        ValueError: neither of ours nor one of timm's; ``width`` or ``pretrained`` where the model has no such thing;
            a model of images for a table.
    """
    if inputs and recipe.model not in HEADS:
        allowed = " or ".join(map(repr, HEADS))
        raise ValueError(f"model is {recipe.model!r}, which takes images; for rows of numbers it must be {allowed}")
    if recipe.model in MODELS:
        if recipe.pretrained:
            raise ValueError(f"pretrained is true, but {recipe.model} has no weights to begin with; it must be false")
        if recipe.width and recipe.model == "linear":
            raise ValueError(f"width is {recipe.width}, but a linear model has no hidden layer; it must be 0")
        width = {"width": recipe.width} if recipe.width else {}
        shape = {"inputs": inputs} if inputs else {"image_size": recipe.image_size, "channels": recipe.channels}
        return MODELS[recipe.model](classes, **shape, **width)
    check_model(recipe)
    import timm

    model = timm.create_model(recipe.model, pretrained=recipe.pretrained, num_classes=classes, in_chans=recipe.channels)
    if recipe.split_batch_norm:
        model = timm.layers.convert_splitbn_model(model, recipe.aug_splits)
    return model


def check_model(recipe: Recipe) -> None:
    """Raise ValueError for an unknown model, suggesting the closest name; timm is imported for names not in MODELS."""
    if recipe.model in MODELS:
        return
    import difflib

    import timm

    if not timm.is_model(recipe.model):
        known = [*MODELS, *timm.list_models()]
        nearest = difflib.get_close_matches(recipe.model, known, n=1, cutoff=0.4)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"model is {recipe.model!r}; it must be {', '.join(MODELS)}, or a name that timm knows{hint}")
    if recipe.width:
        raise ValueError(f"width is {recipe.width}, but {recipe.model} is timm's and has its own; it must be 0")


def classifier_of(model: nn.Module) -> nn.Linear:
    """The last layer of a network.

    Raises:
        ValueError: it is not linear.
    """
    network: Any = model
    last = network.get_classifier() if hasattr(model, "get_classifier") else network.classifier
    if not isinstance(last, nn.Linear):
        raise ValueError(f"model ends in {type(last).__name__}; it must end in a linear classifier")
    return last


def without_classifier(model: nn.Module) -> nn.Module:
    """Take the classifier off, so that the network gives its features (N, D); the model itself.

    Raises:
        ValueError: the last layer of a network that is not timm's is not linear.
    """
    network: Any = model
    if hasattr(network, "reset_classifier"):
        network.reset_classifier(0)
        return model
    last = classifier_of(model)
    model.set_submodule(next(name for name, layer in model.named_modules() if layer is last), nn.Identity())
    return model


def use_cosine_classifier(model: nn.Module, scale: float) -> nn.Module:
    """Replace the last layer by a cosine classifier, whose logits are at most ``scale``; the model itself.

    Raises:
        ValueError: the last layer is not linear.
    """
    last = classifier_of(model)
    name = next(name for name, layer in model.named_modules() if layer is last)
    model.set_submodule(name, CosineClassifier(last.in_features, last.out_features, scale))
    return model


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )
