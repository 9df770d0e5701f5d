"""Promise: finite value and gradient for every finite logit up to 1e4, in every dtype, at every gamma."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from cyclofocal.functional import binary_cyclical_focal_loss, cyclical_focal_loss

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
GAMMAS = [0.0, 1e-3, 0.3, 0.5, 1.0, 2.0, 7.5]
ETAS = [0.0, 0.5, 1.0]


def extreme_logits(dtype):
    """Rows that are certain, wrong, tied, tiny apart, and huge apart: p rounds to 0 and to 1."""
    rows = [[1e4, -1e4, 0], [0, 0, 0], [1e4, 1e4, 1e4], [20, 0, -20], [1e-7, 0, -1e-7], [9984, 1e4, -1e4], [90, 0, 1]]
    return torch.tensor(rows, dtype=torch.float64).repeat_interleave(3, 0).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_finite_everywhere(dtype, gamma):
    for eta, smoothing, soft in itertools.product(ETAS, (0.0, 0.1), (False, True)):
        logits = extreme_logits(dtype)
        index = torch.arange(21) % 3
        target = F.one_hot(index, 3).to(dtype) * 0.8 + 0.1 if soft else index
        options = {"eta": eta, "gamma_pos": gamma, "gamma_neg": gamma, "label_smoothing": smoothing}
        for reduction in ("mean", "sum"):
            loss = cyclical_focal_loss(logits, target, reduction=reduction, **options)
            (gradient,) = torch.autograd.grad(loss, logits)
            assert loss.isfinite(), options
            assert gradient.isfinite().all(), options
        for margin in (0.0, 0.05):
            y = F.one_hot(index, 3)
            loss = binary_cyclical_focal_loss(logits, y, probability_margin=margin, **options)
            (gradient,) = torch.autograd.grad(loss, logits)
            assert loss.isfinite(), options
            assert gradient.isfinite().all(), options


def test_a_confident_loss_does_not_underflow_in_half_precision():
    logits = torch.tensor([[12.0, 0.0]], dtype=torch.float16)
    loss = cyclical_focal_loss(logits, torch.tensor([0]), eta=0.0, gamma_pos=1.0)
    assert loss.item() == pytest.approx(3.8e-11, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss_fn", [cyclical_focal_loss, binary_cyclical_focal_loss])
def test_autocast_computes_in_float32(dtype, loss_fn):
    layer, x = torch.nn.Linear(8, 5), torch.randn(4, 8)
    target = torch.rand(4, 5)
    with torch.autocast("cpu", dtype=dtype):
        logits = layer(x)
        loss = loss_fn(logits, target, eta=0.5, label_smoothing=0.1)
    assert logits.dtype == dtype
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_fn(logits.float(), target, eta=0.5, label_smoothing=0.1))


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_masked_logits_without_smoothing_are_absent_classes(eta, gamma):
    logits = torch.randn(6, 5, dtype=torch.float64)
    logits[:, 3] = -torch.inf
    logits.requires_grad_()
    options = {"eta": eta, "gamma_pos": gamma, "gamma_neg": gamma}
    index = torch.tensor([0, 1, 2, 4, 0, 1])
    loss = cyclical_focal_loss(logits, index, **options)
    (gradient,) = torch.autograd.grad(loss, logits)
    present = torch.tensor([0, 1, 2, 4])
    without = logits.detach()[:, present].requires_grad_()
    expected = cyclical_focal_loss(without, torch.tensor([0, 1, 2, 3, 0, 1]), **options)
    (expected_gradient,) = torch.autograd.grad(expected, without)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient[:, present], expected_gradient)
    assert (gradient[:, 3] == 0).all()


@pytest.mark.parametrize(("eta", "finite"), [(0.0, True), (0.5, False), (1.0, False)])
def test_masked_logits_with_smoothing_give_infinite_loss(eta, finite):
    logits = torch.tensor([[1.0, 0.5, -torch.inf]], dtype=torch.float64, requires_grad=True)
    loss = cyclical_focal_loss(logits, torch.tensor([0]), eta=eta, label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() if finite else loss == torch.inf
    assert gradient.isfinite().all()
    assert gradient[0, 2].item() == pytest.approx(-eta * 0.1 / 3)
