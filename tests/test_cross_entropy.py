"""Promise: with every gamma 0 the loss is torch's cross_entropy, in value and gradient, for every call torch takes."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from cyclofocal.functional import binary_cyclical_focal_loss, cyclical_focal_loss

NO_GAMMAS = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
SHAPES = [(5,), (1,), (7, 5), (3, 1), (2, 5, 3), (2, 5, 3, 4), (2, 3, 2, 2, 2), (0, 5), (0, 5, 3), (2, 5, 0)]
SETTINGS = list(itertools.product(("mean", "sum", "none"), (0.0, 0.1, 1.0), (False, True)))


def both(logits, target, **options):
    """Value and gradients of ours and torch's for the same call."""
    results = []
    for loss_fn in (lambda *a, **k: cyclical_focal_loss(*a, eta=0.3, **NO_GAMMAS, **k), F.cross_entropy):
        x = logits.clone().requires_grad_()
        loss = loss_fn(x, target, **options)
        cotangent = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).view(loss.shape)
        (gradient,) = torch.autograd.grad(loss, x, cotangent)
        results.append((loss.detach(), gradient))
    return results


def assert_same(ours, torchs):
    for got, expected in zip(ours, torchs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def index_target(shape, classes):
    class_dim = 0 if len(shape) == 1 else 1
    return torch.randint(classes, shape[:class_dim] + shape[class_dim + 1 :])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["index", "probabilities", "unnormalised"])
def test_equals_cross_entropy(shape, kind):
    class_dim = 0 if len(shape) == 1 else 1
    classes = shape[class_dim]
    logits = torch.randn(shape, dtype=torch.float64) * 3
    target = index_target(shape, classes) if kind == "index" else torch.rand(shape, dtype=torch.float64)
    if kind == "probabilities":
        target = target / target.sum(class_dim, keepdim=True)
    for reduction, smoothing, weighted in SETTINGS:
        weight = torch.linspace(-0.5, 2, classes, dtype=torch.float64) if weighted else None
        assert_same(*both(logits, target, weight=weight, reduction=reduction, label_smoothing=smoothing))


@pytest.mark.parametrize("ignore_index", [-100, -1, 255, 0, 3])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_ignore_index(ignore_index, share):
    logits = torch.randn(6, 5, 4, dtype=torch.float64)
    target = torch.randint(5, (6, 4))
    target[torch.rand(6, 4) < share] = ignore_index
    for reduction, smoothing, weighted in SETTINGS:
        weight = torch.rand(5, dtype=torch.float64) if weighted else None
        options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
        assert_same(*both(logits, target, ignore_index=ignore_index, **options))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_masked_logits_behave_as_in_torch(smoothing):
    logits = torch.randn(4, 5, dtype=torch.float64)
    logits[:, 3] = -torch.inf
    logits[1, 2] = -torch.inf
    assert_same(*both(logits, torch.tensor([0, 1, 4, 2]), label_smoothing=smoothing, reduction="none"))


def test_a_masked_class_with_target_probability_zero_adds_0():
    """Torch gives nan here, as it multiplies 0 by infinity."""
    logits = torch.tensor([[1.0, -torch.inf, 2.0]], dtype=torch.float64)
    soft = torch.tensor([[0.25, 0.0, 0.75]], dtype=torch.float64)
    (loss, gradient), _ = both(logits, soft)
    (expected, expected_gradient), _ = both(logits[:, [0, 2]], soft[:, [0, 2]])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient[:, [0, 2]], expected_gradient)
    assert gradient[0, 1] == 0


def test_non_contiguous_and_channels_last_inputs():
    logits = torch.randn(2, 6, 5, 4, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert_same(*both(logits, torch.randint(6, (2, 5, 4)), reduction="none"))
    assert_same(*both(torch.randn(5, 8, dtype=torch.float64).t(), torch.randint(5, (16,))[::2]))


def test_index_targets_of_every_integer_dtype_and_a_single_row():
    logits, target = torch.randn(4, 5), torch.randint(5, (4,))
    expected = cyclical_focal_loss(logits, target, eta=0.3)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        torch.testing.assert_close(cyclical_focal_loss(logits, target.to(dtype), eta=0.3), expected)
    row = cyclical_focal_loss(logits[0], target[0], eta=0.3)
    torch.testing.assert_close(cyclical_focal_loss(logits[0], target[:1], eta=0.3), row)


def test_gradient_reaches_soft_targets_and_class_weights():
    logits = torch.randn(4, 5, dtype=torch.float64)
    soft = torch.rand(4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(5, dtype=torch.float64, requires_grad=True)
    ours = cyclical_focal_loss(logits, soft, weight, eta=0.3, label_smoothing=0.1, **NO_GAMMAS)
    torchs = F.cross_entropy(logits, soft, weight, label_smoothing=0.1)
    for got, expected in zip(*(torch.autograd.grad(v, (soft, weight)) for v in (ours, torchs)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (2, 4, 3, 2), (0, 4)], ids=str)
def test_sigmoid_equals_bce_with_logits(shape):
    for reduction, soft, weighted in itertools.product(("mean", "sum", "none"), (False, True), (False, True)):
        x = (torch.randn(shape, dtype=torch.float64) * 4).requires_grad_()
        y = torch.rand(shape, dtype=torch.float64)
        y = y if soft else y.round()
        options = {"reduction": reduction}
        if weighted:
            options["weight"] = torch.rand(shape[-1:], dtype=torch.float64)
            options["pos_weight"] = 3 * torch.rand(shape[-1:], dtype=torch.float64)
        ours = binary_cyclical_focal_loss(x, y, eta=0.3, **NO_GAMMAS, **options)
        torchs = F.binary_cross_entropy_with_logits(x, y, **options)
        assert_same(*((v.detach(), torch.autograd.grad(v.sum(), x)[0]) for v in (ours, torchs)))
