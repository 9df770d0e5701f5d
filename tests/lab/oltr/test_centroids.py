"""The centroid loss has the value and the gradient of its double sum, in little memory."""

import pytest
import torch
from torch import Tensor

from cyclofocal.lab.bench.measure import peak_bytes
from cyclofocal.lab.oltr.centroids import centroid_loss, nearest


def plain(features: Tensor, target: Tensor, centroids: Tensor, margin: float, weight: float) -> Tensor:
    """Distance by distance; torch differentiates it."""
    images, classes = len(features), len(centroids)
    attract = repel = torch.zeros((), dtype=torch.float64)
    for x, t in zip(features, target.tolist(), strict=True):
        for c, centroid in enumerate(centroids):
            squared = sum((a - b) ** 2 for a, b in zip(x, centroid, strict=True))
            if c == t:
                attract = attract + squared / 2
            else:
                repel = repel + squared
    return attract / images + weight * torch.clamp(margin - repel / (images * classes), min=0)


def problem(images=6, classes=4, length=3, shift=0.0):
    features = torch.randn(images, length, dtype=torch.float64) + shift
    centroids = torch.randn(classes, length, dtype=torch.float64) + shift
    return features.requires_grad_(), torch.randint(classes, (images,)), centroids.requires_grad_()


@pytest.mark.parametrize("margin", [10.0, 0.5])  # the others count; they are far enough
@pytest.mark.parametrize("shape", [(6, 4, 3), (1, 1, 2), (9, 2, 1)])
def test_value_and_gradient_of_the_double_sum(margin, shape):
    features, target, centroids = problem(*shape)
    ours, theirs = (f(features, target, centroids, margin, 0.3) for f in (centroid_loss, plain))
    torch.testing.assert_close(ours, theirs)
    for own, other in zip(
        torch.autograd.grad(3 * ours, (features, centroids)),
        torch.autograd.grad(3 * theirs, (features, centroids)),
        strict=True,
    ):
        torch.testing.assert_close(own, other)


def test_gradient_by_finite_differences():
    features, target, centroids = problem()
    assert torch.autograd.gradcheck(lambda x, c: centroid_loss(x, target, c, repel_weight=0.3), (features, centroids))


def test_by_hand():
    features, centroids = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 2.0]])
    # own: 1 and 4, half of their mean 1.25; others: 8 and 4 + 1, over 2 x 2 pairs 3.25
    expected = 1.25 + 0.01 * (10 - 3.25)
    torch.testing.assert_close(centroid_loss(features, torch.tensor([0, 1]), centroids), torch.tensor(expected))


def test_digits_survive_a_common_offset_in_float32():
    features, target, centroids = problem(20, 10, 8, shift=1000.0)
    exact = plain(features, target, centroids, 10.0, 1.0)
    rounded = plain(features.float().double(), target, centroids.float().double(), 10.0, 1.0)
    ours = centroid_loss(features.float(), target, centroids.float(), repel_weight=1.0)
    torch.testing.assert_close(ours.double(), rounded, rtol=1e-4, atol=0)
    torch.testing.assert_close(exact, rounded, rtol=1e-3, atol=0)


def test_processes_together_give_the_gradient_of_one():
    features, target, centroids = problem(8)
    shares = [slice(0, 5), slice(5, 8)]
    pairs = torch.cdist(features.detach(), centroids.detach()).square()
    pairs[torch.arange(8), target] = 0
    margin = pairs.mean().item() + 0.01  # between the means of the two shares: they would disagree on their own
    whole = centroid_loss(features, target, centroids, margin, 0.5)
    gaps = [margin - pairs[share].mean().item() for share in shares]
    assert min(gaps) < 0 < max(gaps)

    def average(gap):
        return torch.tensor(0.01, dtype=gap.dtype)

    losses = [
        centroid_loss(features[share], target[share], centroids, margin, 0.5, average) * (len(target[share]) / 8)
        for share in shares
    ]
    torch.testing.assert_close(sum(losses), whole)
    for own, other in zip(
        torch.autograd.grad(sum(losses), (features, centroids)),
        torch.autograd.grad(whole, (features, centroids)),
        strict=True,
    ):
        torch.testing.assert_close(own, other)


def test_memory_at_the_size_of_imagenet_lt():
    features = torch.randn(128, 2048, requires_grad=True)
    centroids, target = torch.randn(1000, 2048, requires_grad=True), torch.randint(1000, (128,))

    def step():
        nearest(features, centroids)
        return torch.autograd.grad(centroid_loss(features, target, centroids, margin=1e9), (features, centroids))

    step()
    assert 8e6 < peak_bytes(step, "cpu") <= 20e6  # the gradient of the centroids alone takes 8.2 MB


def test_nearest_as_sorted_distances():
    features, _, centroids = problem(30, 12, 5)
    distances = (features[:, None] - centroids[None]).square().sum(2)
    assert torch.equal(nearest(features, centroids), distances.sort(1).indices[:, 0])


def test_half_precision_around_it_does_not_blur_the_nearest():
    centroids = torch.tensor([[100.0, 0.0], [100.0, 0.1]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nearest(torch.tensor([[100.0, 0.02], [100.0, 0.09]]), centroids).tolist() == [0, 1]


def test_shapes_that_do_not_fit_are_refused():
    features, target, centroids = problem()
    with pytest.raises(ValueError, match=r"features are \(6, 2\), target \(6,\) and centroids \(4, 3\)"):
        centroid_loss(features[:, :2], target, centroids)
    with pytest.raises(ValueError, match="target"):
        centroid_loss(features, target[:2], centroids)
    with pytest.raises(ValueError, match="features are empty"):
        centroid_loss(features[:0], target[:0], centroids)
