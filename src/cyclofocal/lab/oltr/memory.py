"""A memory of what each class looks like: one centroid of its features per class."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from cyclofocal.lab.messages import preview


class CentroidMemory(nn.Module):
    """The centroid of each class, filled once with the mean of its training features, then learnt.

    A memory that has not been filled holds nan, so that nothing is computed with it by mistake. It is a parameter, and
    thus part of every checkpoint; the centroid loss moves it, the classifier only reads it.

    Args:
        classes: C.
        features: length of a feature vector, D.

    Attributes:
        centroids: (C, D).

    Example:
        >>> memory = CentroidMemory(classes=2, features=1)
        >>> memory.fill([(torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([0, 0, 1]))])
        >>> memory.centroids.tolist()
        [[2.0], [7.0]]

    Reference: Liu et al., *Large-Scale Long-Tailed Recognition in an Open World*, CVPR 2019, section 3.2.
    """

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.centroids = nn.Parameter(torch.full((classes, features), torch.nan))

    @property
    def filled(self) -> bool:
        """True if every class has a centroid."""
        return not bool(self.centroids.isnan().any())

    @torch.no_grad()
    def fill(self, batches: Iterable[tuple[Tensor, Tensor]], reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Set every centroid to the mean feature of its class; summed in float64, whatever the batches.

        Args:
            batches: features (N, D) and labels (N,) of the training images; of this process's share of them, each
                image in one share.
            reduce: sums a tensor over all processes, such as ``partial(accelerator.reduce, reduction="sum")``.

        Raises:
            ValueError: a class without a feature; the memory is then left as it was.
        """
        classes, length = self.centroids.shape
        sums = torch.zeros(classes, length + 1, dtype=torch.float64, device=self.centroids.device)  # counts come last
        for features, labels in batches:
            counted = torch.cat([features.double(), features.new_ones(len(features), 1, dtype=torch.float64)], 1)
            sums.index_add_(0, labels, counted)
        if reduce is not None:
            sums = reduce(sums)
        empty = (sums[:, -1] == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"{len(empty)} of {classes} classes have no feature to fill the memory: {preview(empty)}")
        self.centroids.copy_(sums[:, :-1] / sums[:, -1:])
