"""Last linear layer and loss together, chunk by chunk, so that the full logits are never stored."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cyclofocal.arguments import (
    SoftmaxSettings,
    can_read,
    check_class_weight,
    check_logits_dtype,
    check_sample_weight,
    check_softmax_call,
    compute_dtype,
    has_memory,
    is_one,
    is_traced,
    is_transformed,
    without_subclass,
)
from cyclofocal.equation import Eta, softmax_denominator
from cyclofocal.kernels.operators import SCHEMA_OF_GAMMAS, SOFTMAX
from cyclofocal.ranges import check_at_least

CHUNK_LOGITS = {"cpu": 2**20}
"""Number of logits of a chunk that is large enough for the cost of its calls not to matter."""
CHUNK_LOGITS_ELSEWHERE = 2**26
MIN_ROW_BYTES = 2048
"""Size of a column of a chunk below which the layer's weight is read and written too often: 512 rows in float32, 1,024
in half precision, which is multiplied twice as fast."""
BLOCK_LOGITS = {"cpu": 2**18}
"""Number of logits that their gradient replaces at a time, while both are in cache."""
BLOCK_LOGITS_ELSEWHERE = 2**25


def linear_cyclical_focal_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    class_weight: Tensor | None = None,
    eta: float | Tensor,
    gamma_pos: float = 2.0,
    gamma_neg: float = 2.0,
    gamma_hc: float = 3.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    logit_offset: Tensor | None = None,
    sample_weight: Tensor | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    r"""Cyclical focal loss of a linear layer's output, for layers with very many classes.

    .. math:: L(W h + b, t)

    with L of :func:`cyclofocal.cyclical_focal_loss`. The rows are taken in chunks: their logits and all gradients are
    computed in the forward pass ("none": in the backward pass, which computes the logits of a chunk again). Gradients
    are summed over the chunks in float32.

    Limits: those of ``cyclical_focal_loss(F.linear(hidden, weight, bias), target, ...)``, which it equals.

    Args:
        hidden: (..., D), any floating dtype; ... may be empty.
        weight: the layer's weight (C, D), of the dtype of ``hidden`` (autocast casts both, as for ``F.linear``).
        target: class indices (...) in [0, C) or ``ignore_index``, or probabilities (..., C).
        bias: (C,), in the dtype of ``hidden``.
        class_weight: factor per class (C,), any sign.
        eta: mixing weight in [0, 1], a float or a 0-d tensor; see ``schedules.cyclical_eta``.
        gamma_pos: focal exponent of the true class, >= 0.
        gamma_neg: focal exponent of the other classes, >= 0; acts through label smoothing only.
        gamma_hc: high-confidence exponent, >= 0.
        ignore_index: index targets of this value add nothing to loss, gradient or denominator.
        reduction: "mean" (over all rows, as in torch), "sum" or "none".
        label_smoothing: e in [0, 1].
        logit_offset: (C,), added to the logits, in the dtype of the layer, as a part of the bias.
        sample_weight: factor per row (...), for example per token; the mean is divided by the weights that count.
        chunk_rows: rows per chunk; None takes as many as make 2^20 logits on a CPU (2^26 elsewhere), but not fewer than
            512 in float32 (1,024 in half precision, 256 in float64), and not fewer than D / 4. Fewer take less memory,
            but longer, because every chunk reads and writes the layer's weight and its gradient.

    Returns:
        A scalar, or for "none" one loss per row (...); float64 for float64, otherwise float32. The gradients have
        the dtypes of hidden, weight and bias; of an input that needs none it is not computed. torch.compile takes the
        call as one operator of its graph. Second derivatives, ``torch.func`` transforms, forward-mode
        differentiation and tracing make the logits as a whole.

    Raises:
        ValueError, TypeError, IndexError: an argument does not fit, or one that is not differentiated here needs a
            gradient; nothing has been computed.

    Example:
        >>> hidden, weight = torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> linear_cyclical_focal_loss(hidden, weight, torch.tensor([0, 1]), eta=0.5)
        tensor(0.9090)

    Reference: P.-L. Hsu et al., *Liger Kernel*, arXiv 2410.10989, for the gradients made in the forward pass.
    """
    settings = SoftmaxSettings(gamma_pos, gamma_neg, gamma_hc, ignore_index, label_smoothing)
    constants = {"eta": eta, "class_weight": class_weight, "target": target, "sample_weight": sample_weight}
    check_no_gradient("linear_cyclical_focal_loss", **constants, logit_offset=logit_offset)
    hidden, weight, target = without_subclass(hidden), without_subclass(weight), without_subclass(target)
    bias, class_weight, eta = without_subclass(bias), without_subclass(class_weight), without_subclass(eta)
    sample_weight = without_subclass(sample_weight)
    logits = _check_layer(hidden, weight, target, bias)
    check_factor_per_class(class_weight, logits)
    target = target.reshape(logits.shape if target.is_floating_point() else logits.shape[:1])
    check_softmax_call(logits, target, None, eta, settings, reduction)
    check_at_least("chunk_rows", chunk_rows, remedy=", or None to choose it by the memory taken")
    if logit_offset is not None:
        check_factor_per_class(logit_offset, logits, "logit_offset")
        offset = without_subclass(logit_offset).to(hidden.dtype)
        bias = offset if bias is None else bias + offset
    if sample_weight is not None:
        sample_weight = check_sample_weight(sample_weight, hidden.device, hidden.shape[:-1]).reshape(-1)
    rows = hidden.reshape(-1, hidden.shape[-1])
    tensors = LinearTensors(target, class_weight, sample_weight, rows, weight, bias)
    value = _loss(tensors, eta, settings, reduction, chunk_rows)
    return value.view(hidden.shape[:-1]) if reduction == "none" else value


def check_no_gradient(function: str, **tensors: Any) -> None:
    """Refuse a tensor that requires a gradient which ``function`` does not compute."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, which {function} does not have; pass {name}.detach(), or use"
                " cyclical_focal_loss on the logits"
            )


def check_factor_per_class(factor: Tensor | None, logits: Tensor, name: str = "class_weight") -> None:
    """Refuse a factor that is not one floating-point number per column of (N, C) logits, on their device."""
    check_class_weight(name, factor, logits.shape[1])
    if factor is not None and factor.device != logits.device:
        raise ValueError(f"{name} is on {factor.device}, not on {logits.device}; move it there")


def _check_layer(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
    """Refuse a call that ``F.linear`` would refuse; return a stand-in of its output (N, C) without memory."""
    check_logits_dtype("hidden", hidden)
    if hidden.dim() == 0:
        raise ValueError("hidden is a scalar; it must be (..., D)")
    shape = tuple(hidden.shape)
    if weight.dim() != 2 or weight.shape[1] != shape[-1]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; for hidden of shape {shape} it must be (C, {shape[-1]})"
        )
    classes = weight.shape[0]
    if bias is not None and bias.shape != (classes,):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be ({classes},), one per class")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, hidden on {hidden.device}; move them to one device")
        if tensor is not None and _product_dtype(tensor) != _product_dtype(hidden):
            raise TypeError(f"{name} has dtype {tensor.dtype}, hidden {hidden.dtype}; they must agree")
    indices, probabilities = shape[:-1], (*shape[:-1], classes)
    if target.shape != (probabilities if target.is_floating_point() else indices):
        raise ValueError(
            f"target is {target.dtype} of shape {tuple(target.shape)}; for hidden of shape {shape} and {classes}"
            f" classes it must be class indices {indices} or floating-point probabilities {probabilities}"
        )
    return hidden.new_empty(()).expand(math.prod(indices), classes)


def _product_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which ``F.linear`` takes a tensor: autocast does not change float64."""
    device = tensor.device.type
    if tensor.is_floating_point() and tensor.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


class LinearCall(NamedTuple):
    """Arguments of a pass over the chunks that are not tensors."""

    eta: Eta
    settings: SoftmaxSettings
    reduction: str
    chunk_rows: int | None
    matmul_dtype: torch.dtype

    @property
    def sum_dtype(self) -> torch.dtype:
        return compute_dtype(self.matmul_dtype)

    def rows(self, weight: Tensor) -> int:
        """Return the largest number of rows of a chunk."""
        classes, features = weight.shape
        logits, itemsize = CHUNK_LOGITS.get(weight.device.type, CHUNK_LOGITS_ELSEWHERE), self.matmul_dtype.itemsize
        return self.chunk_rows or max(logits // classes, MIN_ROW_BYTES // itemsize, features // 4)


class LinearTensors(NamedTuple):
    """Tensors of a call, those without a gradient first."""

    target: Tensor
    class_weight: Tensor | None
    sample_weight: Tensor | None
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    @property
    def layer(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.hidden, self.weight, self.bias


N_CONSTANTS = 3
"""Number of tensors without a gradient."""
Gradients = list[Tensor | None]
"""Gradients of hidden, weight and bias."""


def _loss(
    tensors: LinearTensors, eta: Eta, settings: SoftmaxSettings, reduction: str, chunk_rows: int | None
) -> Tensor:
    target, class_weight, sample_weight, hidden, _weight, _bias = tensors
    traced = is_traced() or not has_memory(hidden)
    if isinstance(eta, Tensor) and not traced:  # a clock may move its tensor before backward
        eta = eta.item() if can_read(eta) else eta.detach().clone()
    call = LinearCall(eta, settings, reduction, chunk_rows, _product_dtype(hidden))
    tensors = tensors._replace(
        target=target.to(call.sum_dtype if target.is_floating_point() else torch.int64),
        class_weight=None if class_weight is None else class_weight.to(call.sum_dtype),
        sample_weight=None if sample_weight is None else sample_weight.to(call.sum_dtype),
    )
    if is_transformed() or torch.jit.is_tracing():
        return _by_equation(call, tensors)
    needs_grad = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in tensors.layer)
    if traced:
        return _traced(call, tensors, _needed_now(call, needs_grad))[0]
    if any(needs_grad):
        return _LinearLoss.apply(call, *tensors)
    return _loss_and_gradients(call, tensors, needs_grad)[0]


class _LinearLoss(torch.autograd.Function):
    """Autograd function that computes gradients in forward; a second backward computes them again."""

    @staticmethod
    def forward(ctx: Any, call: LinearCall, *tensors: Any) -> Tensor:
        ctx.call, ctx.needs_grad = call, ctx.needs_input_grad[1 + N_CONSTANTS :]
        ctx.save_for_backward(*tensors)
        now = _needed_now(call, ctx.needs_grad)
        value, grads, ctx.scale = _loss_and_gradients(call, LinearTensors(*tensors), now)
        ctx.grads = grads if any(now) else None
        return value

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        call, tensors = ctx.call, LinearTensors(*ctx.saved_tensors)
        if torch.is_grad_enabled() or is_transformed(grad_loss):
            return *(None,) * (1 + N_CONSTANTS), *_differentiable(call, tensors, ctx.needs_grad, grad_loss)
        grads, ctx.grads = ctx.grads, None  # passed on, so that no other holder sees it change
        per_row, factor = (grad_loss, None) if call.reduction == "none" else (None, ctx.scale)
        if grads is None:
            grads = _loss_and_gradients(call, tensors, ctx.needs_grad, per_row)[1]
        if per_row is None and not is_one(grad_loss):
            factor = grad_loss if factor is None else grad_loss * factor
        if factor is not None:
            grads = [None if grad is None else grad.mul_(factor) for grad in grads]
        return *(None,) * (1 + N_CONSTANTS), *_rounded(grads, tensors)


def _needed_now(call: LinearCall, needs_grad: tuple[bool, ...]) -> tuple[bool, ...]:
    """Return which gradients the forward pass computes: none where each row has its own factor in the backward pass."""
    return (False,) * 3 if call.reduction == "none" else needs_grad


def _rounded(grads: Gradients, tensors: LinearTensors) -> Gradients:
    """Return the gradients in the dtypes of hidden, weight and bias."""
    return [None if g is None or t is None else g.to(t.dtype) for g, t in zip(grads, tensors.layer, strict=True)]


def _by_equation(call: LinearCall, tensors: LinearTensors) -> Tensor:
    """Compute the loss from the full logits: for second derivatives, function transforms and tracing."""
    target, class_weight, sample_weight, hidden, weight, bias = tensors
    bias = None if bias is None else bias.to(call.matmul_dtype)
    logits = F.linear(hidden.to(call.matmul_dtype), weight.to(call.matmul_dtype), bias)
    if sample_weight is None:
        return SOFTMAX.equation(logits, target, class_weight, call.eta, call.settings, call.reduction)
    rows = SOFTMAX.equation(logits, target, class_weight, call.eta, call.settings, "none") * sample_weight
    return rows if call.reduction == "none" else rows.sum() * (_scale(tensors, call) if call.reduction == "mean" else 1)


def _differentiable(
    call: LinearCall, tensors: LinearTensors, needs_grad: tuple[bool, ...], grad_loss: Tensor
) -> Gradients:
    """Return gradients that can be differentiated again, or belong to a batch of ``grad_loss``."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        value = _by_equation(call, tensors)
        wanted = [t for t, is_wanted in zip(tensors.layer, needs_grad, strict=True) if is_wanted and t is not None]
        grads = iter(torch.autograd.grad(value, wanted, grad_loss, create_graph=create_graph))
    return [next(grads) if is_wanted else None for is_wanted in needs_grad]


def _loss_and_gradients(
    call: LinearCall, tensors: LinearTensors, needs_grad: tuple[bool, ...], per_row: Tensor | None = None
) -> tuple[Tensor, Gradients, Tensor | None]:
    """Return the loss, the gradients that are needed, and a factor that these still lack, or None.

    ``per_row`` multiplies a row's share of the gradients. The factor, one over the number of rows, is for the backward
    pass: in float16 a gradient times this factor, but not yet the scale of the loss, may be too small to be stored.
    """
    target, _class_weight, sample_weight, hidden, weight, bias = tensors
    if sample_weight is not None:
        per_row = sample_weight if per_row is None else per_row * sample_weight
    grads: Gradients = [
        torch.empty_like(hidden) if needs_grad[0] else None,
        torch.zeros_like(weight, dtype=call.sum_dtype) if needs_grad[1] else None,
        torch.zeros_like(bias, dtype=call.sum_dtype) if needs_grad[2] and bias is not None else None,
    ]
    losses = hidden.new_empty(len(hidden), dtype=call.sum_dtype)
    _add_chunks(call, tensors, per_row, losses, grads)
    losses = losses if sample_weight is None else losses * sample_weight
    value = losses if call.reduction == "none" else losses.sum()
    if call.reduction != "mean":
        return value, grads, None
    value *= (scale := _scale(tensors, call))
    none_counted = torch.all(target == call.settings.ignore_index) if len(target) else value.isnan()
    return value, grads, scale.masked_fill(none_counted, 0)  # as in torch


def _add_chunks(
    call: LinearCall, tensors: LinearTensors, per_row: Tensor | None, losses: Tensor, grads: Gradients
) -> None:
    """Write the loss of every row, and add the gradients by hidden, weight and bias that are not None."""
    target, class_weight, _sample_weight, hidden, weight, bias = tensors
    with_grad = any(grad is not None for grad in grads)
    chunks = -(-len(hidden) // call.rows(weight))
    step = -(-len(hidden) // chunks) if chunks else 1
    weight, bias = weight.to(call.matmul_dtype), None if bias is None else bias.to(call.matmul_dtype)
    buffer = weight.new_empty(min(step, len(hidden)), len(weight))
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(hidden), step):
            rows = slice(start, start + step)
            chunk = hidden[rows].to(call.matmul_dtype)
            logits = _linear(chunk, weight, bias, out=buffer[: len(chunk)])
            factors = per_row[rows] if with_grad and per_row is not None else None
            _compute_chunk(call, logits, target[rows], class_weight, factors, losses[rows], with_grad)
            if with_grad:
                _add_gradients(grads, rows, logits, chunk, weight)


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    if bias is None:
        return torch.mm(hidden, weight.t(), out=out)
    return torch.addmm(bias, hidden, weight.t(), out=out)


def _compute_chunk(
    call: LinearCall,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    factors: Tensor | None,
    losses: Tensor,
    with_grad: bool,
) -> None:
    """Write the losses of a chunk and, if needed, the gradient over the logits, each row times its factor."""
    block = max(1, BLOCK_LOGITS.get(logits.device.type, BLOCK_LOGITS_ELSEWHERE) // logits.shape[1])
    for start in range(0, len(logits), block):
        rows = slice(start, start + block)
        loss, grad = SOFTMAX.fused(
            logits[rows], target[rows], class_weight, call.eta, call.settings, "none", with_grad=with_grad
        )
        losses[rows] = loss
        if grad is not None and with_grad:
            logits[rows] = grad if factors is None else grad * factors[rows, None]


def _scale(tensors: LinearTensors, call: LinearCall) -> Tensor:
    target, ignore_index = tensors.target, call.settings.ignore_index
    denominator = softmax_denominator(target, tensors.class_weight, ignore_index, tensors.sample_weight)
    return 1 / torch.as_tensor(denominator, dtype=call.sum_dtype, device=target.device)


def _add_gradients(grads: Gradients, rows: slice, grad: Tensor, hidden: Tensor, weight: Tensor) -> None:
    """Add the contribution of a chunk of logits to the gradients of hidden, weight and bias."""
    grad_hidden, grad_weight, grad_bias = grads
    if grad_hidden is not None and grad_hidden.dtype == grad.dtype:
        torch.mm(grad, weight, out=grad_hidden[rows])
    elif grad_hidden is not None:
        grad_hidden[rows] = grad @ weight
    if grad_bias is not None:
        grad_bias += grad.sum(0, dtype=grad_bias.dtype)
    if grad_weight is not None and grad_weight.dtype == grad.dtype:
        grad_weight.addmm_(grad.t(), hidden)
    elif grad_weight is not None:  # multiplied in half precision, added in float32, in parts to limit the product
        classes = max(1, BLOCK_LOGITS.get(grad.device.type, BLOCK_LOGITS_ELSEWHERE) * 4 // hidden.shape[1])
        for part, columns in zip(grad_weight.split(classes), grad.split(classes, 1), strict=True):
            part += (columns.t() @ hidden).to(part.dtype)  # as one operation it would take six times as long


def _traced(
    call: LinearCall, tensors: LinearTensors, needs_grad: tuple[bool, ...], per_row: Tensor | None = None
) -> tuple[Tensor, Gradients]:
    """Compute loss and gradients, without their factor, by the operator of torch.library, whose arguments are flat."""
    eta = torch.zeros((), dtype=call.sum_dtype, device=tensors.hidden.device) + call.eta  # no constant of the graph
    value, *grads, _factor = torch.ops.cyclofocal.linear(
        *tensors, per_row, eta, *call.settings, call.reduction, call.chunk_rows, call.matmul_dtype, needs_grad
    )
    return value, [grad if is_needed else None for grad, is_needed in zip(grads, needs_grad, strict=True)]


def _unpack(arguments: tuple[Any, ...]) -> tuple[LinearCall, LinearTensors, Tensor | None, list[bool]]:
    """Return call, tensors, ``per_row`` and ``needs_grad`` from the flat arguments of the operator."""
    tensors, (per_row, eta, *settings, reduction, chunk_rows, dtype, needs_grad) = arguments[:6], arguments[6:]
    call = LinearCall(eta, SoftmaxSettings(*settings), reduction, chunk_rows, dtype)
    return call, LinearTensors(*tensors), per_row, needs_grad


def _run(*arguments: Any) -> tuple[Tensor, ...]:
    """Run the operator; a gradient that is not needed is empty, the factor of the gradients last."""
    call, tensors, per_row, needs_grad = _unpack(arguments)
    value, grads, factor = _loss_and_gradients(call, tensors, tuple(needs_grad), per_row)
    factor = torch.ones((), dtype=value.dtype, device=value.device) if factor is None else factor
    return value, *(value.new_empty(0) if grad is None else grad for grad in grads), factor


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    call, tensors, _per_row, needs_grad = _unpack(arguments)
    rows = tensors.hidden.shape[:1] if call.reduction == "none" else ()
    value = tensors.hidden.new_empty(rows, dtype=call.sum_dtype)
    layer = zip(tensors.layer, (tensors.hidden.dtype, call.sum_dtype, call.sum_dtype), needs_grad, strict=True)
    grads = (
        torch.empty_like(t, dtype=dtype) if is_needed and t is not None else value.new_empty(0)
        for t, dtype, is_needed in layer
    )
    return value, *grads, value.new_empty(())


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    call, tensors, _per_row, _needs_grad = _unpack(inputs)
    ctx.call = call._replace(eta=math.nan)  # a tensor here, saved with the others
    ctx.save_for_backward(*tensors, call.eta, *output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    *tensors, eta, grad_hidden, grad_weight, grad_bias, factor = ctx.saved_tensors
    call, tensors, needs_grad = ctx.call._replace(eta=eta), LinearTensors(*tensors), ctx.needs_input_grad[3:6]
    if torch.is_grad_enabled():
        grads = _differentiable(call, tensors, needs_grad, grad_loss)
    elif call.reduction == "none":
        grads = _traced(call, tensors, needs_grad, grad_loss)[1]
    else:
        forward = zip((grad_hidden, grad_weight, grad_bias), needs_grad, strict=True)
        grads = [grad * (grad_loss * factor) if is_needed else None for grad, is_needed in forward]
    return *(None,) * N_CONSTANTS, *_rounded(grads, tensors), *(None,) * (len(ctx.needs_input_grad) - 6)


_library = torch.library.Library("cyclofocal", "FRAGMENT")
_library.define(
    "linear(Tensor target, Tensor? class_weight, Tensor? sample_weight, Tensor hidden, Tensor weight, Tensor? bias,"
    f" Tensor? per_row, {SCHEMA_OF_GAMMAS}, int ignore_index, float label_smoothing, str reduction, int? chunk_rows,"
    " ScalarType matmul_dtype, bool[] needs_grad) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.impl("linear", _run, "CompositeExplicitAutograd")
torch.library.register_fake("cyclofocal::linear", _fake, lib=_library)
torch.library.register_autograd("cyclofocal::linear", _backward, setup_context=_save, lib=_library)
