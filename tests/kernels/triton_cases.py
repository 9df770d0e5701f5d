"""Cases that test_triton.py runs in a separate process, on a GPU or in Triton's interpreter."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from cyclofocal import kernels
from cyclofocal.arguments import SigmoidSettings, SoftmaxSettings
from cyclofocal.functional import binary_cyclical_focal_loss, cyclical_focal_loss
from cyclofocal.kernels import operators, triton_backend, triton_terms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Of the largest number; the interpreter rounds to bfloat16 towards zero, a GPU's exponential has 2 ulp.
LITTLE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 5e-4}
REDUCTIONS = ("mean", "none", "sum")
GAMMAS = ((2.0, 2.0, 3.0), (0.5, 1.3, 2.5), (0.0, 0.0, 0.0), (1.0, 4.0, 0.5), (3.0, 0.7, 5.0))


@triton.jit
def loop(count):
    for _ in range(count):
        pass


if DEVICE == "cpu":
    try:
        loop[(1,)](2)
    except InterpreterError as error:  # of triton 3.2 to 3.6, with numpy 2.4 or later
        reason = f"the interpreter of triton {triton.__version__} does not work with numpy {np.__version__}: {error}"
        pytest.skip(reason, allow_module_level=True)


@pytest.fixture(autouse=True)
def _device():
    with torch.device(DEVICE):
        yield


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Make blocks so small that few classes need several: the interpreter is slow."""
    monkeypatch.setattr(triton_backend, "THREADS", 1)
    monkeypatch.setattr(triton_backend, "LOOP", 16)


def compute(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def cast(value, dtype):
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def by_equation(family, x, tensors, eta, *settings_and_reduction, dtype=torch.float64):
    *settings, reduction = settings_and_reduction
    x = x.detach().to(dtype).requires_grad_()
    value = family.equation(x, *(cast(t, dtype) for t in tensors), eta, family.settings(*settings), reduction)
    return value.detach().double(), torch.autograd.grad(value.sum(), x)[0].double()


def assert_right(family, x, tensors, *call):
    """Check that the error is at most that of the equation in the computed dtype, plus a small tolerance."""
    fused = {operators.SOFTMAX: triton_backend.softmax, operators.SIGMOID: triton_backend.sigmoid}[family]
    eta, *settings, reduction = call
    ours = fused(x, *tensors, eta, family.settings(*settings), reduction, with_grad=True)
    assert ours[0].dtype == compute(x.dtype)
    assert ours[1].dtype == x.dtype
    assert ours[1].shape == x.shape
    truths = by_equation(family, x, tensors, *call)
    plains = by_equation(family, x, tensors, *call, dtype=compute(x.dtype))
    littles = (LITTLE[compute(x.dtype)], LITTLE[x.dtype])
    for mine, truth, plain, little in zip(ours, truths, plains, littles, strict=True):
        assert mine.shape == truth.shape
        gap, allowed = (mine.double() - truth).abs().max(), (plain - truth).abs().max() + little * truth.abs().max()
        assert gap <= allowed + 1e-300, (call, gap, allowed)
    if reduction == "mean":
        alone = fused(x, *tensors, eta, family.settings(*settings), reduction, with_grad=False)
        assert alone[1] is None
        assert torch.equal(alone[0], ours[0])


@triton.jit
def elementary(x, y, exponent: tl.constexpr, whole: tl.constexpr, count: tl.constexpr):
    place = tl.arange(0, count)
    v = tl.load(x + place)
    value, slope = triton_terms.power_and_slope(v, tl.full((), exponent, v.dtype), whole)
    tl.store(y + place, triton_terms.one_minus_exp(-v))
    tl.store(y + count + place, triton_terms.log1p(v))
    tl.store(y + 2 * count + place, value)
    tl.store(y + 3 * count + place, slope)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_elementary_functions_cancel_nowhere(dtype):
    x = torch.logspace(-4, 0, 128, dtype=dtype)
    v = x.double()
    for exponent, whole in ((0.0, 0), (1.0, 1), (3.0, 3), (8.0, 8), (0.5, -1), (1.5, -1)):
        y = torch.empty(4, 128, dtype=dtype)
        elementary[(1,)](x, y, exponent, whole, 128)
        truth = torch.stack([-torch.expm1(-v), torch.log1p(v), v**exponent, exponent * v ** (exponent - 1)])
        ulps = 5 if whole >= 0 else 5 + 20 * exponent  # the rounding of the logarithm grows with it and the exponent
        assert ((y.double() - truth).abs() <= ulps * torch.finfo(dtype).eps * truth.abs()).all()


WHOLE, IN_BLOCKS = [(6, 5), (4, 1, 2), (2, 7, 3, 5)], [(2, 40), (1, 9, 3)]
CASES = [(torch.float32, shape) for shape in WHOLE + IN_BLOCKS]
CASES += [(torch.float64, (6, 5)), (torch.float64, (2, 40)), (torch.bfloat16, (6, 5)), (torch.float16, (1, 9, 3))]


@pytest.mark.parametrize("soft", [False, True], ids=["index", "probabilities"])
@pytest.mark.parametrize(("dtype", "shape"), CASES, ids=str)
def test_softmax_is_the_equation(dtype, soft, shape, monkeypatch):
    if shape in WHOLE:
        monkeypatch.setattr(triton_backend, "THREADS", 512)
    x = (3 * torch.randn(shape, dtype=torch.float64)).to(dtype)
    target = torch.rand(shape, dtype=compute(dtype)) if soft else torch.randint(shape[1], shape[:1] + shape[2:])
    weight = torch.rand(shape[1], dtype=compute(dtype)) + 0.1
    for k, (eta, smoothing) in enumerate(((0.4, 0.1), (0.0, 0.2), (1.0, 0.0))):
        settings = (*GAMMAS[(k + len(shape) + dtype.itemsize) % 5], 0 if k == 0 < shape[1] - 1 else -100, smoothing)
        assert_right(operators.SOFTMAX, x, (target, (None, weight)[(k + soft) % 2]), eta, *settings, REDUCTIONS[k])


@pytest.mark.parametrize("gammas", GAMMAS, ids=str)
def test_softmax_at_every_exponent(gammas):
    x = 3 * torch.randn(5, 9)
    for target, eta in ((torch.randint(9, (5,)), 0.3), (torch.rand(5, 9), 0.3), (torch.rand(5, 9), 0.0)):
        assert_right(operators.SOFTMAX, x, (target, None), eta, *gammas, -100, 0.2, "none")


def softmax(x, target, weight=None, eta=0.4, gammas=(2.0, 2.0, 3.0), ignore_index=-100, e=0.1, reduction="none"):
    settings = SoftmaxSettings(*gammas, ignore_index, e)
    return triton_backend.softmax(x, target, weight, eta, settings, reduction, with_grad=True)


def one_hot(target, x):
    return F.one_hot(target, x.shape[1]).movedim(-1, 1).to(x.dtype).contiguous()


@pytest.mark.parametrize("shape", [(2, 40), (2, 5, 3)], ids=str)
def test_masked_classes(shape):
    x, target = torch.randn(shape), torch.randint(shape[1] - 2, shape[:1] + shape[2:])
    x[:, -2:] = -math.inf
    loss, grad = softmax(x, target, e=0.0)
    without = softmax(x[:, :-2].contiguous(), target, e=0.0)
    torch.testing.assert_close((loss, grad[:, :-2]), without)
    assert (grad[:, -2:] == 0).all()
    torch.testing.assert_close(softmax(x, one_hot(target, x), e=0.0), (loss, grad), rtol=1e-4, atol=1e-6)
    for gamma_neg, kind in ((0.0, target), (0.5, target), (2.0, one_hot(target, x))):
        loss, grad = softmax(x, kind, gammas=(2.0, gamma_neg, 3.0))
        assert (loss == math.inf).all()
        assert grad.isfinite().all()
        flat = 1.0 if gamma_neg == 0 else 0.4
        torch.testing.assert_close(grad[:, -2:], torch.full_like(grad[:, -2:], -0.1 / shape[1] * flat))
    loss, grad = softmax(x, target, eta=0.0)
    assert loss.isfinite().all()
    assert (grad[:, -2:] == 0).all()

    x[:, 0], target[:] = -math.inf, 0  # the target itself; in blocks the first one may be masked altogether
    for kind in (target, one_hot(target, x)):
        loss, grad = softmax(x, kind, e=0.0)
        assert (loss == math.inf).all()
        torch.testing.assert_close(grad, x.softmax(1) - one_hot(target, x))


def test_a_block_of_masked_classes_and_one_of_the_lowest_number():
    for masked in (-math.inf, torch.finfo(torch.float32).min):
        x, target = torch.randn(3, 40), torch.tensor([39, 32, 35])
        x[:, :32] = masked
        loss, grad = softmax(x, target, eta=0.0)
        assert loss.isfinite().all()
        truth = by_equation(operators.SOFTMAX, x, (target, None), 0.0, 2.0, 2.0, 3.0, -100, 0.1, "none")
        torch.testing.assert_close((loss.double(), grad.double()), truth, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(softmax(torch.full_like(x, masked), target), softmax(torch.zeros_like(x), target))
    x[:, :32], target[:] = -math.inf, 5
    loss, grad = softmax(x, target, e=0.0)
    assert (loss == math.inf).all()
    torch.testing.assert_close(grad, x.softmax(1) - one_hot(target, x))


@pytest.mark.parametrize("shape", [(3, 40), (3, 5, 3)], ids=str)
def test_bad_logits_spoil_their_row_only(shape):
    x, target = torch.randn(shape), torch.randint(shape[1], shape[:1] + shape[2:])
    for bad in (math.nan, math.inf, "all masked"):
        x[1, slice(None) if bad == "all masked" else 3] = -math.inf if bad == "all masked" else bad
        for result in softmax(x, target if bad == math.inf else one_hot(target, x)) + softmax(x, target):
            assert result[1].isnan().all()
            assert result[[0, 2]].isfinite().all()


@pytest.mark.parametrize("shape", [(5, 12), (5, 5, 3)], ids=str)
def test_ignored_rows_and_indices_out_of_range(shape):
    x, target, weight = torch.randn(shape), torch.randint(3, shape[:1] + shape[2:]), torch.rand(shape[1])
    target[1], x[1] = 3, math.nan  # ignored, although it is a class
    target[2], target[3] = shape[1], -(2**40)
    for w, reduction in ((None, "none"), (weight, "none"), (weight, "mean"), (None, "sum")):
        loss, grad = softmax(x, target, w, ignore_index=3, reduction=reduction)
        assert (grad[1] == 0).all()
        assert grad[2:4].isnan().all()
        assert grad[4:].isfinite().all()
        if reduction == "none":
            assert (loss[1] == 0).all()
            assert loss[2:4].isnan().all()
        else:
            assert loss.isnan()
    loss, grad = softmax(x, torch.full_like(target, 3), ignore_index=3, reduction="mean")
    assert loss.isnan()
    assert (grad == 0).all()


def test_saturation_is_finite_and_exact():
    x = torch.zeros(4, 5)
    x[0, 2], x[1, 3], x[2, 2], x[2, 3], x[3] = 1e4, 1e4, 40.0, -1e4, 1e4
    target = torch.full((4,), 2)
    for gamma, e, kind in itertools.product((0.0, 0.3, 2.0), (0.0, 0.1), (target, one_hot(target, x))):
        loss, grad = softmax(x, kind, e=e, gammas=(gamma, gamma, 3.0))
        assert loss.isfinite().all()
        assert grad.isfinite().all()
        if e == 0:
            assert loss[0] == 0
            assert loss[1] == 1e4  # the weight is 1 at p = 0


def test_a_moving_maximum_and_a_common_offset():
    x, target = torch.randn(3, 40), torch.randint(40, (3,))
    x[0, 33], x[1], x[2] = 50.0, torch.linspace(-80, 80, 40), x[2] + 4096
    for kind, gamma_neg in ((target, 2.0), (torch.rand(3, 40), 2.0)):
        assert_right(operators.SOFTMAX, x, (kind, None), 0.4, 2.0, gamma_neg, 3.0, -100, 0.1, "none")
    x[0], x[1], x[2] = torch.linspace(-1, 1, 40), torch.linspace(1, -1, 40), torch.linspace(-3, 3, 40)
    for gamma_neg in (1.0, 0.7):  # and label smoothing that leaves hardly anything to the true class
        assert_right(operators.SOFTMAX, x, (target, torch.rand(40)), 0.0, 2.0, gamma_neg, 3.0, -100, 0.97, "none")


@pytest.mark.parametrize("soft", [False, True])
def test_an_empty_batch(soft):
    for shape in ((0, 4), (0, 4, 3), (2, 4, 0)):
        x = torch.randn(shape)
        target = torch.rand(shape) if soft else torch.zeros(shape[:1] + shape[2:], dtype=torch.long)
        assert softmax(x, target, reduction="mean")[0].isnan()
        assert softmax(x, target, reduction="sum")[0] == 0
        loss, grad = softmax(x, target)
        assert loss.shape == shape[:1] + shape[2:]
        assert grad.shape == shape


@pytest.mark.parametrize("shape", [(6, 12), (2, 5, 40)], ids=str)
def test_offsets_of_64_bits(shape, monkeypatch):
    monkeypatch.setattr(triton_backend, "THREADS", 512)
    monkeypatch.setattr(triton_backend, "TILE", 32)
    x, target = torch.randn(shape), torch.randint(shape[1], shape[:1] + shape[2:])
    calls = [(softmax, (x, target)), (softmax, (x, torch.rand(shape))), (sigmoid, (x, torch.rand(shape)))]
    narrow = [function(*arguments) for function, arguments in calls]
    monkeypatch.setattr(triton_backend, "WIDE_FROM", 0)
    for (function, arguments), expected in zip(calls, narrow, strict=True):
        for got, same in zip(function(*arguments), expected, strict=True):
            assert torch.equal(got, same)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs the memory and the speed of a GPU")
@pytest.mark.parametrize("shape", [(2**31 // 1000 + 9, 1000), (3, 100, 2**23)], ids=str)
def test_more_logits_than_32_bits_count(shape):
    x = torch.randn(shape[-1], dtype=torch.bfloat16).expand(shape).contiguous()
    target = torch.randint(shape[1], shape[:1] + shape[2:])
    loss, grad = softmax(x, target)
    few = softmax(x[-1:].contiguous(), target[-1:])
    assert torch.equal(loss[-1:], few[0])
    assert torch.equal(grad[-1:], few[1])


def test_nothing_is_read_back_from_the_device(monkeypatch):
    """Reading a value would stall the device: of eta, of the targets, of the mean's denominator."""

    def refuse(*_):
        raise AssertionError("a value was read")

    x, target, soft, weight = torch.randn(2, 5, 3), torch.randint(5, (2, 3)), torch.rand(2, 5, 3), torch.rand(5)
    eta = torch.tensor(0.25)
    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy"):
            patched.setattr(torch.Tensor, name, refuse)
        for reduction in REDUCTIONS:
            for kind, w in ((target, None), (target, weight), (soft, weight)):
                softmax(x, kind, w, eta, reduction=reduction)
            sigmoid(x, soft, eta=eta, reduction=reduction)


def test_eta_as_a_tensor_is_eta_as_a_number():
    x, target = torch.randn(4, 5), torch.randint(5, (4,))
    for dtype, device in itertools.product((torch.float32, torch.float64, torch.bfloat16), {"cpu", DEVICE}):
        eta = torch.tensor(0.25, dtype=dtype, device=device)
        for function, y in ((softmax, target), (softmax, torch.rand(4, 5)), (sigmoid, torch.rand(4, 5))):
            for got, same in zip(function(x, y, eta=eta), function(x, y, eta=0.25), strict=True):
                assert torch.equal(got, same)


def sigmoid(x, y, eta=0.4, gammas=(2.0, 2.0, 3.0), margin=0.0, e=0.1, reduction="none"):
    settings = SigmoidSettings(*gammas, None, margin, e)
    return triton_backend.sigmoid(x, y, None, None, eta, settings, reduction, with_grad=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (3, 500)], ids=str)
def test_sigmoid_is_the_equation(dtype, shape):
    x = (3 * torch.randn(shape, dtype=torch.float64)).to(dtype)
    y, weight = (torch.rand(shape, dtype=compute(dtype)) for _ in range(2))
    for k, (weighted, pos) in enumerate(itertools.product((False, True), ("none", "last", "full"))):
        pos_weight = None if pos == "none" or not shape else torch.rand(shape[-1:] if pos == "last" else shape).to(y)
        settings = ((None, 0.25)[k % 2], (0.0, 0.05)[k // 2 % 2], (0.0, 0.2)[k // 3 % 2])
        settings, reduction = SigmoidSettings(*GAMMAS[k % 5], *settings), REDUCTIONS[k % 3]
        tensors = (y, weight if weighted else None, pos_weight)
        if x.numel():
            assert_right(operators.SIGMOID, x, tensors, 0.4, *settings, reduction)
        else:
            loss, grad = triton_backend.sigmoid(x, *tensors, 0.4, settings, reduction, with_grad=True)
            assert grad.shape == shape
            assert {"mean": loss.isnan().all(), "sum": loss.sum() == 0, "none": loss.numel() == 0}[reduction]


def test_sigmoid_saturation():
    x = torch.tensor([-1e4, -200.0, -30.0, 0.0, 30.0, 200.0, 1e4])
    for y, gamma, eta, margin in itertools.product((0.0, 1.0, 0.5), (0.3, 2.0), (0.0, 0.5), (0.0, 0.05)):
        loss, grad = sigmoid(x, torch.full_like(x, y), eta, (gamma, gamma, 3.0), margin, 0.0)
        assert loss.isfinite().all(), (y, gamma, eta, margin)
        assert grad.isfinite().all(), (y, gamma, eta, margin)
    for margin in (0.0, 0.05):
        loss, grad = sigmoid(torch.tensor([-math.inf, math.inf]), torch.tensor([0.0, 1.0]), margin=margin, e=0.0)
        assert (loss == 0).all()
        assert (grad == 0).all()
        loss, grad = sigmoid(torch.full((3,), math.nan), torch.tensor([0.0, 0.5, 1.0]), margin=margin, e=0.0)
        assert loss.isnan().all()
        assert grad.isnan().all()


def test_the_public_functions_are_served(monkeypatch):
    monkeypatch.setattr(kernels, "forced_backend", "triton")
    assert kernels.describe()[DEVICE] == "triton"
    target, soft = torch.randint(5, (2, 4, 3)), torch.rand(2, 5, 4, 3)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 5, 4, 3).to(memory_format=layout).requires_grad_()
        for loss_fn, y in ((cyclical_focal_loss, target), (binary_cyclical_focal_loss, soft)):
            results = []
            for name in ("triton", "plain"):
                monkeypatch.setattr(kernels, "forced_backend", name)
                value = loss_fn(x, y, eta=torch.tensor(0.4), label_smoothing=0.1)
                results.append((value.detach(), *torch.autograd.grad(3 * value, x)))
            torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", [1.0, 0.5, 0.0, math.nan])
def test_the_gradient_is_scaled_in_place(dtype, factor):
    grads = [torch.randn(2100).to(dtype), torch.randn(2, 3, 5).to(dtype).movedim(-1, 1), torch.randn(0).to(dtype)]
    for grad in grads:
        expected = grad * torch.tensor(factor, dtype=compute(dtype))
        triton_backend.scale_(grad, torch.tensor(factor, dtype=compute(dtype)))
        torch.testing.assert_close(grad, expected.to(dtype), equal_nan=True, rtol=LITTLE[dtype], atol=0)
