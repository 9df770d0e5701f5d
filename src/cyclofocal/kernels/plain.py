"""Loss and closed-form gradient in torch: for every device, in chunks that stay in cache.

With l = log p and h_j the derivative of the j-th term of the loss by l_j, the gradient by the logits is
h_k - p_k * sum_j h_j.

Index targets take few passes over the logits, because neither p nor l is ever written down (see ``terms``).
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cyclofocal.arguments import SigmoidSettings, SoftmaxSettings, check_index_values, compute_dtype
from cyclofocal.equation import Eta, softmax_denominator
from cyclofocal.kernels.terms import Sides, Terms, number

CHUNK = {"cpu": 2**20}  # elements; on the CPU the two or three buffers of a chunk should stay in cache
CHUNK_ELSEWHERE = 2**24
STRETCH = 4096  # positions side by side that are worth a loop
LOG2_E = 1 / math.log(2)


def softmax(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    eta: Eta,
    settings: SoftmaxSettings,
    reduction: str,
    *,
    with_grad: bool,
    strict: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Loss and its gradient by the logits.

    Args:
        logits: (N, C, ...), contiguous like every other tensor.
        target: int64 (N, ...), or probabilities (N, C, ...) in the dtype computed in (float32, float64 for float64).
        weight: (C,) in that dtype, or None.
        with_grad: False leaves the gradient out.
        strict: refuse an index out of range with an IndexError; otherwise it makes nan of its row.

    Returns:
        The loss in that dtype, (N, ...) for reduction "none" and 0-d otherwise; the gradient like ``logits``, divided
        by the mean's denominator, or None.
    """
    dtype, ignore_index = compute_dtype(logits.dtype), settings.ignore_index
    shape, classes = logits.shape, logits.shape[1]
    soft = target.is_floating_point()
    all_count = not soft and _all_count(target, classes, ignore_index)
    if strict and not soft and not all_count:
        check_index_values(target, classes, ignore_index)
    grad = torch.empty_like(logits) if with_grad else None
    rows = logits.new_empty(shape[:1] + shape[2:], dtype=dtype) if reduction == "none" else None
    scale = row_scale(target, weight, ignore_index, dtype, reduction, all_count)
    other = settings.label_smoothing / classes
    parts = list(chunks(logits, target, grad, rows))
    call = _Call(
        terms=Terms.of(eta, settings),
        weight=weight,
        own=1 - settings.label_smoothing + other,
        other=other,
        scale=scale,
        ignore_index=None if all_count else ignore_index,
        scratch=_Scratch() if len(parts) > 1 else None,
    )
    total: Tensor | None = None
    for x, y, out, place in parts:
        row, by_logits = (_soft_chunk if soft else _index_chunk)(call, x.to(dtype), y, out)
        if place is not None:
            place.copy_(row.squeeze(1))
        else:
            total = row.sum() if total is None else total + row.sum()
        if out is not None and by_logits is not None and out is not by_logits:
            out.copy_(by_logits)
    if rows is not None:
        return rows, grad
    return torch.as_tensor(0.0 * scale, dtype=dtype, device=logits.device) if total is None else total, grad


def sigmoid(
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
    """Loss and its gradient by the logits, of any shape; see ``native.sigmoid`` for the other tensors."""
    period = 1 if pos_weight is None or pos_weight.shape == logits.shape else pos_weight.numel()
    budget = CHUNK.get(logits.device.type, CHUNK_ELSEWHERE)
    step = max(1, budget // period)
    x, targets = logits.view(-1, period), target.view(-1, period)
    weights = None if weight is None else weight.view(-1, period)
    positives = pos_weight if pos_weight is None or period > 1 else pos_weight.view(-1, 1)
    gamma_pos, gamma_neg, gamma_hc, alpha, probability_margin, label_smoothing = settings
    terms = Sides(number(eta), gamma_pos, gamma_neg, gamma_hc, probability_margin)
    elements = torch.empty_like(targets) if reduction == "none" else None
    total = target.new_zeros(())
    grad = torch.empty_like(x) if with_grad else None
    scale = 1 / logits.numel() if reduction == "mean" and logits.numel() else 1.0
    for start in range(0, len(x), step):
        n = slice(start, start + step)
        yes = targets[n] * (1 - label_smoothing) + label_smoothing / 2
        no = 1 - yes
        if positives is not None:
            yes = yes * (positives if period > 1 else positives[n])
        if alpha is not None:
            yes, no = yes * alpha, no * (1 - alpha)
        if weights is not None:
            yes, no = yes * weights[n], no * weights[n]
        loss, slope = terms.of(x[n].to(target.dtype), yes, no, with_grad)
        if elements is not None:
            elements[n] = loss
        else:
            total += loss.sum()
        if grad is not None and slope is not None:
            grad[n] = slope.mul_(scale)
    grad = None if grad is None else grad.view(logits.shape)
    if elements is not None:
        return elements.view(logits.shape), grad
    return total / logits.numel() if reduction == "mean" else total, grad


def scale_(grad: Tensor, factor: Tensor) -> None:
    """Multiply a gradient in place by a 0-d tensor."""
    grad.mul_(factor)


def chunks(logits: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Parts of logits (N, C, ...), and of tensors of their shape or of that without C, whose buffers stay in cache.

    All are (N, C) or (N, C, positions): torch is fastest along a last dimension.
    """
    tensors = (logits, *others)
    batch, classes = logits.shape[:2]
    size = logits.shape[2:].numel()
    if logits.dim() > 2:
        rest, full = () if size == 1 else (size,), logits.dim()
        shapes = {full: (batch, classes, *rest), full - 1: (batch, *rest)}
        tensors = tuple(None if tensor is None else tensor.view(shapes[tensor.dim()]) for tensor in tensors)
    budget = CHUNK.get(logits.device.type, CHUNK_ELSEWHERE)
    if logits.numel() <= budget:
        if logits.numel():
            yield tensors
        return
    most = max(1, budget // classes)  # rows
    # Large samples are cut across: torch gives a thread some samples of every tensor, but of a single one either some
    # classes or some positions, by the operation, and what one core wrote the other would have to fetch.
    positions = min(size, most, max(STRETCH, most // batch))
    positions = -(-size // -(-size // positions))
    samples = max(1, most // positions)
    for n in range(0, batch, samples):
        for s in range(0, size, positions):
            part = slice(n, n + samples) if size == 1 else (slice(n, n + samples), ..., slice(s, s + positions))
            yield tuple(None if tensor is None else tensor[part] for tensor in tensors)


def _all_count(target: Tensor, classes: int, ignore_index: int) -> bool:
    """Whether surely every index is that of a class and none is ignored; False where asking would stall the device."""
    if target.device.type != "cpu" or 0 <= ignore_index < classes:
        return False
    if target.numel() == 0:
        return True
    low, high = torch.aminmax(target)
    return low.item() >= 0 and high.item() < classes


def row_scale(
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    dtype: torch.dtype,
    reduction: str,
    all_count: bool = False,
) -> Eta:
    """What the sum of the rows, and so the gradient, is multiplied by."""
    if reduction != "mean":
        return 1.0
    if all_count and weight is None:
        denominator: Eta = target.numel()
    else:
        denominator = number(softmax_denominator(target, weight, ignore_index))
    if isinstance(denominator, Tensor):
        return 1 / denominator.to(dtype)
    return 1 / denominator if denominator else torch.nan


class _Scratch(dict[str, Tensor]):
    """Memory for the large tensors of a chunk, by name: that of the chunk before, which is still in cache."""

    def room(self, name: str, like: Tensor) -> Tensor:
        """For a tensor of this shape; the first chunk is the largest."""
        if name not in self:
            self[name] = torch.empty_like(like, memory_format=torch.contiguous_format)
        room = self[name]
        return room if room.shape == like.shape else room.view(-1)[: like.numel()].view(like.shape)


class _Call(NamedTuple):
    """What is the same for all chunks."""

    terms: Terms
    weight: Tensor | None
    own: float
    """What label smoothing leaves to the true class."""
    other: float
    """What it gives to every other one."""
    scale: Eta
    ignore_index: int | None
    """None if every index is known to count."""
    scratch: _Scratch | None
    """None if there is one chunk only."""

    def room(self, name: str, like: Tensor) -> Tensor | None:
        """Where to put a tensor of this shape; None leaves it to torch."""
        return None if self.scratch is None else self.scratch.room(name, like)

    def exponentials(self, logits: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
        """The logits less the largest of their row, and e to these, in ``out`` if that fits."""
        x = torch.sub(logits, logits.amax(1, keepdim=True), out=self.room("x", logits))
        room = out if out is not None and out.dtype == x.dtype else self.room("e", x)
        # exp2 takes a third as long as exp, which would be half of what all of this takes
        return x, torch.mul(x, LOG2_E, out=room).exp2_()


def _soft_chunk(call: _Call, logits: Tensor, target: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Loss rows (N, 1, ...) and, unless ``out`` is None, the gradient, there if it fits. The target: probabilities."""
    x, e = call.exponentials(logits, out)
    total = e.sum(1, keepdim=True)
    log_p, p = x.sub_(total.log()), e.div_(total)
    own_terms, own_slopes, _ = call.terms.own(log_p, call.own)
    loss = target * own_terms.masked_fill_(target == 0, 0)
    slope = target * own_slopes
    if call.other:
        other_terms, other_slopes = call.terms.other(log_p)
        loss += call.other * (1 - target) * other_terms
        slope += call.other * (1 - target) * other_slopes
    if call.weight is not None:
        per_class = _along_classes(call.weight, log_p)
        loss, slope = loss * per_class, slope * per_class
    rows = loss.sum(1, keepdim=True) * -call.scale
    if out is None:
        return rows, None
    slope *= -call.scale
    return rows, torch.addcmul(slope, p, slope.sum(1, keepdim=True), value=-1, out=p)


def _index_chunk(call: _Call, logits: Tensor, target: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The same for class indices (N, ...)."""
    terms, weight = call.terms, call.weight
    own: Eta = -call.own * call.scale
    other: Eta = -call.other * call.scale
    classes, index = logits.shape[1], target.unsqueeze(1)
    x, e = call.exponentials(logits, out)
    total = e.sum(1, keepdim=True)
    s = total.log()
    place, ignored = index, None
    if call.ignore_index is not None:
        place, ignored = index.clamp(0, classes - 1), index == call.ignore_index
        own = own * torch.ones_like(total).masked_fill_((place != index) & ~ignored, torch.nan)
    if weight is not None:
        own = own * weight[place]
    rows, own_slopes, own_p = terms.own(x.gather(1, place) - s, own)
    slopes = own_slopes
    if call.other:
        count = classes - 1 if weight is None else weight.sum() - weight[place]
        per_class = None if weight is None else _along_classes(weight, x)
        shrink, zero = terms.shrink(total, other), torch.zeros_like(s)
        sums, focal, products = terms.sums(
            x, e, per_class, lambda of_classes: of_classes.scatter_(1, place, zero), call.room("focal", x)
        )
        slopes = terms.add_others(rows, own_slopes, sums, s, shrink, count, other)
    if ignored is not None:
        rows.masked_fill_(ignored, 0.0 * call.scale)  # nan if nothing counts at all, as in torch
    if out is None:
        return rows, None
    grad = e.mul_((slopes / total).neg_())
    if call.other:
        terms.spread(grad, focal, products, s, shrink, per_class, other)
    grad.scatter_(1, place, torch.addcmul(own_slopes, own_p, slopes, value=-1))
    return rows, grad if ignored is None else grad.masked_fill_(ignored, 0)


def _along_classes(weight: Tensor, log_p: Tensor) -> Tensor:
    return weight.view((1, -1) + (1,) * (log_p.dim() - 2))
