"""The classifier of the second stage: meta-embedding with a memory."""

import torch
from torch import Tensor, nn

from cyclofocal.lab.oltr.centroids import nearest
from cyclofocal.lab.training.models import CosineClassifier

SCALE = 16.0
REACH = 10.0


class MetaEmbedding(nn.Module):
    r"""Features enriched by what the memory knows, then a cosine classifier.

    .. math::
        m = \mathrm{softmax}(H x)^\top M, \quad e = \tanh(S x), \quad
        x' = \frac{10}{\min_c |x - M_c|} \, (x + e \odot m)

    with hallucinator H, selector S, memory M of centroids (C, D) and reachability, which lets images that are far from
    every centroid have small logits, so that they are rejected as unknown. H may begin as stage 1's classifier.

    Args:
        features: length of a feature vector, D.
        classes: C.
        scale: of the cosine classifier.
        reach: 10 in the formula.

    Example:
        >>> MetaEmbedding(features=4, classes=3)(torch.ones(2, 4), torch.zeros(3, 4)).shape
        torch.Size([2, 3])

    Reference: Liu et al., *Large-Scale Long-Tailed Recognition in an Open World*, CVPR 2019, section 3.2.
    """

    def __init__(self, features: int, classes: int, scale: float = SCALE, reach: float = REACH) -> None:
        super().__init__()
        self.hallucinator = nn.Linear(features, classes)
        self.selector = nn.Linear(features, features)
        self.cosine = CosineClassifier(features, classes, scale)
        self.reach = reach

    def forward(self, features: Tensor, centroids: Tensor) -> Tensor:
        """Logits (N, C) of ``features`` (N, D); no gradient reaches ``centroids`` (C, D)."""
        memory = centroids.detach()
        recalled = self.hallucinator(features).softmax(1) @ memory
        enriched = features + self.selector(features).tanh() * recalled
        distance = torch.linalg.vector_norm(features - memory[nearest(features, memory)], dim=1, keepdim=True)
        # Reachability and squashing in one: r v / (1 + r |v|) = v / (1/r + |v|), with r = reach / distance.
        # Differs from the release: finite for features that are a centroid, as of a class with a single image.
        return self.cosine(enriched, distance / self.reach)
