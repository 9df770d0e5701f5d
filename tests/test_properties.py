"""Promises for every input: symmetries, ignoring is removing, one-hot is an index, gradients of both orders."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from cyclofocal.functional import binary_cyclical_focal_loss, cyclical_focal_loss

settings = st.fixed_dictionaries(
    {
        "eta": st.floats(0, 1),
        "gamma_pos": st.floats(0, 5),
        "gamma_neg": st.floats(0, 5),
        "gamma_hc": st.floats(0, 3.5),
        "label_smoothing": st.floats(0, 1),
    }
)
seeds = st.integers(0, 10_000)


def draw(seed, batch=6, classes=5):
    torch.manual_seed(seed)
    logits = 2 * torch.randn(batch, classes, dtype=torch.float64)
    return logits, torch.randint(classes, (batch,)), torch.rand(classes, dtype=torch.float64)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@given(seeds, settings)
def test_permuting_the_classes_changes_nothing(seed, options):
    logits, target, weight = draw(seed)
    order = torch.randperm(5)
    permuted = cyclical_focal_loss(logits[:, order], order.argsort()[target], weight[order], **options)
    close(permuted, cyclical_focal_loss(logits, target, weight, **options))


@given(seeds, settings)
def test_one_hot_is_an_index(seed, options):
    logits, target, weight = draw(seed)
    one_hot = torch.nn.functional.one_hot(target, 5).double()
    soft = cyclical_focal_loss(logits, one_hot, weight, reduction="none", **options)
    close(soft, cyclical_focal_loss(logits, target, weight, reduction="none", **options))


@given(seeds, settings, st.sampled_from([-100, 255, 2]), st.sampled_from(["mean", "sum"]))
def test_ignoring_is_removing(seed, options, ignore_index, reduction):
    logits, target, weight = draw(seed)
    target = torch.where(torch.arange(6) % 3 == 0, ignore_index, target)
    counted = target != ignore_index
    ignored = cyclical_focal_loss(logits, target, weight, ignore_index=ignore_index, reduction=reduction, **options)
    removed = cyclical_focal_loss(logits[counted], target[counted], weight, reduction=reduction, **options)
    torch.testing.assert_close(ignored, removed, rtol=1e-10, atol=1e-10, equal_nan=True)


@given(seeds, settings)
def test_the_order_of_samples_and_pixels_does_not_matter(seed, options):
    logits, target, weight = draw(seed)
    rows = cyclical_focal_loss(logits, target, weight, reduction="none", **options)
    order = torch.randperm(6)
    close(cyclical_focal_loss(logits[order], target[order], weight, reduction="none", **options), rows[order])
    image = logits.view(2, 3, 5).movedim(2, 1)  # (2, 5, 3): the same rows as pixels
    close(cyclical_focal_loss(image, target.view(2, 3), weight, reduction="none", **options), rows.view(2, 3))


@given(seeds, settings)
def test_adding_a_constant_to_the_logits_changes_nothing(seed, options):
    logits, target, weight = draw(seed)
    close(
        cyclical_focal_loss(logits + 7, target, weight, **options),
        cyclical_focal_loss(logits, target, weight, **options),
    )


@given(seeds, settings)
def test_a_soft_target_is_the_expectation_over_its_classes(seed, options):
    logits, _, weight = draw(seed)
    soft = torch.softmax(torch.randn(6, 5, dtype=torch.float64), 1)
    expected = sum(
        soft[:, c] * cyclical_focal_loss(logits, torch.full((6,), c), weight, reduction="none", **options)
        for c in range(5)
    )
    close(cyclical_focal_loss(logits, soft, weight, reduction="none", **options), expected)


@given(seeds, settings)
def test_sigmoid_sides_mirror_each_other(seed, options):
    logits, _, _ = draw(seed)
    target = torch.rand(6, 5, dtype=torch.float64)
    mirrored = options | {"gamma_pos": options["gamma_neg"], "gamma_neg": options["gamma_pos"]}
    close(
        binary_cyclical_focal_loss(-logits, 1 - target, alpha=0.2, **mirrored),
        binary_cyclical_focal_loss(logits, target, alpha=0.8, **options),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss_fn", [cyclical_focal_loss, binary_cyclical_focal_loss])
def test_every_dtype_computes_in_float32(dtype, loss_fn):
    logits = torch.randn(6, 5).to(dtype).requires_grad_()
    target = torch.rand(6, 5).to(dtype)
    loss = loss_fn(logits, target, eta=0.4, label_smoothing=0.1)
    loss.backward()
    assert loss.dtype == torch.float32
    exact = logits.detach().double().requires_grad_()
    truth = loss_fn(exact, target.double(), eta=0.4, label_smoothing=0.1)
    truth.backward()
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("soft", [False, True])
def test_first_and_second_derivatives(eta, gamma, soft):
    logits = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    target = torch.rand(3, 4, 2, dtype=torch.float64) if soft else torch.randint(4, (3, 2))
    weight = torch.rand(4, dtype=torch.float64)

    def softmax(x):
        return cyclical_focal_loss(x, target, weight, eta=eta, gamma_pos=gamma, gamma_neg=gamma, label_smoothing=0.1)

    def sigmoid(x):
        y = torch.linspace(0, 1, 24, dtype=torch.float64).view(3, 4, 2)
        return binary_cyclical_focal_loss(x, y, eta=eta, gamma_pos=gamma, gamma_neg=gamma, probability_margin=0.05)

    for loss_fn in (softmax, sigmoid):
        assert gradcheck(loss_fn, logits)
        assert gradgradcheck(loss_fn, logits)
