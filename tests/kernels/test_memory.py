"""Promise: however tensors lie in memory, a kernel reads the right numbers, or refuses them."""

import itertools
import random

import pytest
import torch

from cyclofocal.arguments import SigmoidSettings, SoftmaxSettings
from cyclofocal.functional import binary_cyclical_focal_loss, cyclical_focal_loss
from cyclofocal.kernels import native, operators
from cyclofocal.linear import linear_cyclical_focal_loss

GAMMAS = {"gamma_pos": 1.5, "gamma_neg": 2.0, "gamma_hc": 3.0}


def expanded(tensor):
    """Repeat one number, or one row, without memory."""
    return tensor[:1].expand(tensor.shape)


def sliced(tensor):
    room = tensor.new_zeros([2 * size + 1 for size in tensor.shape])
    view = room[tuple(slice(1, None, 2) for _ in tensor.shape)]
    view.copy_(tensor)
    return view


def transposed(tensor):
    """The dimensions in the opposite order in memory."""
    return tensor.permute(*reversed(range(tensor.dim()))).contiguous().permute(*reversed(range(tensor.dim())))


def channels_last(tensor):
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if tensor.dim() > 2 else transposed(tensor)


def overlapping(tensor):
    """Every element shares memory with its neighbours."""
    room = tensor.reshape(-1)
    return room.as_strided(tensor.shape, [1] * tensor.dim()) if tensor.dim() else tensor


def conjugate(tensor):
    """The imaginary part of a conjugate: the memory holds the opposite numbers, for one element side by side."""
    return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag if tensor.dtype == torch.float64 else tensor


LAYOUTS = [torch.Tensor.contiguous, expanded, sliced, transposed, channels_last, overlapping, conjugate]
SHAPES = [(3, 4), (2, 3, 4), (2, 3, 2, 2), (1, 1), (4, 1, 3), (1, 5, 1, 2)]


def cases(count):
    """Shapes and layouts of logits, target, weight and pos_weight."""
    generator = random.Random(0)
    for _ in range(count):
        yield generator.choice(SHAPES), [generator.choice(LAYOUTS) for _ in range(4)], generator.random() < 0.5


def check(function, tensors, **options):
    """Value and gradient are those of the same numbers, freshly laid out, by the equation."""
    fresh = [None if t is None else t.resolve_neg().clone(memory_format=torch.contiguous_format) for t in tensors]
    for ours in tensors, fresh:
        ours[0] = ours[0].detach().requires_grad_()
    value = function(*tensors, **options)
    (got,) = torch.autograd.grad(value, tensors[0], torch.ones_like(value))
    with torch.autograd.forward_ad.dual_level():  # leaves the computing to the equation
        expected = function(*fresh, **options)
        (wanted,) = torch.autograd.grad(expected, fresh[0], torch.ones_like(expected))
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)


def test_softmax_reads_any_layout(backend):
    for shape, (of_logits, of_target, of_weight, _), soft in cases(300):
        logits = of_logits(torch.randn(shape, dtype=torch.float64))
        indices = torch.randint(shape[1], shape[:1] + shape[2:])
        target = of_target(torch.rand(shape, dtype=torch.float64) if soft else indices)
        weight = of_weight(torch.rand(shape[1], dtype=torch.float64))
        for reduction in ("mean", "none"):
            tensors = [logits, target, weight]
            check(cyclical_focal_loss, tensors, eta=0.4, label_smoothing=0.1, reduction=reduction, **GAMMAS)


def test_sigmoid_reads_any_layout(backend):
    for shape, layouts, per_class in cases(300):
        tensors = [layout(torch.rand(shape, dtype=torch.float64)) for layout in layouts[:3]]
        tensors.append(layouts[3](torch.rand(shape[-1:] if per_class else shape, dtype=torch.float64)))
        check(lambda x, y, w, p: binary_cyclical_focal_loss(x, y, w, pos_weight=p, eta=0.4, **GAMMAS), tensors)


def test_linear_reads_any_layout(backend):
    for (rows, classes, *_), (of_hidden, of_target, of_weight, of_factor), soft in cases(60):
        hidden, weight = torch.randn(rows, 2, dtype=torch.float64), torch.randn(classes, 2, dtype=torch.float64)
        hidden, weight = of_hidden(hidden), of_weight(weight)
        target = of_target(torch.rand(rows, classes, dtype=torch.float64) if soft else torch.randint(classes, (rows,)))
        factor = of_factor(torch.rand(classes, dtype=torch.float64))
        tensors = [hidden, weight, target, factor]
        check(lambda h, w, t, f: linear_cyclical_focal_loss(h, w, t, class_weight=f, eta=0.4, chunk_rows=2), tensors)


@pytest.mark.skipif(not native.available(), reason=native.reason() or "available")
@pytest.mark.parametrize("family", ["softmax", "sigmoid"])
def test_pointers_are_never_taken_to_other_memory(family):
    """The only function that passes pointers to C checks every tensor itself."""
    logits, indices, factors = torch.randn(4, 3), torch.randint(3, (4,)), torch.rand(3)
    if family == "softmax":
        right, settings = [logits, indices, factors], SoftmaxSettings(2.0, 2.0, 3.0, -100, 0.1)
    else:
        right = [logits, torch.rand(4, 3), torch.rand(4, 3), factors]
        settings = SigmoidSettings(2.0, 2.0, 3.0, None, 0.0, 0.1)
    kernel = getattr(native, family)
    kernel(*right, 0.4, settings, "mean", with_grad=True)
    wrong = [
        lambda t: sliced(t),
        lambda t: t[:-1],
        lambda t: t.to(torch.float16),
        lambda t: t.to("meta"),
        torch._neg_view,
    ]
    for place, damage in itertools.product(range(1, len(right)), wrong):
        if damage is torch._neg_view and not right[place].is_floating_point():
            continue
        tensors = list(right)
        tensors[place] = damage(tensors[place])
        with pytest.raises(ValueError, match="a kernel must be given"):
            kernel(*tensors, 0.4, settings, "mean", with_grad=True)
    assert operators.SOFTMAX.fused is not kernel
