"""The classifiers give what the equations of their paper give, element by element, and stay finite."""

import math

import pytest
import torch

from cyclofocal.lab.oltr.classifier import MetaEmbedding
from cyclofocal.lab.training.models import CosineClassifier

LENGTH, CLASSES = 5, 4


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def length(a):
    return math.sqrt(dot(a, a))


def linear(layer, x):
    return [dot(row, x) + b for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)]


def cosine(layer, x, scale=16):
    """Squash x to the length |x| / (1 + |x|), then take the scaled cosine."""
    squashed = [length(x) / (1 + length(x)) * (v / length(x)) for v in x]
    return [scale * dot(squashed, w) / length(w) for w in layer.weight.tolist()]


def meta(layer, x, centroids):
    powers = [math.exp(z) for z in linear(layer.hallucinator, x)]
    memory = [sum(p / sum(powers) * row[d] for p, row in zip(powers, centroids, strict=True)) for d in range(len(x))]
    selector = [math.tanh(z) for z in linear(layer.selector, x)]
    reachability = 10 / min(length([a - b for a, b in zip(x, row, strict=True)]) for row in centroids)
    return cosine(layer.cosine, [reachability * (v + s * m) for v, s, m in zip(x, selector, memory, strict=True)])


def test_cosine_as_in_the_equation():
    layer, x = CosineClassifier(LENGTH, CLASSES, scale=16.0).double(), torch.randn(6, LENGTH, dtype=torch.float64)
    expected = torch.tensor([cosine(layer, row) for row in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(layer(x, 1.0), expected)
    assert torch.autograd.gradcheck(layer, (x.requires_grad_(), 1.0))


def test_cosine_logits_are_below_the_scale():
    assert CosineClassifier(LENGTH, CLASSES, scale=3)(1e4 * torch.randn(50, LENGTH), 1.0).abs().max() < 3


def test_meta_embedding_as_in_the_equations():
    layer, x = MetaEmbedding(LENGTH, CLASSES).double(), torch.randn(6, LENGTH, dtype=torch.float64)
    centroids = torch.randn(CLASSES, LENGTH, dtype=torch.float64)
    expected = torch.tensor([meta(layer, row, centroids.tolist()) for row in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(layer(x, centroids), expected)
    assert torch.autograd.gradcheck(layer, (x.requires_grad_(), centroids))


def test_the_classifier_only_reads_the_memory():
    layer, centroids = MetaEmbedding(LENGTH, CLASSES), torch.randn(CLASSES, LENGTH, requires_grad=True)
    layer(torch.randn(2, LENGTH), centroids).sum().backward()
    assert centroids.grad is None
    assert all(weight.grad is not None for weight in layer.parameters())


def test_far_from_every_centroid_means_small_logits():
    layer, x = MetaEmbedding(LENGTH, CLASSES), torch.randn(1, LENGTH)
    for weight in layer.hallucinator.parameters():
        torch.nn.init.zeros_(weight)  # every class is recalled alike, so that the memory feature is 0
    opposite = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None].expand(-1, LENGTH)
    assert layer(x, 1e4 * opposite).abs().max() < 0.1
    assert layer(x, opposite).abs().max() > 1


@pytest.mark.parametrize("x", [torch.ones(1, LENGTH), torch.zeros(1, LENGTH)])
def test_features_that_are_a_centroid_stay_finite(x):
    layer, features = MetaEmbedding(LENGTH, CLASSES), x.clone().requires_grad_()
    centroids = torch.cat([x, torch.randn(CLASSES - 1, LENGTH)])
    logits = layer(features, centroids)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert features.grad.isfinite().all()
    assert CosineClassifier(LENGTH, CLASSES, scale=16.0)(torch.zeros(1, LENGTH)).abs().max() == 0


def test_an_unfilled_memory_gives_no_logits():
    assert MetaEmbedding(LENGTH, CLASSES)(torch.ones(2, LENGTH), torch.full((CLASSES, LENGTH), torch.nan)).isnan().all()
