"""The classifiers of the second stage: cosine similarity, and meta-embedding with a memory."""

import math

import torch
from torch import Tensor, nn

from cyclofocal.lab.oltr.centroids import nearest

SCALE = 16.0
REACH = 10.0


class CosineClassifier(nn.Module):
    r"""Logits by the angle to each class's weight, and by how long the features are.

    .. math:: z_c = scale \, \frac{x^\top w_c}{(d + |x|) \, |w_c|}

    With d = 1 the features are squashed to a length below 1; d = 0 leaves the cosine alone.

    Args:
        features: length of a feature vector, D.
        classes: C.
        scale: largest logit there can be, > 0.

    Example:
        >>> CosineClassifier(features=4, classes=3)(torch.zeros(2, 4))
        tensor([[0., 0., 0.],
                [0., 0., 0.]], grad_fn=<MmBackward0>)

    Reference: Gidaris and Komodakis, *Dynamic Few-Shot Visual Learning without Forgetting*, CVPR 2018; squashing:
    Sabour et al., *Dynamic Routing Between Capsules*, NeurIPS 2017.
    """

    def __init__(self, features: int, classes: int, scale: float = SCALE) -> None:
        super().__init__()
        bound = 1 / math.sqrt(features)
        self.weight = nn.Parameter(torch.empty(classes, features).uniform_(-bound, bound))
        self.scale = scale

    def forward(self, features: Tensor, distance: Tensor | float = 1.0) -> Tensor:
        """Logits (N, C) of ``features`` (N, D); ``distance`` is d >= 0, one for all or (N, 1)."""
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        # As in the release's code: x / (1 + |x|). The paper's formula has the square, |x| x / (1 + |x|^2).
        tiny = torch.finfo(features.dtype).tiny  # features of length 0 at distance 0 have logits 0, not nan
        squashed = features / (length + distance).clamp_min(tiny)
        return self.scale * squashed @ nn.functional.normalize(self.weight).mT


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
