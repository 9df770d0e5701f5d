"""A network of the first stage in its three parts: to the feature map, to the feature vector, to the logits."""

from typing import Any

import torch
from torch import Tensor, nn

from cyclofocal.lab.training.models import classifier_of
from cyclofocal.ranges import check_at_least

POOLING = 2
"""The last modules of ``features`` in the networks of this package: a pooling and a flattening."""


class BottleneckHead(nn.Module):
    """A network of timm's whose features pass a linear layer and a ReLU before the classifier.

    Args:
        model: its classifier is taken off.
        length: of the features that the classifier has.
        classes: number of logits.

    Raises:
        ValueError: the model is not timm's, or ``length`` is below 1.

    Reference: the networks of the published Places-LT runs, which narrow 2,048 features to 512.
    """

    def __init__(self, model: nn.Module, length: int, classes: int) -> None:
        super().__init__()
        network: Any = model
        if not hasattr(network, "reset_classifier"):
            raise ValueError(f"feature_length is {length}, but {type(model).__name__} has its own; it must be 0")
        check_at_least("length", length)
        network.reset_classifier(0)
        self.body = network
        self.narrow = nn.Sequential(nn.Linear(network.num_features, length), nn.ReLU())
        self.classifier = nn.Linear(length, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images."""
        return self.classifier(self.narrow(self.body(images)))


class Backbone(nn.Module):
    """A network up to its features; the classifier is taken off.

    Args:
        model: one of ours, one of timm's with a feature map, or such a one narrowed; it is changed.
        image: (channels, height, width) of its input.

    Attributes:
        channels: of the feature map.
        length: of the feature vector.
        weight, bias: of the classifier that was taken off, (C, length) and (C,); bias None where it had none.
        narrow: from the pooled features to the feature vector; nothing but for :class:`BottleneckHead`.

    Raises:
        ValueError: the model has no feature map (N, channels, height, width), or no linear classifier.
    """

    body: Any

    def __init__(self, model: nn.Module, image: tuple[int, int, int]) -> None:
        super().__init__()
        classifier = classifier_of(model)
        self.weight, self.bias = _logits_of(classifier)
        self.narrow: nn.Module = model.narrow if isinstance(model, BottleneckHead) else nn.Identity()
        network: Any = model.body if isinstance(model, BottleneckHead) else model
        self.ours = not hasattr(network, "reset_classifier")
        if self.ours:
            self.body, self.pooling = network.features[:-POOLING], network.features[-POOLING:]
        else:
            network.reset_classifier(0)
            self.body = network
        self.channels, self.length = self._shapes(image)

    def feature_map(self, images: Tensor) -> Tensor:
        """(N, channels, height, width) of ``images``."""
        return self.body(images) if self.ours else self.body.forward_features(images)

    def pool(self, feature_map: Tensor) -> Tensor:
        """The feature vector (N, length) of a feature map."""
        pooled = self.pooling(feature_map) if self.ours else self.body.forward_head(feature_map, pre_logits=True)
        return self.narrow(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Feature vectors (N, length) of ``images``."""
        return self.pool(self.feature_map(images))

    @torch.no_grad()
    def _shapes(self, image: tuple[int, int, int]) -> tuple[int, int]:
        training = self.training
        self.eval()
        found = self.feature_map(torch.zeros(1, *image))
        if found.ndim != 4 or not (self.ours or found.shape[1] == self.body.num_features):
            raise ValueError(
                f"model gives features of shape {tuple(found.shape)}; it must have a feature map (N, channels, height,"
                " width), as convolutional networks do"
            )
        length = self.pool(found).shape[1]
        self.train(training)
        return found.shape[1], length


def _logits_of(classifier: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias from features to logits."""
    scale = getattr(classifier, "scale", 1.0)
    bias = None if classifier.bias is None else classifier.bias.detach() * scale
    return classifier.weight.detach() * scale, bias
