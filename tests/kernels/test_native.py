"""The C++ backend computes the equations: value and gradient, in every dtype, layout and instruction set."""

import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from cyclofocal.arguments import SigmoidSettings, SoftmaxSettings
from cyclofocal.kernels import native

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "available")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
EPSILON = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}
REDUCTIONS = ("mean", "sum", "none")
SETS = range(native.instructions() + 1) if native.available() else ()
PAPER = {"gamma_pos": 2.0, "gamma_neg": 2.0, "gamma_hc": 3.0}


@pytest.fixture(params=SETS, ids=lambda k: native.INSTRUCTIONS[k], autouse=True)
def _instructions(request, monkeypatch):
    monkeypatch.setattr(native, "instructions", lambda: request.param)


def softmax(x, target, weight=None, eta=0.4, ignore_index=-100, e=0.1, reduction="none", with_grad=True, **gammas):
    g = PAPER | gammas
    settings = SoftmaxSettings(*g.values(), ignore_index, e)
    return native.softmax(x, target, weight, eta, settings, reduction, with_grad=with_grad, strict=False)


def softmax_truth(x, target, weight=None, eta=0.4, ignore_index=-100, e=0.1, reduction="none", dtype=None, **gammas):
    """Loss and autograd's gradient of the equation, every class of every row spelt out."""
    gp, gn, gh = (PAPER | gammas).values()
    x = x.detach().to(dtype or torch.float64).requires_grad_()
    classes = x.shape[1]
    w = torch.ones(classes).to(x) if weight is None else weight.to(x)
    w = w[:, None]
    if target.is_floating_point():
        s, live = target.to(x), torch.ones(x.shape[0], x.shape[2]).to(x)
        denominator = live.sum()
    else:
        counts = target != ignore_index
        index = target.where(counts, 0)
        s, live = F.one_hot(index, classes).movedim(-1, 1).to(x), counts.to(x)
        denominator = (w[:, 0][index] * live).sum()
    log_p = x.log_softmax(1)
    p = log_p.exp()
    w_pos = (1 - eta) * (-log_p.expm1()) ** gp + eta * (1 + p) ** gh
    w_neg = (1 - eta) * p**gn + eta
    rows = -(w * (s * (1 - e + e / classes) * w_pos + (1 - s) * (e / classes) * w_neg) * log_p).sum(1) * live
    loss = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / denominator}[reduction]
    return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]


def batch(n, c, s, dtype, kind="index", weighted=False, scale=3.0):
    x = (torch.randn(n, c, s) * scale).to(dtype)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    if kind == "index":
        target = torch.randint(c, (n, s))
        target.view(-1)[1::5] = -100
    else:
        target = torch.rand(n, c, s, dtype=compute).pow(4).softmax(1)
        target[target < 0.3 / c] = 0
    return x, target, (torch.rand(c, dtype=compute) + 0.1) if weighted else None


def agree(found, truth, dtype, scale=1.0):
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), truth, rtol=EPSILON[dtype] * 4, atol=EPSILON[dtype] * scale, equal_nan=True
    )


SHAPES = [(5, c, s) for c, s in itertools.product((1, 2, 3, 17), (1, 7, 100))]
SHAPES += [(0, 3, 1), (0, 3, 7), (1, 1000, 1), (5, 1003, 1), (3, 130, 7), (40, 10, 1), (300, 3, 2), (2, 5, 1040)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_softmax_is_the_equation(dtype, kind):
    for (shape, weighted), e in itertools.product(itertools.product(SHAPES, (False, True)), (0.0, 0.1)):
        x, target, weight = batch(*shape, dtype, kind, weighted)
        for reduction in REDUCTIONS:
            loss, grad = softmax(x, target, weight, e=e, reduction=reduction)
            true_loss, true_grad = softmax_truth(x, target, weight, e=e, reduction=reduction)
            compute = torch.float64 if dtype == torch.float64 else torch.float32
            rows = shape[0] * shape[2] if reduction == "sum" else 1
            agree(loss, true_loss, compute, 8 + rows)
            agree(grad, true_grad, dtype, 0.1 if dtype.itemsize == 2 else 2)
            assert torch.equal(softmax(x, target, weight, e=e, reduction=reduction, with_grad=False)[0], loss) or (
                loss.isnan().all() and shape[0] == 0
            )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_softmax_at_every_exponent(dtype, kind):
    exponents = (0.0, 0.5, 1.0, 2.0, 2.5, 3.0, 4.0, 6.0)
    for gp, gn, gh in zip(exponents, exponents[3:] + exponents[:3], exponents[5:] + exponents[:5], strict=True):
        for (shape, weighted), eta in itertools.product(
            [((6, 200, 1), False), ((6, 200, 1), True), ((3, 5, 20), False), ((3, 5, 20), True)], (0.0, 0.3, 1.0)
        ):
            x, target, weight = batch(*shape, dtype, kind, weighted)
            settings = {"gamma_pos": gp, "gamma_neg": gn, "gamma_hc": gh, "eta": eta, "e": 0.2}
            loss, grad = softmax(x, target, weight, **settings)
            true_loss, true_grad = softmax_truth(x, target, weight, **settings)
            agree(loss, true_loss, dtype, 16)
            agree(grad, true_grad, dtype, 16)


@pytest.mark.parametrize("shape", [(64, 10, 1), (16, 1000, 1), (2, 19, 64), (3, 20011, 1)], ids=str)
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_float32_is_no_worse_than_torch_in_float32(shape, kind):
    for scale, weighted in itertools.product((0.1, 3.0, 30.0), (False, True)):
        x, target, weight = batch(*shape, torch.float32, kind, weighted, scale)
        for eta in (0.0, 0.5):
            ours, truth = softmax(x, target, weight, eta), softmax_truth(x, target, weight, eta)
            plain = softmax_truth(x, target, weight, eta, dtype=torch.float32)
            for mine, right, theirs in zip(ours, truth, plain, strict=True):
                gap = (mine - right).abs().max()
                assert gap <= (theirs - right).abs().max() + 4e-7 * right.abs().max() + 1e-10


@pytest.mark.parametrize("shape", [(9, 11, 1), (9, 300, 1), (2, 4, 50)], ids=str)
def test_gammas_zero_are_cross_entropy(shape):
    for weighted, e, kind in itertools.product((False, True), (0.0, 0.3), ("index", "probabilities")):
        x, target, weight = batch(*shape, torch.float64, kind, weighted)
        zero = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
        for reduction in REDUCTIONS:
            loss, grad = softmax(x, target, weight, e=e, reduction=reduction, **zero)
            y = x.clone().requires_grad_()
            expected = F.cross_entropy(y, target, weight, label_smoothing=e, reduction=reduction)
            expected.sum().backward()
            agree(loss, expected.detach(), torch.float64, 10)
            agree(grad, y.grad, torch.float64, 10)


@pytest.mark.parametrize("shape", [(4, 5, 1), (4, 300, 1), (1, 5, 4)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_saturation_is_finite_and_exact(shape, dtype):
    x = torch.zeros(shape, dtype=dtype).movedim(1, -1).reshape(4, shape[1])
    x[0, 2], x[1, 3], x[2, 2], x[2, 3], x[3] = 1e4, 1e4, 40.0, -1e4, 1e4
    x = x.view(shape[0], shape[2], shape[1]).movedim(-1, 1).contiguous()
    target = torch.full((shape[0], shape[2]), 2)
    for gamma, e, probabilities in itertools.product((0.0, 0.3, 1.0, 2.0, 2.7, 4.0), (0.0, 0.1), (False, True)):
        t = F.one_hot(target, shape[1]).movedim(-1, 1).contiguous() if probabilities else target
        t = t.to(torch.float64 if dtype == torch.float64 else torch.float32) if probabilities else t
        for eta in (0.0, 0.5):
            loss, grad = softmax(x, t, eta=eta, e=e, gamma_pos=gamma, gamma_neg=gamma)
            assert loss.isfinite().all(), (gamma, e, eta)
            assert grad.isfinite().all(), (gamma, e, eta)
            if e == 0:
                assert loss.flatten()[0] == 0
                assert loss.flatten()[1] == x.max()  # the weight is 1 at p = 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("gap", [20.0, 60.0, 100.0, 1000.0, 1e4])
@pytest.mark.parametrize("e", [0.0, 0.1])
def test_a_logit_far_above_all_before_it(gap, e, dtype):
    """Put an outlier late in its row, so that the maximum of the first classes is another."""
    x = torch.randn(3, 1000, 1, dtype=dtype)
    x[:2, 900] += gap
    target = torch.tensor([[900], [5], [900]])  # of the target, of another class, and nowhere
    for gamma_neg in (2.0, 1.5):
        loss, grad = softmax(x, target, e=e, gamma_neg=gamma_neg)
        true_loss, true_grad = softmax_truth(x, target, e=e, gamma_neg=gamma_neg)
        agree(loss, true_loss, dtype)
        agree(grad, true_grad, dtype)


@pytest.mark.parametrize(("classes", "s"), [(5, 1), (400, 1), (5, 4), (5, 40)])
def test_masked_classes(classes, s):
    x, target, _ = batch(4, classes, s, torch.float32)
    target = target.clamp(min=0) % (classes - 2)
    x[:, -2:] = -math.inf
    loss, grad = softmax(x, target, e=0.0)
    true_loss, true_grad = softmax(x[:, :-2].contiguous(), target, e=0.0)
    torch.testing.assert_close(loss, true_loss)
    torch.testing.assert_close(grad[:, :-2], true_grad)
    assert (grad[:, -2:] == 0).all()
    soft = F.one_hot(target, classes).movedim(-1, 1).float().contiguous()
    torch.testing.assert_close(softmax(x, soft, e=0.0), (loss, grad), rtol=1e-4, atol=1e-6)

    for gamma, kind in itertools.product((0.0, 0.5, 2.0, 3.0), (target, soft)):
        loss, grad = softmax(x, kind, e=0.1, gamma_neg=gamma)
        assert (loss == math.inf).all()
        assert grad.isfinite().all()
        at_zero = 1.0 if gamma == 0 else 0.4
        torch.testing.assert_close(grad[:, -2:], torch.full_like(grad[:, -2:], -0.1 / classes * at_zero))
    loss, grad = softmax(x, target, eta=0.0, e=0.1)
    assert loss.isfinite().all()
    assert (grad[:, -2:] == 0).all()

    x[:, 0], target[:] = -math.inf, 0
    soft = F.one_hot(target, classes).movedim(-1, 1).float().contiguous()
    for kind in (target, soft):
        loss, grad = softmax(x, kind, e=0.0)
        assert (loss == math.inf).all()
        torch.testing.assert_close(grad, x.softmax(1) - soft)


@pytest.mark.parametrize(("classes", "s"), [(5, 1), (400, 1), (5, 40)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, "all masked"])
def test_bad_logits_spoil_their_row_only(classes, s, bad):
    x, target, _ = batch(4, classes, s, torch.float32)
    target = target.clamp(min=0)
    x[1, slice(None) if bad == "all masked" else classes - 1] = -math.inf if bad == "all masked" else bad
    others = [0, 2, 3]
    for kind in (target, F.one_hot(target, classes).movedim(-1, 1).float().contiguous()):
        loss, grad = softmax(x, kind)
        assert loss[1].isnan().all()
        assert grad[1].isnan().all()
        assert loss[others].isfinite().all()
        assert grad[others].isfinite().all()


@pytest.mark.parametrize(("classes", "s"), [(5, 1), (400, 1), (5, 40)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ignored_and_invalid_rows(classes, s, dtype):
    x, target, weight = batch(6, classes, s, dtype, weighted=True)
    target = target.clamp(min=0)
    target[1], x[1] = 3, math.nan  # ignored although it is a class
    target[4:] = torch.where(target[4:] == 3, 2, target[4:])
    target[2], target[3] = classes, -1
    for reduction in REDUCTIONS:
        loss, grad = softmax(x, target, weight, ignore_index=3, reduction=reduction)
        assert (grad[1] == 0).all()
        assert grad[2:4].isnan().all()
        assert not grad[4:].isnan().any()
        if reduction == "none":
            assert (loss[1] == 0).all()
            assert loss[2:4].isnan().all()
        else:
            assert loss.isnan()
    loss, grad = softmax(x, torch.full_like(target, 3), ignore_index=3, reduction="mean")
    assert loss.isnan()
    assert (grad == 0).all()


def test_a_maximum_late_in_the_row():
    for peak in (5.0, 50.0, 500.0):
        x, target, _ = batch(4, 5000, 1, torch.float32)
        x[:2, 4000], x[2:] = peak, torch.linspace(-peak, peak, 5000)[:, None]
        for dtype in (torch.float32, torch.float64):
            found, truth = softmax(x.to(dtype), target), softmax_truth(x, target)
            agree(found[0], truth[0], dtype, 100)
            agree(found[1], truth[1], dtype, 4)


def test_the_result_does_not_depend_on_the_number_of_threads():
    for shape in ((3, 40000, 1), (700, 200, 1), (4000, 50, 1), (3, 7, 9000)):
        x, target, weight = batch(*shape, torch.float32, weighted=True)
        before = torch.get_num_threads()
        results = []
        try:
            for threads in (1, 2, 3, 5):
                torch.set_num_threads(threads)
                results.append(softmax(x, target, weight, reduction="mean"))
        finally:
            torch.set_num_threads(before)
        for loss, grad in results[1:]:
            assert torch.equal(loss, results[0][0])
            assert torch.equal(grad, results[0][1])


def test_eta_as_a_tensor():
    x, target, _ = batch(4, 5, 1, torch.float32)
    for eta in (torch.tensor(0.25), torch.tensor(0.25, dtype=torch.float64)):
        assert torch.equal(softmax(x, target, eta=eta)[1], softmax(x, target, eta=0.25)[1])


def sigmoid(x, y, w=None, pw=None, eta=0.4, alpha=None, margin=0.0, e=0.1, reduction="none", with_grad=True, **gammas):
    settings = SigmoidSettings(*(PAPER | gammas).values(), alpha, margin, e)
    return native.sigmoid(x, y, w, pw, eta, settings, reduction, with_grad=with_grad)


def sigmoid_truth(x, y, w=None, pw=None, eta=0.4, alpha=None, margin=0.0, e=0.1, reduction="none", **gammas):
    gp, gn, gh = (PAPER | gammas).values()
    x = x.detach().double().requires_grad_()
    y = y.double() * (1 - e) + e / 2
    log_p, log_not, p = F.logsigmoid(x), F.logsigmoid(-x), x.sigmoid()
    not_p = log_not.exp()
    q = p
    if margin:
        q = (p - margin).clamp(min=0)
        log_not = torch.log1p(-q)
    yes = ((1 - eta) * not_p**gp + eta * (1 + p) ** gh) * log_p
    no = ((1 - eta) * q**gn + eta * (2 - q) ** gh) * log_not
    a, b = (1, 1) if alpha is None else (alpha, 1 - alpha)
    cells = -(y * a * (1 if pw is None else pw.double()) * yes + (1 - y) * b * no)
    cells = cells * (1 if w is None else w.double())
    loss = {"none": cells, "sum": cells.sum(), "mean": cells.mean()}[reduction]
    return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sigmoid_is_the_equation(dtype):
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    extras = itertools.product(
        ((), (5,), (0, 3), (3, 1), (40, 3), (3, 5, 400)), (False, True), ("none", "last", "full")
    )
    for k, (shape, weighted, pos) in enumerate(extras):
        x, y = (torch.randn(shape) * 3).to(dtype), torch.rand(shape, dtype=compute).round(decimals=1)
        w = torch.rand(shape, dtype=compute) if weighted else None
        pw_shape = {"none": None, "last": shape[-1:], "full": shape}[pos]
        pw = None if pw_shape is None or not shape else torch.rand(pw_shape, dtype=compute) * 3
        options = {"alpha": (None, 0.25)[k % 2], "margin": (0.0, 0.05)[k // 2 % 2], "e": (0.0, 0.2)[k // 3 % 2]}
        for reduction in REDUCTIONS:
            loss, grad = sigmoid(x, y, w, pw, reduction=reduction, **options)
            true_loss, true_grad = sigmoid_truth(x, y, w, pw, reduction=reduction, **options)
            agree(loss, true_loss, compute, 8 + (x.numel() if reduction == "sum" else 0))
            agree(grad, true_grad, dtype, 2 if dtype.itemsize > 2 else 0.5)
            alone = sigmoid(x, y, w, pw, reduction=reduction, with_grad=False, **options)
            assert alone[1] is None
            torch.testing.assert_close(alone[0], loss, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_sigmoid_at_every_exponent(dtype):
    x, y = torch.randn(37, dtype=dtype) * 4, torch.rand(37, dtype=dtype)
    for gp, gn, gh in itertools.product((0.0, 0.5, 1.0, 2.5, 4.0), (0.0, 0.7, 2.0, 3.0, 5.0), (0.0, 1.5, 3.0)):
        for eta, margin in ((0.0, 0.0), (0.3, 0.1), (1.0, 0.0)):
            options = {"gamma_pos": gp, "gamma_neg": gn, "gamma_hc": gh, "eta": eta, "margin": margin}
            loss, grad = sigmoid(x, y, **options)
            # margin and exponents below 1: the slope at the kink is infinite in the plain equation
            true_loss, true_grad = sigmoid_truth(x, y, **options)
            agree(loss, true_loss, dtype, 16)
            known = true_grad.isfinite()
            agree(grad[known], true_grad[known], dtype, 16)
            assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sigmoid_saturation(dtype):
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.tensor([-1e4, -200.0, -30.0, 0.0, 30.0, 200.0, 1e4], dtype=dtype)
    for y, gamma, eta, margin in itertools.product((0.0, 1.0, 0.5), (0.0, 0.3, 1.0, 2.5), (0.0, 0.5), (0.0, 0.05)):
        target = torch.full_like(x, y, dtype=compute)
        loss, grad = sigmoid(x, target, eta=eta, e=0.0, margin=margin, gamma_pos=gamma, gamma_neg=gamma)
        assert loss.isfinite().all(), (y, gamma, eta, margin)
        assert grad.isfinite().all(), (y, gamma, eta, margin)
    infinite = torch.tensor([-math.inf, math.inf], dtype=dtype)
    loss, grad = sigmoid(infinite, torch.tensor([0.0, 1.0], dtype=compute), e=0.0)
    assert (loss == 0).all()
    assert (grad == 0).all()
    zero = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
    loss, grad = sigmoid(x.to(compute), torch.ones(7, dtype=compute), e=0.0, **zero)
    agree(loss, F.binary_cross_entropy_with_logits(x.double(), torch.ones(7).double(), reduction="none"), compute)


def test_one_openmp_runtime():
    """The library uses torch's OpenMP: a threaded call loads no second libgomp and starts no further thread."""
    if sys.platform != "linux":
        pytest.skip("looks into /proc")
    script = """
import os, torch
from cyclofocal.arguments import SoftmaxSettings
from cyclofocal.kernels import native
torch.set_num_threads(2)
x = torch.randn(1000, 1000)
x.exp()
before = len(os.listdir("/proc/self/task"))
target, settings = torch.zeros(1000, 1, dtype=torch.long), SoftmaxSettings(2, 2, 3, -100, 0.1)
native.softmax(x.unsqueeze(-1), target, None, 0.5, settings, "mean", with_grad=True)
maps = {line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line or "omp5" in line or "libomp" in line}
print(len(maps), before, len(os.listdir("/proc/self/task")))
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    runtimes, before, after = map(int, out.split())
    assert runtimes == 1
    assert after == before


def test_the_limit_of_torch_holds():
    program = "from cyclofocal.kernels import native; print(native.INSTRUCTIONS[native.instructions()])"
    command, environment = [sys.executable, "-c", program], os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "baseline\n"
