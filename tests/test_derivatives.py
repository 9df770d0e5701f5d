"""Promise: forward mode, batched gradients, second derivatives and tracers get what torch's own losses give them."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

from cyclofocal.functional import binary_cyclical_focal_loss, cyclical_focal_loss
from cyclofocal.linear import linear_cyclical_focal_loss

pytestmark = pytest.mark.usefixtures("backend")

Z = torch.randn(2, 3, dtype=torch.float64)
T = torch.tensor([2, 0])
SOFT = torch.softmax(torch.randn(2, 3, dtype=torch.float64), 1)
W = torch.rand(3, dtype=torch.float64) + 0.5
HEAD = torch.randn(3, 3, dtype=torch.float64)
CALLS = {
    "indices": lambda z: cyclical_focal_loss(z, T, eta=0.4),
    "indices, none": lambda z: cyclical_focal_loss(z, T, eta=0.4, reduction="none"),
    "smoothed": lambda z: cyclical_focal_loss(z, T, eta=0.4, label_smoothing=0.1, reduction="none"),
    "weighted": lambda z: cyclical_focal_loss(z, T, W, eta=0.4, label_smoothing=0.1, ignore_index=2),
    "probabilities": lambda z: cyclical_focal_loss(z, SOFT, eta=0.4, reduction="none"),
    "positions": lambda z: cyclical_focal_loss(z.view(1, 3, 2), T.view(1, 2), eta=0.4, label_smoothing=0.1),
    "one row": lambda z: cyclical_focal_loss(z[0], T[0], eta=0.4),
    "sigmoid": lambda z: binary_cyclical_focal_loss(z, SOFT, eta=0.4),
    "sigmoid, none": lambda z: binary_cyclical_focal_loss(
        z, SOFT, W, pos_weight=W, alpha=0.3, eta=0.4, reduction="none"
    ),
    "sigmoid, margin": lambda z: binary_cyclical_focal_loss(z, SOFT, probability_margin=0.05, eta=0.4),
    "linear": lambda z: linear_cyclical_focal_loss(z, HEAD, T, eta=0.4, chunk_rows=1),
    "linear, none": lambda z: linear_cyclical_focal_loss(z, HEAD, SOFT, eta=0.4, chunk_rows=1, reduction="none"),
    "layer": lambda z: linear_cyclical_focal_loss(HEAD, z, torch.tensor([0, 1, 1]), eta=0.4, class_weight=W[:2]),
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@calls
def test_all_flags_of_gradcheck(call):
    z = Z.clone().requires_grad_()
    assert gradcheck(call, z, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(call, z, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True)


@calls
@pytest.mark.parametrize("options", [{}, {"vectorize": True}, {"vectorize": True, "strategy": "forward-mode"}], ids=str)
def test_jacobians_of_every_kind_agree(call, options):
    expected = torch.func.jacrev(call)(Z)
    torch.testing.assert_close(torch.autograd.functional.jacobian(call, Z, **options), expected)


@calls
def test_a_tangent_is_carried_through_a_leaf_that_requires_grad(call):
    direction = Z.cos()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(Z.clone().requires_grad_(), direction)
        tangent = forward_ad.unpack_dual(call(dual)).tangent
    expected = torch.func.jvp(call, (Z,), (direction,))[1]
    torch.testing.assert_close(tangent, expected)
    assert tangent.abs().min() > 0


@calls
def test_linearize(call):
    value, tangent_of = torch.func.linearize(call, Z)
    torch.testing.assert_close(value, call(Z))
    torch.testing.assert_close(tangent_of(Z.cos()), torch.func.jvp(call, (Z,), (Z.cos(),))[1])


@calls
def test_batched_gradients_leave_the_graph_usable(call):
    z = Z.clone().requires_grad_()
    value = call(z)
    cotangents = torch.randn(5, *value.shape, dtype=torch.float64)
    (batched,) = torch.autograd.grad(value, z, cotangents, is_grads_batched=True, retain_graph=True)
    for cotangent, got in zip(cotangents, batched, strict=True):
        (expected,) = torch.autograd.grad(value, z, cotangent, retain_graph=True)
        torch.testing.assert_close(got, expected)


@calls
@pytest.mark.parametrize("tracer", ["make_fx", "jit"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_tracers_record_the_loss(call, tracer, requires_grad):
    example, other = Z.clone().requires_grad_(requires_grad), (Z + 1).sin()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates its tracer, which TensorBoard and old exporters still use
        traced = make_fx(call)(example) if tracer == "make_fx" else torch.jit.trace(call, (example,))
    torch.testing.assert_close(traced(other), call(other))


@calls
def test_tracers_record_the_gradient(call):
    def gradient(z):
        z = z.detach().requires_grad_()
        return torch.autograd.grad(call(z).sum(), z)[0]

    other = (Z + 1).sin()
    torch.testing.assert_close(make_fx(gradient)(Z)(other), gradient(other))


@pytest.mark.parametrize("function", [cyclical_focal_loss, binary_cyclical_focal_loss])
def test_a_float_eta_does_not_recompile_at_every_value(function):
    torch._dynamo.reset()
    target, graphs = (T if function is cyclical_focal_loss else SOFT), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda z, eta: function(z, target, eta=eta), fullgraph=True, backend=backend)
    for step in range(12):
        torch.testing.assert_close(compiled(Z, step / 12), function(Z, target, eta=step / 12))
    assert len(graphs) <= 2  # one for the first number, one for all others


def test_equal_to_cross_entropy_in_forward_mode():
    plain = dict.fromkeys(("gamma_pos", "gamma_neg", "gamma_hc"), 0.0)
    ours = torch.func.jacfwd(lambda z: cyclical_focal_loss(z, T, eta=0.4, **plain))(Z)
    torch.testing.assert_close(ours, torch.func.jacfwd(lambda z: F.cross_entropy(z, T))(Z))
