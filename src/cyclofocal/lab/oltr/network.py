"""The network of the second stage: a first stage's features, modulated attention, memory and meta-embedding."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from cyclofocal.lab.oltr.attention import ModulatedAttention
from cyclofocal.lab.oltr.backbone import Backbone
from cyclofocal.lab.oltr.centroids import centroid_loss
from cyclofocal.lab.oltr.classifier import MetaEmbedding
from cyclofocal.lab.oltr.memory import CentroidMemory


class OpenLongTailed(nn.Module):
    """Open long-tailed recognition, built on the network of a first stage.

    The hallucinator begins as the first stage's classifier. The memory is filled by :meth:`CentroidMemory.fill`
    with :meth:`features` before anything else.

    Args:
        backbone: of the first stage.
        frozen: its weights and batch statistics stay as they are, but for the layer that narrows features.
        reduce: sums a tensor over all processes; None: there is one.

    Reference: Liu et al., *Large-Scale Long-Tailed Recognition in an Open World*, CVPR 2019.
    """

    def __init__(
        self, backbone: Backbone, frozen: bool = False, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        classes = len(backbone.weight)
        self.backbone, self.frozen, self.reduce = backbone, frozen, reduce
        self.attention = ModulatedAttention(backbone.channels)
        self.memory = CentroidMemory(classes, backbone.length)
        self.classifier = MetaEmbedding(backbone.length, classes)
        with torch.no_grad():
            self.classifier.hallucinator.weight.copy_(backbone.weight)
            self.classifier.hallucinator.bias.copy_(torch.zeros(classes) if backbone.bias is None else backbone.bias)
        if frozen:
            backbone.requires_grad_(False)
            backbone.narrow.requires_grad_(True)

    def train(self, mode: bool = True) -> "OpenLongTailed":
        """Training mode, but for a frozen backbone."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()  # Differs from the release: there the batch statistics of frozen features move on
        return self

    def features(self, images: Tensor) -> Tensor:
        """Feature vectors (N, D) of ``images``, after the attention."""
        return self.backbone.pool(self.attention(self.backbone.feature_map(images)))

    def forward(self, images: Tensor, target: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (N, C) of ``images``; with a ``target`` (N,) the centroid loss of this process's share as well."""
        features = self.features(images)
        logits = self.classifier(features, self.memory.centroids)
        if target is None:
            return logits
        average = None if self.reduce is None else partial(_average, len(images), self.reduce)
        return logits, centroid_loss(features.float(), target, self.memory.centroids, average=average)


def _average(n_images: int, reduce: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """Mean over all processes, weighed by their images."""
    total, count = reduce(torch.stack([value * n_images, value.new_tensor(float(n_images))]))
    return total / count
