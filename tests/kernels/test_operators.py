"""Promise: one operator per family, the same on every backend, with a gradient that nothing can spoil."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from cyclofocal import kernels
from cyclofocal.arguments import SigmoidSettings, SoftmaxSettings
from cyclofocal.functional import binary_cyclical_focal_loss, cyclical_focal_loss
from cyclofocal.kernels import operators

X, T = torch.randn(6, 5, 3), torch.randint(5, (6, 3))
SOFT = torch.softmax(torch.randn(6, 5, 3), 1)
WEIGHT = torch.rand(5)


def by_equation(logits, target, weight, eta, gammas, ignore_index, smoothing, reduction):
    settings = SoftmaxSettings(*gammas, ignore_index, smoothing)
    target = target.to(logits.dtype) if target.is_floating_point() else target
    weight = None if weight is None else weight.to(logits.dtype)
    return operators.SOFTMAX.equation(logits, target, weight, eta, settings, reduction)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (4, 1, 2), (2, 7, 3, 5), (300, 1), (3, 700)], ids=str)
def test_softmax_is_the_equation_in_value_and_gradient(backend, dtype, soft, shape):
    """The error is at most that of the equation in the computed dtype, plus a small tolerance."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    logits = (3 * torch.randn(shape, dtype=torch.float64)).to(dtype)
    target = torch.rand(shape).to(dtype) if soft else torch.randint(shape[1], shape[:1] + shape[2:])
    weight = torch.rand(shape[1], dtype=compute)
    little = {torch.float64: 1e-13, torch.float32: 4e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    for eta, gammas, smoothing, reduction, weighted in itertools.product(
        (0.0, 0.4), ((2.0, 2.0, 3.0), (0.5, 1.3, 2.0)), (0.0, 0.1), ("mean", "none"), (False, True)
    ):
        w, ignore_index = (weight if weighted else None), (-100 if soft or reduction == "none" else 0)
        results = []
        for x, loss_fn in (
            (logits.clone(), None),
            (logits.to(compute), by_equation),
            (logits.double(), by_equation),
        ):
            x.requires_grad_()
            if loss_fn is None:
                gamma = dict(zip(("gamma_pos", "gamma_neg", "gamma_hc"), gammas, strict=True))
                value = cyclical_focal_loss(
                    x, target, w, eta=eta, **gamma, ignore_index=ignore_index, label_smoothing=smoothing,
                    reduction=reduction,
                )  # fmt: skip
            else:
                value = loss_fn(x, target, w, eta, gammas, ignore_index, smoothing, reduction)
            (gradient,) = torch.autograd.grad(value.sum(), x)
            results.append((value.detach().double(), gradient.double()))
        for fused, plain, truth in zip(*results, strict=True):
            if not truth.isnan().any():
                worst = (plain - truth).abs().max() + little * truth.abs().max()
                assert (fused - truth).abs().max() <= worst + 1e-300


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_sigmoid_is_the_equation_in_value_and_gradient(backend, reduction, margin):
    x, y = 3 * torch.randn(4, 3, 5, dtype=torch.float64), torch.rand(4, 3, 5, dtype=torch.float64)
    shapes = [None, (5,), (4, 3, 5), (3, 1), (1,)]
    for w, pw, alpha, gammas in itertools.product(shapes, shapes, (None, 0.25), ((2.0, 2.0, 3.0), (0.5, 1.3, 2.0))):
        weight, pos_weight = (None if s is None else torch.rand(s, dtype=torch.float64) for s in (w, pw))
        settings = SigmoidSettings(*gammas, alpha, margin, 0.1)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        value = operators.loss(operators.SIGMOID, (ours, y, weight, pos_weight), 0.4, settings, reduction)
        expected = operators.SIGMOID.equation(theirs, y, weight, pos_weight, 0.4, settings, reduction)
        torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-13)
        cotangent = torch.randn(value.shape, dtype=torch.float64)
        for got, wanted in zip(
            torch.autograd.grad(value, ours, cotangent), torch.autograd.grad(expected, theirs, cotangent), strict=True
        ):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


CALLS = {
    "usual": lambda x: cyclical_focal_loss(x, T, eta=torch.tensor(0.4), label_smoothing=0.1),
    "softmax": lambda x: cyclical_focal_loss(x, T, WEIGHT, eta=torch.tensor(0.4), label_smoothing=0.1),
    "soft": lambda x: cyclical_focal_loss(x, SOFT, eta=0.4, reduction="none").mean(),
    "sigmoid": lambda x: binary_cyclical_focal_loss(x, SOFT, eta=0.4, alpha=0.3),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_second_backward_gives_the_same_gradient_and_no_alias(backend, call):
    x = X.clone().requires_grad_()
    value = call(x)
    (3 * value).backward(retain_graph=True)
    first = x.grad
    before = first.clone()
    x.grad = None
    value.backward(retain_graph=True)
    torch.testing.assert_close(3 * x.grad, before)
    value.backward()
    torch.testing.assert_close(x.grad, 2 * before / 3)
    torch.testing.assert_close(first, before)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_scaled_and_shared_gradients(backend, call):
    x = X.clone().requires_grad_()
    (call(x) * 1024 + call(2 * x)).backward()
    (a,) = torch.autograd.grad(call(y := X.clone().requires_grad_()), y)
    (b,) = torch.autograd.grad(call(z := (2 * X).requires_grad_()), z)
    torch.testing.assert_close(x.grad, 1024 * a + 2 * b)


@pytest.mark.parametrize("name", ["softmax", "soft", "sigmoid"])
def test_opcheck(backend, name):
    gammas = (2.0, 2.0, 3.0)
    for x, with_grad in ((X.clone().requires_grad_(), True), (X.clone(), False)):
        eta = torch.tensor(0.4)
        if name == "sigmoid":
            call = (x, SOFT, None, None, eta, *gammas, None, 0.05, 0.1, "mean", with_grad)
            operator = torch.ops.cyclofocal.sigmoid.default
        else:
            target = SOFT if name == "soft" else T
            call = (x, target, WEIGHT, eta, *gammas, -100, 0.1, "none", with_grad)
            operator = torch.ops.cyclofocal.softmax.default
        torch.library.opcheck(operator, call)


def test_channels_last_needs_no_copy_and_keeps_its_layout(backend):
    x = torch.randn(2, 5, 4, 3).to(memory_format=torch.channels_last).requires_grad_()
    y = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    target = torch.randint(5, (2, 4, 3))
    for z in (x, y):
        cyclical_focal_loss(z, target, eta=0.4, label_smoothing=0.1).backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_an_unreadable_index_out_of_range_gives_nan_in_its_row(backend):
    """This holds in compiled graphs and on accelerators, where reading values would stall the device."""
    x = torch.randn(4, 5)
    target = torch.tensor([0, 7, -3, -100])
    call = (None, torch.tensor(0.4), 2.0, 2.0, 3.0, -100, 0.1, "none", True)
    value, gradient = torch.ops.cyclofocal.softmax(x, target, *call)
    assert value.isnan().tolist() == [False, True, True, False]
    assert gradient.isnan().all(1).tolist() == [False, True, True, False]
    assert value[3] == 0
    assert (gradient[3] == 0).all()


def test_a_masked_class_stays_finite_next_to_a_row_of_nan(backend):
    x = torch.tensor([[torch.nan, 1.0, 2.0], [0.0, -torch.inf, 1.0]]).requires_grad_()
    loss = cyclical_focal_loss(x, torch.tensor([0, 0]), eta=0.0, label_smoothing=0.1, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert loss.isnan().tolist() == [True, False]
    assert gradient.isnan().all(1).tolist() == [True, False]


@pytest.mark.parametrize("gamma", [1e-9, 1e-45, 5e-324])
def test_a_tiny_exponent_is_nearly_none(backend, gamma):
    gammas = dict.fromkeys(("gamma_pos", "gamma_neg", "gamma_hc"), gamma)
    loss = cyclical_focal_loss(X, T, eta=0.4, label_smoothing=0.1, **gammas)
    torch.testing.assert_close(loss, F.cross_entropy(X, T, label_smoothing=0.1))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("call", ["softmax", "sigmoid"])
def test_the_default_device_is_not_that_of_the_loss(backend, call, reduction):
    """The kernel would write to memory of another device."""
    loss_fn, target = (cyclical_focal_loss, T) if call == "softmax" else (binary_cyclical_focal_loss, SOFT)
    expected = loss_fn(X, target, eta=0.4, reduction=reduction)
    with torch.device("meta"):
        torch.testing.assert_close(loss_fn(X, target, eta=0.4, reduction=reduction), expected)


def test_autocast_reads_half_precision_as_it_is(backend):
    x = X.to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = CALLS["softmax"](x)
    value.backward()
    assert value.dtype == torch.float32
    assert x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("call", ["softmax", "sigmoid"])
def test_a_float16_gradient_does_not_underflow(backend, call, compiled):
    """The gradient of a large batch's mean is below 6e-8 before GradScaler's factor is applied."""
    torch._dynamo.reset()
    x = torch.zeros(40_000, 5, dtype=torch.float16).requires_grad_()
    target = torch.zeros(40_000, dtype=torch.long) if call == "softmax" else torch.zeros(40_000, 5)
    loss_fn = cyclical_focal_loss if call == "softmax" else binary_cyclical_focal_loss
    loss_fn = torch.compile(loss_fn, backend="aot_eager", fullgraph=True) if compiled else loss_fn
    (gradient,) = torch.autograd.grad(loss_fn(x, target, eta=0.0, gamma_pos=8.0, gamma_neg=8.0) * 2.0**16, x)
    wide = x.detach().float().requires_grad_()
    (truth,) = torch.autograd.grad(loss_fn(wide, target, eta=0.0, gamma_pos=8.0, gamma_neg=8.0) * 2.0**16, wide)
    assert gradient.dtype == torch.float16
    torch.testing.assert_close(gradient.float(), truth, rtol=2e-3, atol=1e-7)


def test_compiled_with_every_argument(backend):
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def both(x, y):
        a = cyclical_focal_loss(x, T, WEIGHT, eta=0.4, ignore_index=2, label_smoothing=0.1, reduction="none")
        b = binary_cyclical_focal_loss(y, SOFT, WEIGHT.view(5, 1), eta=0.2, alpha=0.3, pos_weight=WEIGHT[:3])
        return a.square().sum() + b

    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    compiled = torch.autograd.grad(both(x, y), (x, y))
    eager = torch.autograd.grad(both._torchdynamo_orig_callable(x, y), (x, y))  # type: ignore[attr-defined]
    for got, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", [(3, 7, 50), (90, 7)], ids=str)
def test_chunks_of_large_inputs_do_not_change_the_gradient(monkeypatch, shape, soft):
    from cyclofocal.kernels import plain

    x = torch.randn(shape, dtype=torch.float64)
    target = x.flip(0).softmax(1) if soft else torch.randint(7, shape[:1] + shape[2:])
    call = (None, 0.4, SoftmaxSettings(2.0, 2.0, 3.0, -100 if soft else 3, 0.1), "mean")
    whole = plain.softmax(x, target, *call, with_grad=True)
    for elements in (8, 100, 400, 800):
        monkeypatch.setitem(plain.CHUNK_ELEMENTS, "cpu", elements)
        for got, expected in zip(plain.softmax(x, target, *call, with_grad=True), whole, strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("gamma_neg", [0.0, 1.3, 2.0])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("chunk", [2**24, 64])
def test_the_plain_version_reads_nothing_back_from_a_device(monkeypatch, chunk, soft, gamma_neg):
    """Tensors of the meta device have nothing that could be read."""
    from cyclofocal.kernels import plain

    monkeypatch.setattr(plain, "CHUNK_ELEMENTS_ELSEWHERE", chunk)
    x, target, weight, eta = (t.to("meta") for t in (X, SOFT if soft else T, WEIGHT, torch.tensor(0.4)))
    for class_weight, reduction in itertools.product((None, weight), ("mean", "none")):
        call = (eta, SoftmaxSettings(2.0, gamma_neg, 3.0, -100, 0.1), reduction)
        value, gradient = plain.softmax(x, target, class_weight, *call, with_grad=True, strict=False)
        assert value.shape == (T.shape if reduction == "none" else ())
        assert gradient.shape == X.shape


def test_describe_and_force(monkeypatch):
    monkeypatch.setattr(kernels, "forced_backend", "")
    assert set(kernels.describe()) == {"cpu", "cuda", "other", "native", "triton"}
    monkeypatch.setattr(kernels, "forced_backend", "plain")
    assert kernels.describe()["cpu"] == "plain"
    monkeypatch.setattr(kernels, "forced_backend", "fast")
    with pytest.raises(ValueError, match="'fast'; it must be native, triton or plain"):
        F.relu(cyclical_focal_loss(X, T, eta=0.5))
    monkeypatch.setattr(kernels, "forced_backend", "native")
    with pytest.raises(RuntimeError, match="cannot serve tensors on mps"):
        kernels.backend("mps")


def test_the_environment_forces_a_backend():
    code = "from cyclofocal import kernels; print(kernels.describe()['cpu'])"
    environment = os.environ | {kernels.FORCE: "plain"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.strip() == "plain"


def test_without_the_native_library_the_plain_version_serves():
    code = (
        "import cyclofocal.kernels.native as native; native.available = lambda: False; native.reason = lambda: 'none';"
        "from cyclofocal import kernels; print(kernels.describe()['cpu'])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "plain"


@pytest.mark.parametrize("call", ["weighted", "soft", "sigmoid", "float16"])
def test_an_eta_that_moves_before_backward_is_the_one_of_forward(backend, call):
    eta, x = torch.tensor(0.3), X.clone().requires_grad_()
    z = x.half() if call == "float16" else x
    if call == "sigmoid":
        value = binary_cyclical_focal_loss(z, SOFT, eta=eta)
    else:
        target, weight = (SOFT, None) if call == "soft" else (T, WEIGHT)
        value = cyclical_focal_loss(z, target, weight, eta=eta)
    first = torch.autograd.grad(value, x, retain_graph=True)[0].clone()
    eta.fill_(1.0)
    torch.testing.assert_close(torch.autograd.grad(value, x, retain_graph=True)[0], first)
    torch.testing.assert_close(torch.autograd.grad(value, x, create_graph=True)[0], first, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("reduction", ["sum", "none", "mean"])
def test_an_empty_batch_may_ignore_a_class(backend, reduction):
    x, target = torch.randn(0, 2, requires_grad=True), torch.zeros(0, dtype=torch.long)
    value = cyclical_focal_loss(x, target, eta=0.3, ignore_index=0, reduction=reduction)
    expected = F.cross_entropy(x, target, ignore_index=0, reduction=reduction)
    torch.testing.assert_close(value, expected, equal_nan=True)
