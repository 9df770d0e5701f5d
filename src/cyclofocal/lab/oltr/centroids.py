"""Distances to class centroids: the nearest one, and the loss that draws features to their own."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 10.0
REPEL_WEIGHT = 0.01


@torch.no_grad()
def nearest(features: Tensor, centroids: Tensor) -> Tensor:
    """Index (N,) of the centroid (C, D) that is nearest to each feature vector (N, D).

    By :math:`|x - c|^2 = |x|^2 + |c|^2 - 2 x^T c`, so that nothing larger than (N, C) is made.

    Example:
        >>> nearest(torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [7.0]])).tolist()
        [0, 1]
    """
    with torch.autocast(features.device.type, enabled=False):  # half precision would lose the small differences
        squared = torch.linalg.vector_norm(centroids, dim=1).square()
        return torch.addmm(squared, features.to(centroids.dtype), centroids.mT, alpha=-2).argmin(1)


def centroid_loss(
    features: Tensor,
    target: Tensor,
    centroids: Tensor,
    margin: float = MARGIN,
    repel_weight: float = REPEL_WEIGHT,
    average: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    r"""Draw features to the centroid of their class, and away from the others.

    .. math::
        \frac{1}{2N} \sum_i |x_i - c_{t_i}|^2
        + w \max\Big(0, m - \frac{1}{NC} \sum_i \sum_{c \ne t_i} |x_i - c_c|^2\Big)

    The double sum has a closed form, by the parallel axis theorem, so that no distance is computed but to the own
    centroid: with the mean centroid mu it is :math:`C \sum_i |x_i - \mu|^2 + N \sum_c |c_c - \mu|^2` less the own ones.

    Args:
        features: (N, D), N >= 1.
        target: (N,) class indices.
        centroids: (C, D), of the dtype of the features.
        margin: mean squared distance to the others beyond which they no longer matter, m >= 0.
        repel_weight: w >= 0.
        average: gives a number's mean over all processes, weighed by their images. Then the losses of the processes
            have the value and gradient of one process with all the images as their weighed mean.

    Returns:
        0-d; differentiable in the features and the centroids.

    Raises:
        ValueError: shapes that do not fit, or an empty batch.

    Example:
        >>> features, centroids = torch.tensor([[1.0]]), torch.tensor([[3.0], [2.0]])
        >>> round(centroid_loss(features, torch.tensor([0]), centroids).item(), 4)  # 4 / 2 + 0.01 * (10 - 1 / 2)
        2.095

    Reference: Liu et al., *Large-Scale Long-Tailed Recognition in an Open World*, CVPR 2019, section 3.3.
    """
    if features.ndim != 2 or features.shape[1:] != centroids.shape[1:] or target.shape != features.shape[:1]:
        raise ValueError(
            f"features are {tuple(features.shape)}, target {tuple(target.shape)} and centroids"
            f" {tuple(centroids.shape)}; they must be (N, D), (N,) and (C, D)"
        )
    if not len(features):
        raise ValueError("features are empty; the mean over no image has no value")
    n_images, classes = len(features), len(centroids)
    mean = centroids.mean(0)
    own = _squared(features, centroids[target])
    spread = _squared(centroids, mean.detach())  # whose derivative in the mean is 0, and takes no memory here
    others = classes * _squared(features, mean) + n_images * spread - own
    gap = margin - others / (n_images * classes)
    active = (gap.detach() if average is None else average(gap.detach())) > 0
    # Differs from the release: the centroids' gradient is that of the loss. There their attraction is divided by one
    # plus the class's images in the batch, and knows nothing of the weight that the loss has in a total.
    return own / (2 * n_images) + repel_weight * active * gap


def _squared(points: Tensor, centres: Tensor) -> Tensor:
    """Sum of the squared distances, with one tensor of the points' size."""
    return F.mse_loss(points, centres.expand_as(points), reduction="sum")
