"""Both losses with their gradients: called directly in eager mode, through ``torch.library`` under torch.compile.

A backend returns loss and gradient together, so forward computes both and backward returns the gradient. Second
derivatives, function transforms and gradients of anything but the logits go through ``cyclofocal.equation``.
"""

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cyclofocal import equation, kernels
from cyclofocal.arguments import (
    REDUCTIONS,
    SigmoidSettings,
    SoftmaxSettings,
    bounds,
    can_read,
    compute_dtype,
    has_memory,
    is_one,
    is_traced,
    is_transformed,
    needs_no_check,
)
from cyclofocal.equation import Eta
from cyclofocal.kernels import native, plain

if TYPE_CHECKING:
    from cyclofocal.clock import Clocked

_Settings = SoftmaxSettings | SigmoidSettings


class Family(NamedTuple):
    """Functions and facts in which the softmax and the sigmoid loss differ."""

    fused: Callable[..., tuple[Tensor, Tensor | None]]
    equation: Callable[..., Tensor]
    operator: Callable[[], Callable[..., tuple[Tensor, Tensor]]]
    settings: Callable[..., _Settings]
    tensors: int
    """Number of tensors in a call: logits, target and weights."""
    class_dim: bool
    """True if an unreduced loss lacks dimension 1 of the logits."""

    def traced(self, *call: Any, with_grad: bool) -> tuple[Tensor, Tensor]:
        """Compute what ``fused`` computes, by the operator of torch.library, whose arguments are flat."""
        logits, eta, settings, reduction = call[0], *call[self.tensors :]
        # A number would become a constant of the graph, and each new number would need another graph; a sum does not.
        eta = torch.zeros((), dtype=compute_dtype(logits.dtype), device=logits.device) + eta
        return self.operator()(*call[: self.tensors], eta, *settings, reduction, with_grad)


def loss(family: Family, tensors: tuple[Tensor | None, ...], eta: Eta, settings: _Settings, reduction: str) -> Tensor:
    """Compute the reduced loss.

    Args:
        family: ``SOFTMAX`` or ``SIGMOID``.
        tensors: logits, target, weight and, for the sigmoid, pos_weight; all but the logits in the dtype that is
            computed in (float64 for float64 logits, otherwise float32), index targets in int64.
        eta: float or 0-d tensor.
        settings: those of the family.
        reduction: "mean", "sum" or "none".
    """
    logits = tensors[0]
    assert logits is not None
    differentiate = torch.is_grad_enabled()
    others = (*tensors[1:], eta)
    if (
        is_transformed()
        or torch.jit.is_tracing()  # what torch.jit.trace records should run without this library
        or (differentiate and any(isinstance(t, Tensor) and t.requires_grad for t in others))
    ):
        return family.equation(*tensors, eta, settings, reduction)
    differentiate = differentiate and logits.requires_grad
    if is_traced() or not has_memory(logits):
        return family.traced(*tensors, eta, settings, reduction, with_grad=differentiate)[0]
    if isinstance(eta, Tensor):  # its owner may move it before backward
        eta = eta.item() if can_read(eta) else eta.detach().to(compute_dtype(logits.dtype), copy=True)
    if differentiate:
        return _Loss.apply(logits, tensors[1:], (family, eta, settings, reduction, None))
    return family.fused(*tensors, eta, settings, reduction, with_grad=False)[0]


def fast_softmax(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    eta: Eta,
    settings: SoftmaxSettings,
    reduction: str,
    clock: "Clocked | None" = None,
) -> Tensor | None:
    """Compute the common call after one combined check; return None for any other call, or a wrong one.

    Common are contiguous logits and indices on a CPU, without class weights, not traced. Checking the arguments one by
    one and passing them through five functions would take longer than the loss of a small batch. A ``clock`` in
    training replaces ``eta``, and counts the forward.
    """
    shape = logits.shape
    if (
        is_traced()
        or is_transformed()
        or not (type(logits) is type(target) is Tensor and weight is None and logits.is_cpu and target.is_cpu)
        or not (target.dtype is torch.int64 and logits.dtype in _FAST_DTYPES and reduction in REDUCTIONS)
        or not (len(shape) > 1 and shape[1])
        or target.shape != (shape[:1] if len(shape) == 2 else shape[:1] + shape[2:])
        or not target.is_contiguous()
    ):
        return None
    return _fast(_FAST_SOFTMAX, (logits, target, None), eta, settings, reduction, clock)


def fast_sigmoid(
    logits: Tensor,
    target: Tensor,
    eta: Eta,
    settings: SigmoidSettings,
    reduction: str,
    clock: "Clocked | None" = None,
) -> Tensor | None:
    """Compute the common call of the sigmoid loss, as :func:`fast_softmax` does: labels as floats, no weights."""
    if (
        is_traced()
        or is_transformed()
        or not (type(logits) is type(target) is Tensor and logits.is_cpu and target.is_cpu)
        or not (target.dtype is _FAST_DTYPES.get(logits.dtype) and reduction in REDUCTIONS)
        or not (target.shape == logits.shape and target.is_contiguous() and not target.requires_grad)
        or target.is_neg()
    ):
        return None
    if target.numel():
        low, high = bounds(target)
        if not (low >= 0 and high <= 1):
            return None
    return _fast(_FAST_SIGMOID, (logits, target, None, None), eta, settings, reduction, clock)


def _fast(
    by_backend: dict[ModuleType, Family],
    tensors: tuple[Tensor | None, ...],
    eta: Eta,
    settings: _Settings,
    reduction: str,
    clock: "Clocked | None",
) -> Tensor | None:
    logits = tensors[0]
    assert logits is not None
    family = by_backend.get(kernels.backend("cpu"))
    if family is None or not logits.is_contiguous() or logits.is_neg() or not needs_no_check(settings):
        return None
    differentiate = logits.requires_grad and torch.is_grad_enabled()
    on_backward = None
    if clock is not None:
        if not differentiate or (taken := clock.take_eta()) is None:
            return None
        eta, on_backward = taken
    elif isinstance(eta, Tensor):
        if type(eta) is not Tensor or eta.dim() or eta.requires_grad or not eta.is_cpu:
            return None
        eta = eta.item()
    if not 0 <= eta <= 1:
        return None
    if differentiate:
        return _Loss.apply(logits, tensors[1:], (family, eta, settings, reduction, on_backward))
    return family.fused(*tensors, eta, settings, reduction, with_grad=False)[0]


class _Loss(torch.autograd.Function):
    """Autograd function of eager mode: an operator of torch.library takes 40 us more, most of a small cross-entropy.

    ``on_backward``, last of the call or set on the node, is called once, when a backward pass reaches it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        others: tuple[Tensor | None, ...],
        call: tuple[Family, Eta, _Settings, str, Callable[[], None] | None],
    ) -> Tensor:
        family, eta, settings, reduction, ctx.on_backward = ctx.call = call
        value, ctx.grad = family.fused(logits, *others, eta, settings, reduction, with_grad=True)
        ctx.save_for_backward(logits, *others)
        return value

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        family, eta, settings, reduction, _ = ctx.call
        if ctx.on_backward is not None:
            ctx.on_backward()
            ctx.on_backward = None
        if torch.is_grad_enabled():
            return _differentiable(family, ctx.saved_tensors, eta, settings, reduction, grad_loss), None, None
        grad, ctx.grad = ctx.grad, None  # passed on, so that no other holder sees it change
        if grad is None:  # a second backward through the same graph
            logits, *others = ctx.saved_tensors
            grad = family.fused(logits, *others, eta, settings, reduction, with_grad=True)[1]
        if is_transformed(grad_loss):  # a batch of gradients, or one with a tangent: nothing can be written in place
            ctx.grad, grad = grad, (grad * _upstream(family, grad_loss, reduction)).to(grad.dtype)
        elif reduction == "none":
            grad.mul_(_upstream(family, grad_loss, reduction))
        elif not is_one(grad_loss):
            kernels.backend(grad.device.type).scale_(grad, grad_loss)
        # autograd itself rounds a float32 gradient to float16 for float16 logits
        return grad, None, None


def _upcast_half(logits: Tensor) -> Tensor:
    """Return float16 logits as float32: their gradient would underflow before the loss scale is applied."""
    return logits.float() if logits.dtype == torch.float16 else logits


def _differentiable(
    family: Family, tensors: tuple[Tensor, ...], eta: Eta, settings: _Settings, reduction: str, grad_loss: Tensor
) -> Tensor:
    """Return a gradient that can be differentiated again."""
    with torch.enable_grad():
        value = family.equation(*tensors, eta, settings, reduction)
        return torch.autograd.grad(value, tensors[0], grad_loss, create_graph=True)[0]


def _upstream(family: Family, grad_loss: Tensor, reduction: str) -> Tensor:
    return grad_loss.unsqueeze(1) if family.class_dim and reduction == "none" else grad_loss


def _fused_softmax(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    eta: Eta,
    settings: SoftmaxSettings,
    reduction: str,
    *,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Call the backend with contiguous tensors (N, C, ...), whose indices are already checked where they can be."""
    logits = _upcast_half(logits)
    softmax = kernels.backend(logits.device.type).softmax
    if not _is_channels_last(logits):
        tensors = _as_memory(logits, target, weight)
        return softmax(*tensors, eta, settings, reduction, with_grad=with_grad, strict=False)
    shape, classes = logits.movedim(1, -1).shape, logits.shape[1]
    rows = target.movedim(1, -1).reshape(-1, classes) if target.is_floating_point() else target.reshape(-1)
    tensors = _as_memory(logits.movedim(1, -1).reshape(-1, classes), rows, weight)
    value, grad = softmax(*tensors, eta, settings, reduction, with_grad=with_grad, strict=False)
    return value.view(shape[:-1]) if value.dim() else value, None if grad is None else grad.view(shape).movedim(-1, 1)


def _is_channels_last(logits: Tensor) -> bool:
    """Return True for channels-last memory: the classes of a position are contiguous, so positions are rows."""
    return logits.dim() > 2 and not logits.is_contiguous() and logits.movedim(1, -1).is_contiguous()


def _fused_sigmoid(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    eta: Eta,
    settings: SigmoidSettings,
    reduction: str,
    *,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Call the backend with contiguous tensors of one shape."""
    logits = _upcast_half(logits)
    weight = None if weight is None else weight.expand(logits.shape)
    if pos_weight is not None and pos_weight.shape != logits.shape[-1:]:
        pos_weight = pos_weight.expand(logits.shape)
    sigmoid = kernels.backend(logits.device.type).sigmoid
    tensors = _as_memory(logits, target, weight, pos_weight)
    return sigmoid(*tensors, eta, settings, reduction, with_grad=with_grad)


def _as_memory(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return contiguous tensors whose memory has the right signs (the imaginary part of a conjugate is a view of memory
    with the opposite signs)."""
    return tuple(None if tensor is None else tensor.resolve_neg().contiguous() for tensor in tensors)


def _softmax_equation(
    logits: Tensor, target: Tensor, weight: Tensor | None, eta: Eta, settings: SoftmaxSettings, reduction: str
) -> Tensor:
    log_p = F.log_softmax(logits, 1, dtype=compute_dtype(logits.dtype))
    rows = equation.softmax_rows(log_p, target, weight, _cast(eta, log_p), settings)
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    return rows.sum() / equation.softmax_denominator(target, weight, settings.ignore_index)


def _sigmoid_equation(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    eta: Eta,
    settings: SigmoidSettings,
    reduction: str,
) -> Tensor:
    x = logits.to(compute_dtype(logits.dtype))
    elements = equation.sigmoid_elements(x, target, weight, pos_weight, _cast(eta, x), settings)
    return elements if reduction == "none" else elements.sum() if reduction == "sum" else elements.mean()


def _cast(eta: Eta, like: Tensor) -> Eta:
    return eta.to(like.dtype) if isinstance(eta, Tensor) else eta


SOFTMAX = Family(
    _fused_softmax, _softmax_equation, lambda: torch.ops.cyclofocal.softmax, SoftmaxSettings, tensors=3, class_dim=True
)
SIGMOID = Family(
    _fused_sigmoid, _sigmoid_equation, lambda: torch.ops.cyclofocal.sigmoid, SigmoidSettings, tensors=4, class_dim=False
)
_FAST_SOFTMAX = {backend: SOFTMAX._replace(fused=backend.softmax) for backend in (native, plain)}
_FAST_SIGMOID = {backend: SIGMOID._replace(fused=backend.sigmoid) for backend in (native, plain)}
"""Families whose kernels are called directly, by backend."""
_FAST_DTYPES = {dtype: compute_dtype(dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)}
"""Dtypes of logits, and the dtype in which they are computed."""

_library = torch.library.Library("cyclofocal", "DEF")
SCHEMA_OF_GAMMAS = "Tensor eta, float gamma_pos, float gamma_neg, float gamma_hc"
_SCHEMAS = {
    "softmax": f"(Tensor logits, Tensor target, Tensor? weight, {SCHEMA_OF_GAMMAS}, int ignore_index,"
    " float label_smoothing, str reduction, bool with_grad) -> (Tensor, Tensor)",
    "sigmoid": f"(Tensor logits, Tensor target, Tensor? weight, Tensor? pos_weight, {SCHEMA_OF_GAMMAS}, float? alpha,"
    " float probability_margin, float label_smoothing, str reduction, bool with_grad) -> (Tensor, Tensor)",
}


def _register(name: str, family: Family) -> None:
    """Register operator ``cyclofocal::name``: implementation, shapes for tracing, gradient."""

    def run(*call: Any) -> tuple[Tensor, Tensor]:
        tensors, (eta, *settings, reduction, with_grad) = call[: family.tensors], call[family.tensors :]
        value, grad = family.fused(*tensors, eta, family.settings(*settings), reduction, with_grad=with_grad)
        return value, tensors[0].new_empty(0) if grad is None else grad

    def fake(logits: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
        *_, reduction, with_grad = call
        unreduced = logits.shape[:1] + logits.shape[2:] if family.class_dim else logits.shape
        value = logits.new_empty(unreduced if reduction == "none" else (), dtype=compute_dtype(logits.dtype))
        if not with_grad:
            return value, logits.new_empty(0)
        dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
        if family.class_dim and _is_channels_last(logits):
            return value, logits.new_empty(logits.movedim(1, -1).shape, dtype=dtype).movedim(-1, 1)
        return value, logits.new_empty(logits.shape, dtype=dtype)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[: family.tensors + 1], output[1])
        ctx.rest = inputs[family.tensors + 1 :]
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, eta, grad = ctx.saved_tensors
        *settings, reduction, _with_grad = ctx.rest
        if torch.is_grad_enabled():
            grad = _differentiable(family, tuple(inputs), eta, family.settings(*settings), reduction, grad_loss)
        else:
            grad = (grad * _upstream(family, grad_loss, reduction)).to(inputs[0].dtype)
        return grad, *(None,) * (family.tensors + len(ctx.rest))

    _library.define(name + _SCHEMAS[name])
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"cyclofocal::{name}", fake, lib=_library)
    torch.library.register_autograd(f"cyclofocal::{name}", backward, setup_context=setup, lib=_library)


_register("softmax", SOFTMAX)
_register("sigmoid", SIGMOID)
