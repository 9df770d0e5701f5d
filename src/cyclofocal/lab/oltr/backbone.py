"""A network of the first stage in its three parts: to the feature map, to the feature vector, to the logits."""

from typing import Any

import torch
from torch import Tensor, nn

from cyclofocal.lab.models import SmallResNet

POOLING = 2
"""The last modules of our own networks' ``features``: a pooling and a flattening."""


class Backbone(nn.Module):
    """A network up to its features; the classifier is taken off.

    Args:
        model: one of ours, or one of timm's with a feature map; it is changed.
        image: (channels, height, width) of its input.

    Attributes:
        channels: of the feature map.
        length: of the feature vector.
        weight, bias: of the classifier that was taken off, (C, length) and (C,); bias None where it had none.

    Raises:
        ValueError: the model has no feature map (N, channels, height, width), or no linear classifier.
    """

    body: Any

    def __init__(self, model: nn.Module, image: tuple[int, int, int]) -> None:
        super().__init__()
        classifier = classifier_of(model)
        self.weight, self.bias = _logits_of(model, classifier)
        network: Any = model
        self.ours = not hasattr(model, "reset_classifier")
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
        if self.ours:
            return self.pooling(feature_map)
        return self.body.forward_head(feature_map, pre_logits=True)

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


def classifier_of(model: nn.Module) -> nn.Linear:
    """The last layer of a network of the first stage.

    Raises:
        ValueError: it is not linear.
    """
    network: Any = model
    last = network.get_classifier() if hasattr(model, "get_classifier") else network.classifier
    if not isinstance(last, nn.Linear):
        raise ValueError(f"model ends in {type(last).__name__}; it must end in a linear classifier")
    return last


def _logits_of(model: nn.Module, classifier: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias from features to logits."""
    scale = 1 / 8 if isinstance(model, SmallResNet) else 1.0  # which divides its logits
    bias = None if classifier.bias is None else classifier.bias.detach() * scale
    return classifier.weight.detach() * scale, bias
