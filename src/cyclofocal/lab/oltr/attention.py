"""Modulated attention: which places of a feature map bear on each other, and which of them count."""

import torch.nn.functional as F
from torch import Tensor, nn

PUBLISHED_POSITIONS = 7 * 7
"""Channels of the feature maps that the attention was published for."""


class ModulatedAttention(nn.Module):
    r"""A non-local block whose output is weighed place by place and added to its input; for maps of any size.

    .. math::
        y_p = x_p + s_p \, W \sum_r \mathrm{softmax}_r(\theta_p^\top \varphi_r) \, g_r, \qquad
        s = \frac{P}{49} \, \mathrm{softmax}_p(v^\top x_p)

    with 1 x 1 convolutions theta, phi and g to ``channels / reduction`` channels, and P places. W begins at 0, so that
    the block begins as the identity.

    Args:
        channels: of the feature map, C.
        reduction: of the channels inside the block, at least 1.

    Raises:
        ValueError: ``reduction`` leaves no channel, or is below 1.

    Example:
        >>> import torch
        >>> ModulatedAttention(8)(torch.zeros(2, 8, 7, 5)).shape
        torch.Size([2, 8, 7, 5])

    Reference: Liu et al., *Large-Scale Long-Tailed Recognition in an Open World*, CVPR 2019, section 3.1; Wang et al.,
    *Non-local Neural Networks*, CVPR 2018, embedded Gaussian.
    """

    def __init__(self, channels: int, reduction: int = 2) -> None:
        super().__init__()
        if not 1 <= reduction <= channels:
            raise ValueError(f"reduction is {reduction}; it must be from 1 to channels, {channels}")
        inner = channels // reduction
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.project = nn.Conv2d(inner, channels, 1, bias=False)
        # Differs from the release: there a linear layer from the flattened 7 x 7 map to its 49 places, which no other
        # size fits. Here every place is judged by its own channels; a bias would cancel in the softmax.
        self.spatial = nn.Conv2d(channels, 1, 1, bias=False)
        for layer in (self.theta, self.phi, self.g):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.project.weight)

    def forward(self, features: Tensor) -> Tensor:
        """The modulated map, of the shape (N, C, H, W) of ``features``."""
        theta, phi, g = (layer(features).flatten(2).mT for layer in (self.theta, self.phi, self.g))  # (N, P, C')
        related = F.scaled_dot_product_attention(theta, phi, g, scale=1.0).mT.unflatten(2, features.shape[2:])
        return features + self.spatial_map(features) * self.project(related)

    def spatial_map(self, features: Tensor) -> Tensor:
        """Weight of each place, (N, 1, H, W)."""
        logits = self.spatial(features).flatten(2)
        # Differs from the release: times P / 49, so that a place counts 1 / 49 on average for maps of every size.
        return (logits.softmax(2) * (logits.shape[2] / PUBLISHED_POSITIONS)).view_as(features[:, :1])
