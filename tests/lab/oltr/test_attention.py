"""Modulated attention is what loops over places compute, for maps of any size, and begins as the identity."""

import math

import pytest
import torch

from cyclofocal.lab.oltr.attention import ModulatedAttention


def trained(channels):
    """A block as after some training: no weight is 0."""
    block = ModulatedAttention(channels).double()
    for weight in block.parameters():
        torch.nn.init.normal_(weight)
    return block


def plain(block, image):
    """(C, H, W) place by place, from the weights alone."""

    def project(layer, x):
        rows = layer.weight.flatten(1).tolist()
        bias = [0.0] * len(rows) if layer.bias is None else layer.bias.tolist()
        return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(rows, bias, strict=True)]

    def softmax(values):
        powers = [math.exp(value - max(values)) for value in values]
        return [power / sum(powers) for power in powers]

    places = image.flatten(1).T.tolist()
    theta, phi, g = ([project(layer, x) for x in places] for layer in (block.theta, block.phi, block.g))
    spatial = softmax([project(block.spatial, x)[0] for x in places])
    result = []
    for p, x in enumerate(places):
        weights = softmax([sum(a * b for a, b in zip(theta[p], other, strict=True)) for other in phi])
        related = [sum(w * values[k] for w, values in zip(weights, g, strict=True)) for k in range(len(g[0]))]
        added = project(block.project, related)
        result.append([v + spatial[p] * len(places) / 49 * a for v, a in zip(x, added, strict=True)])
    return torch.tensor(result, dtype=torch.float64).T.view_as(image)


@pytest.mark.parametrize("size", [(7, 7), (3, 5), (1, 1)])
def test_as_loops_over_places(size):
    block, features = trained(6), torch.randn(2, 6, *size, dtype=torch.float64)
    expected = torch.stack([plain(block, image) for image in features])
    assert not torch.allclose(expected, features)
    torch.testing.assert_close(block(features), expected)


def test_gradient_reaches_every_weight():
    block, features = trained(4), torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, features)
    block(features).square().sum().backward()
    assert all(weight.grad is not None for weight in block.parameters())


def test_begins_as_the_identity():
    features = torch.randn(2, 8, 7, 7)
    torch.testing.assert_close(ModulatedAttention(8)(features), features)


def test_the_map_counts_as_much_on_average_for_every_size():
    block = trained(6)
    for size in ((7, 7), (14, 14), (2, 3)):
        spatial = block.spatial_map(torch.randn(3, 6, *size, dtype=torch.float64))
        torch.testing.assert_close(spatial.mean((1, 2, 3)), torch.full((3,), 1 / 49, dtype=torch.float64))


def test_a_reduction_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="reduction is 5; it must be from 1 to channels, 4"):
        ModulatedAttention(4, reduction=5)
