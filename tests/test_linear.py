"""Promise: layer and loss in chunks equal ``F.linear`` and the loss, in value and gradient, without the logits."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from cyclofocal import linear
from cyclofocal.functional import cyclical_focal_loss
from cyclofocal.lab.bench.measure import peak_bytes
from cyclofocal.linear import linear_cyclical_focal_loss

N, D, C = 11, 5, 7
T = torch.tensor([0, 6, 3, 3, 1, 2, 5, 4, 0, 6, 6])
W = torch.linspace(0.5, 2.0, C)
CASES = {
    "plain": {},
    "one chunk": {"chunk_rows": 100},
    "row by row": {"chunk_rows": 1},
    "chosen": {"chunk_rows": None},
    "smoothing": {"label_smoothing": 0.1},
    "sum": {"reduction": "sum", "label_smoothing": 0.1},
    "none": {"reduction": "none", "label_smoothing": 0.1},
    "class weights": {"class_weight": W, "label_smoothing": 0.1},
    "class weights, none": {"class_weight": W, "reduction": "none"},
    "ignored": {"target": T.masked_fill(T == 6, -100), "class_weight": W},
    "ignored chunk": {"target": T.clone().index_fill(0, torch.arange(3, 6), -100), "label_smoothing": 0.1},
    "ignored class": {"ignore_index": 3},
    "all ignored": {"target": torch.full_like(T, -100), "label_smoothing": 0.1},
    "eta 0": {"eta": 0.0},
    "eta as tensor": {"eta": torch.tensor(1.0), "label_smoothing": 0.1},
    "other exponents": {"gamma_pos": 0.5, "gamma_neg": 1.5, "gamma_hc": 1.0, "label_smoothing": 0.1},
    "probabilities": {"target": torch.softmax(torch.linspace(-2, 2, N * C).sin().view(N, C) * 3, 1)},
    "probabilities, smoothing": {
        "target": torch.softmax(torch.linspace(-2, 2, N * C).view(C, N).t(), 1),
        "label_smoothing": 0.1,
        "class_weight": W,
        "reduction": "none",
    },
    "no bias": {"bias": False, "label_smoothing": 0.1},
    "masked by the bias": {"masked": True, "target": T.masked_fill(T == 6, 0)},
    "no rows": {"rows": 0, "reduction": "sum"},
    "no rows, mean": {"rows": 0},
    "int32": {"target": T.int()},
}


def layer(dtype=torch.float64, bias=True, masked=False, rows=N):
    bias = torch.randn(C, dtype=dtype) if bias else None
    if masked:
        bias[6] = -torch.inf
    tensors = [torch.randn(rows, D, dtype=dtype), torch.randn(C, D, dtype=dtype), bias]
    return [tensor if tensor is None else tensor.requires_grad_() for tensor in tensors]


def ours(hidden, weight, bias, target, **options):
    return linear_cyclical_focal_loss(hidden, weight, target, bias, **{"eta": 0.4, "chunk_rows": 3} | options)


def reference(hidden, weight, bias, target, class_weight=None, chunk_rows=None, **options):
    logits = F.linear(hidden, weight, bias)
    target = target if target.is_floating_point() else target.long()
    return cyclical_focal_loss(logits, target, class_weight, **{"eta": 0.4} | options)


def gradients(loss, tensors, **options):
    factor = torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype).view(loss.shape) if loss.dim() else 2.5
    tensors = [tensor for tensor in tensors if tensor is not None]
    return torch.autograd.grad((loss * factor).sum(), tensors, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_equals_layer_and_loss(name, dtype):
    case = {"target": T} | CASES[name]
    shape = {key: case.pop(key) for key in ("bias", "masked", "rows") if key in case}
    case["target"] = case["target"][: shape.get("rows", N)]
    tensors = layer(dtype, **shape)
    double = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    exact = {key: t.double() if key == "class_weight" else t for key, t in case.items()}
    loss, expected = ours(*tensors, **case), reference(*double, **exact)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-6, "atol": 2e-6}
    tolerance["equal_nan"] = True
    assert loss.dtype == dtype
    torch.testing.assert_close(loss.double(), expected, **tolerance)
    for found, wanted in zip(gradients(loss, tensors), gradients(expected, double), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, **tolerance)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("soft", [False, True])
def test_leading_dimensions(shape, reduction, soft):
    _, weight, bias = layer()
    hidden = torch.randn(*shape, D, dtype=torch.float64, requires_grad=True)
    target = torch.rand(*shape, C, dtype=torch.float64) if soft else torch.randint(0, C, shape)
    loss = ours(hidden, weight, bias, target, reduction=reduction)
    assert loss.shape == (shape if reduction == "none" else ())
    flat = reference(hidden.view(-1, D), weight, bias, target.view(-1, *target.shape[len(shape) :]), reduction="none")
    torch.testing.assert_close(loss, flat.view(shape) if reduction == "none" else flat.mean())
    assert gradients(loss, [hidden])[0].shape == hidden.shape


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_backward_and_accumulation(reduction):
    tensors = layer()
    loss = ours(*tensors, T, reduction=reduction).sum()
    once = torch.autograd.grad(loss, tensors, retain_graph=True)
    loss.backward(torch.tensor(3.0, dtype=torch.float64), retain_graph=True)
    loss.backward()
    for gradient, tensor in zip(once, tensors, strict=True):
        torch.testing.assert_close(tensor.grad, 4 * gradient)


def test_the_clock_may_move_before_backward():
    tensors, eta = layer(), torch.tensor(0.25)
    loss = ours(*tensors, T, eta=eta, reduction="none")
    expected = gradients(reference(*tensors, T, eta=0.25, reduction="none"), tensors)
    eta.fill_(1.0)
    torch.testing.assert_close(gradients(loss, tensors), expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_computes_only_the_gradients_that_are_needed(wanted, reduction, monkeypatch):
    tensors = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(layer())]
    made, add = [], linear._add_gradients
    monkeypatch.setattr(linear, "_add_gradients", lambda sums, *rest: made.append(sums) or add(sums, *rest))
    loss = ours(*tensors, T, reduction=reduction)
    expected = gradients(reference(*tensors, T, reduction=reduction), tensors[wanted : wanted + 1])
    torch.testing.assert_close(gradients(loss, tensors[wanted : wanted + 1]), expected)
    assert made
    assert all([t is not None for t in sums] == [i == wanted for i in range(3)] for sums in made)
    made.clear()
    with torch.no_grad():
        torch.testing.assert_close(ours(*tensors, T, reduction=reduction), loss.detach())
    assert not made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_no_worse_than_layer_and_loss(dtype):
    """Use sixty chunks: gradients added in half precision would be several times worse."""
    rows, classes, features = 480, 40, 16
    hidden, weight = torch.randn(rows, features).to(dtype), torch.randn(classes, features).to(dtype)
    bias, target = torch.randn(classes).to(dtype), torch.randint(0, classes, (rows,))
    half = [t.requires_grad_() for t in (hidden, weight, bias)]
    double = [t.detach().double().requires_grad_() for t in half]
    options = {"label_smoothing": 0.1, "reduction": "sum"}
    loss = ours(*half, target, chunk_rows=8, **options)
    truth, plain = reference(*double, target, **options), reference(*half, target, **options)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), truth, rtol=1e-3, atol=0)
    found, wanted, other = (
        torch.autograd.grad(value, tensors) for value, tensors in ((loss, half), (truth, double), (plain, half))
    )
    for gradient, exact, usual in zip(found, wanted, other, strict=True):
        assert gradient.dtype == dtype
        error, allowed = (gradient - exact).norm(), (usual - exact).norm()
        assert error <= 1.1 * allowed + torch.finfo(dtype).eps * exact.norm() / 4


@pytest.mark.parametrize("compiled", [False, True])
def test_small_gradients_of_float16_reach_the_scaled_loss(compiled):
    """Rows of confident samples: divided by their number the gradients are below the least number of float16."""
    rows, scale = 4096, 65536.0
    hidden, weight = torch.full((rows, 1), 10.0).half().requires_grad_(), torch.tensor([[0.5], [-0.5]]).half()
    target = torch.zeros(rows, dtype=torch.int64)

    torch._dynamo.reset()
    exact = F.cross_entropy(F.linear(hidden.double(), weight.double()), target)
    (wanted,) = torch.autograd.grad(exact * scale, hidden)
    call = linear_cyclical_focal_loss
    if compiled:
        call = torch.compile(call, backend="aot_eager", fullgraph=True)
    loss = call(hidden, weight, target, eta=1.0, gamma_hc=0.0)
    torch.testing.assert_close(torch.autograd.grad(loss * scale, hidden)[0], wanted, rtol=1e-2, atol=0)


def test_autocast_casts_as_the_layer_does():
    tensors = layer(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, expected = ours(*tensors, T, reduction="none"), reference(*tensors, T, reduction="none")
        doubles = layer(torch.float64)
        torch.testing.assert_close(ours(*doubles, T), reference(*doubles, T))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(gradients(loss, tensors), gradients(expected, tensors), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)


COMPILED = ["plain", "none", "class weights", "class weights, none", "ignored", "all ignored", "eta as tensor"]
COMPILED += ["probabilities, smoothing", "no bias", "int32", "chosen", "sample weights", "sample weights, none"]


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_as_one_graph(name):
    weighted = {"sample_weight": torch.linspace(0, 2, N), "reduction": "none" if "none" in name else "mean"}
    case = {"target": T} | (weighted if name.startswith("sample") else CASES[name])
    tensors = layer(bias=case.pop("bias", True))

    def step(hidden, weight, bias, eta):
        return ours(hidden.relu(), weight, bias, **{"eta": eta} | case).sum() * 2

    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, backend=graphs, fullgraph=True)
    wanted = [t for t in tensors if t is not None]
    for eta in (0.3, 0.8, 0.9):  # another number is no other graph
        found, expected = compiled(*tensors, eta), step(*tensors, eta)
        torch.testing.assert_close(found, expected, equal_nan=True)
        torch.testing.assert_close(torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted))
    assert graphs.frame_count <= 2


def test_compiled_under_autocast():
    tensors = layer(torch.float32)

    def step(*tensors):
        with torch.autocast("cpu", torch.bfloat16):
            return ours(*tensors, T, label_smoothing=0.1)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        torch.autograd.grad(compiled(*tensors), tensors), torch.autograd.grad(step(*tensors), tensors)
    )


def test_compiled_for_batches_of_any_size():
    _, weight, _ = layer()
    compiled = torch.compile(lambda hidden, target: ours(hidden, weight, None, target), backend="eager", fullgraph=True)
    for rows in (2, 5, 9, 0):
        hidden = torch.randn(rows, D, dtype=torch.float64)
        torch.testing.assert_close(
            compiled(hidden, T[:rows]), reference(hidden, weight, None, T[:rows]), equal_nan=True
        )


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivative(reduction):
    tensors = layer()
    double = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    second = []
    for loss_fn, inputs in ((ours, tensors), (reference, double)):
        first = torch.autograd.grad(loss_fn(*inputs, T, reduction=reduction).sum(), inputs, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    for found, wanted in zip(*second, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("dtype", "rows"), [(torch.float32, 512), (torch.bfloat16, 1024)], ids=str)
def test_holds_few_rows_of_logits(dtype, rows, reduction):
    features, classes = 8, 4000
    hidden, target = torch.randn(4 * rows, features, dtype=dtype), torch.randint(0, classes, (4 * rows,))
    tensors = [t.requires_grad_() for t in (hidden, torch.randn(classes, features, dtype=dtype))]

    def step():
        loss = linear_cyclical_focal_loss(*tensors, target, eta=0.5, reduction=reduction).sum()
        return torch.autograd.grad(loss, tensors)

    chunk = rows * classes * dtype.itemsize
    blocks = 3 * 4 * linear.BLOCK_LOGITS["cpu"]  # gradients of a block in two dtypes, and a part of the weight's
    assert chunk < peak_bytes(step, "cpu") < chunk + blocks + 4 * sum(t.nbytes for t in tensors)


H, K = torch.zeros(4, 3), torch.zeros(2, 3)
REFUSED = [
    ({"hidden": H.long()}, TypeError, "hidden has dtype torch.int64"),
    ({"hidden": H[0, 0]}, ValueError, "hidden is a scalar"),
    ({"weight": K.t()}, ValueError, r"weight has shape \(3, 2\); for hidden of shape \(4, 3\) it must be \(C, 3\)"),
    ({"weight": K[0]}, ValueError, r"weight has shape \(3,\)"),
    ({"weight": K[:0]}, ValueError, "has no class"),
    ({"weight": K.double()}, TypeError, "weight has dtype torch.float64, hidden torch.float32; they must agree"),
    ({"weight": K.to("meta")}, ValueError, "weight is on meta, hidden on cpu"),
    ({"bias": torch.zeros(3)}, ValueError, r"bias has shape \(3,\); it must be \(2,\), one per class"),
    ({"bias": torch.zeros(2).half()}, TypeError, "bias has dtype torch.float16"),
    ({"target": torch.zeros(3).long()}, ValueError, r"target is torch.int64 of shape \(3,\).*indices \(4,\).*\(4, 2\)"),
    ({"target": torch.zeros(4)}, ValueError, r"target is torch.float32 of shape \(4,\).*probabilities \(4, 2\)"),
    ({"target": torch.tensor([0, 1, 2, 0])}, IndexError, "class 2 for 2 classes"),
    ({"target": torch.tensor([True] * 4)}, TypeError, "torch.bool"),
    ({"target": torch.rand(4, 2, requires_grad=True)}, ValueError, r"target requires a gradient.*target.detach\(\)"),
    ({"target": torch.rand(4, 2), "ignore_index": 1}, ValueError, "ignore_index is 1"),
    ({"class_weight": torch.ones(3)}, ValueError, r"class_weight has shape \(3,\); it must be \(2,\), one per class"),
    ({"class_weight": torch.ones(2).long()}, TypeError, "class_weight has dtype torch.int64"),
    ({"class_weight": torch.ones(2, device="meta")}, ValueError, "class_weight is on meta, not on cpu"),
    ({"eta": torch.tensor(0.5, requires_grad=True)}, ValueError, "eta requires a gradient"),
    ({"eta": 1.5}, ValueError, "eta is 1.5"),
    ({"gamma_pos": -1.0}, ValueError, "gamma_pos is -1.0"),
    ({"reduction": "average"}, ValueError, "reduction is 'average'"),
    ({"chunk_rows": 0}, ValueError, "chunk_rows is 0; it must be at least 1"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED, ids=[case[2] for case in REFUSED])
def test_refuses(change, error, message):
    call = {"hidden": H, "weight": K, "target": torch.tensor([0, 1, 0, 1]), "eta": 0.5} | change
    with pytest.raises(error, match=message):
        linear_cyclical_focal_loss(**call)
