"""Loss and closed-form gradient in torch, for every device, in chunks that stay in cache.

With l = log p and h_j the derivative of the j-th term of the loss by l_j, the gradient by the logits is
h_k - p_k * sum_j h_j.

Index targets take few passes over the logits, because neither p nor l is ever stored (see ``terms``).
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cyclofocal.arguments import SigmoidSettings, SoftmaxSettings, check_index_values, compute_dtype
from cyclofocal.equation import Eta, softmax_denominator
from cyclofocal.kernels.terms import Scratch, SigmoidTerms, SoftmaxTerms, as_float_if_cpu

CHUNK_ELEMENTS = {"cpu": 2**20}  # on the CPU the two or three buffers of a chunk should stay in cache
CHUNK_ELEMENTS_ELSEWHERE = 2**24
SIGMOID_CHUNK_ELEMENTS = 2**16, 2**18  # on the CPU, of ten buffers: for each thread, and at most
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
    """Compute the loss and its gradient by the logits.

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
    none_ignored = not soft and _none_ignored(target, classes, ignore_index)
    if strict and not soft and not none_ignored:
        check_index_values(target, classes, ignore_index)
    grad = torch.empty_like(logits) if with_grad else None
    rows = logits.new_empty(shape[:1] + shape[2:], dtype=dtype) if reduction == "none" else None
    scale = row_scale(target, weight, ignore_index, dtype, reduction, none_ignored)
    non_target_prob = settings.label_smoothing / classes
    parts = list(chunks(logits, target, grad, rows))
    call = ChunkCall(
        terms=SoftmaxTerms.of(eta, settings),
        weight=weight,
        target_prob=1 - settings.label_smoothing + non_target_prob,
        non_target_prob=non_target_prob,
        scale=scale,
        ignore_index=None if none_ignored else ignore_index,
        scratch=Scratch() if len(parts) > 1 else None,
    )
    total: Tensor | None = None
    for x, y, out, losses in parts:
        row, by_logits = (_soft_chunk if soft else _index_chunk)(call, x.to(dtype), y, out)
        if losses is not None:
            losses.copy_(row.squeeze(1))
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
    """Compute loss and gradient of logits of any shape; see ``native.sigmoid`` for the other tensors."""
    period = 1 if pos_weight is None or pos_weight.shape == logits.shape else pos_weight.numel()
    budget = CHUNK_ELEMENTS_ELSEWHERE
    if logits.is_cpu:
        per_thread, most = SIGMOID_CHUNK_ELEMENTS
        budget = min(per_thread * torch.get_num_threads(), most)
    step = max(1, budget // period)
    x, targets = logits.view(-1, period), target.view(-1, period)
    weights = None if weight is None else weight.view(-1, period)
    positives = pos_weight if pos_weight is None or period > 1 else pos_weight.view(-1, 1)
    gamma_pos, gamma_neg, gamma_hc, alpha, probability_margin, label_smoothing = settings
    terms = SigmoidTerms(as_float_if_cpu(eta), gamma_pos, gamma_neg, gamma_hc, probability_margin)
    elements = torch.zeros_like(targets) if reduction == "none" else None
    total = target.new_full((), torch.nan if reduction == "mean" and not logits.numel() else 0.0)
    grad = torch.zeros_like(x) if with_grad else None
    scale = 1 / logits.numel() if reduction == "mean" and logits.numel() else 1.0
    scratch = Scratch()
    for start in range(0, len(x), step):
        n = slice(start, start + step)
        y = targets[n]
        pos = torch.mul(y, 1 - label_smoothing, out=scratch.buffer("pos", y)).add_(label_smoothing / 2)
        neg = torch.sub(1, pos, out=scratch.buffer("neg", y))
        if positives is not None:
            pos *= positives if period > 1 else positives[n]
        pos *= scale if alpha is None else scale * alpha
        neg *= scale if alpha is None else scale * (1 - alpha)
        if weights is not None:
            pos *= weights[n]
            neg *= weights[n]
        loss = elements[n] if elements is not None else scratch.buffer("loss", y).zero_()
        part = None if grad is None else grad[n]
        by_logits = part if part is None or part.dtype == y.dtype else scratch.buffer("grad", y).zero_()
        terms.add_loss_and_grad(x[n].to(y.dtype), pos, neg, loss, by_logits, scratch)
        if elements is None:
            total += loss.sum()
        if part is not None and by_logits is not None and by_logits is not part:
            part.copy_(by_logits)
    grad = None if grad is None else grad.view(logits.shape)
    return total if elements is None else elements.view(logits.shape), grad


def scale_(grad: Tensor, factor: Tensor) -> None:
    """Multiply a gradient in place by a 0-d tensor."""
    grad.mul_(factor)


def chunks(logits: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Yield parts, small enough for the cache, of logits (N, C, ...) and of tensors of that shape or the one without C.

    All are (N, C) or (N, C, positions): torch is fastest along a last dimension.
    """
    tensors = (logits, *others)
    batch, classes = logits.shape[:2]
    size = logits.shape[2:].numel()
    if logits.dim() > 2:
        rest, full = () if size == 1 else (size,), logits.dim()
        shapes = {full: (batch, classes, *rest), full - 1: (batch, *rest)}
        tensors = tuple(None if tensor is None else tensor.view(shapes[tensor.dim()]) for tensor in tensors)
    budget = CHUNK_ELEMENTS.get(logits.device.type, CHUNK_ELEMENTS_ELSEWHERE)
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


def _none_ignored(target: Tensor, classes: int, ignore_index: int) -> bool:
    """Return True if every target is known to be a class; False where reading would stall the device."""
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
    none_ignored: bool = False,
) -> Eta:
    """Return the factor of the sum of the rows, and so of the gradient."""
    if reduction != "mean":
        return 1.0
    if none_ignored and weight is None:
        denominator: Eta = target.numel()
    else:
        denominator = as_float_if_cpu(softmax_denominator(target, weight, ignore_index))
    if isinstance(denominator, Tensor):
        return 1 / denominator.to(dtype)
    return 1 / denominator if denominator else torch.nan


class ChunkCall(NamedTuple):
    """Arguments that all chunks share."""

    terms: SoftmaxTerms
    weight: Tensor | None
    target_prob: float
    """Smoothed target probability of the true class."""
    non_target_prob: float
    """Smoothed target probability of every other class."""
    scale: Eta
    ignore_index: int | None
    """None if every index is known to count."""
    scratch: Scratch | None
    """None if there is one chunk only."""

    def buffer(self, name: str, like: Tensor) -> Tensor | None:
        """Return memory for a tensor of this shape; None if torch should allocate it."""
        return None if self.scratch is None else self.scratch.buffer(name, like)

    def exponentials(self, logits: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the logits less the row's largest, and e to that power, in ``out`` if that fits."""
        x = torch.sub(logits, logits.amax(1, keepdim=True), out=self.buffer("x", logits))
        buffer = out if out is not None and out.dtype == x.dtype else self.buffer("e", x)
        # exp2 takes a third as long as exp, which would be half of what all of this takes
        return x, torch.mul(x, LOG2_E, out=buffer).exp2_()


def _soft_chunk(call: ChunkCall, logits: Tensor, target: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Compute losses (N, 1, ...) for probabilities and, unless ``out`` is None, the gradient, in ``out`` if it fits."""
    x, e = call.exponentials(logits, out)
    sum_exp = e.sum(1, keepdim=True)
    log_p, p = x.sub_(sum_exp.log()), e.div_(sum_exp)
    target_terms, target_d_log_p, _ = call.terms.target(log_p, call.target_prob)
    loss = target * target_terms.masked_fill_(target == 0, 0)
    d_log_p = target * target_d_log_p
    if call.non_target_prob:
        non_target_terms, non_target_d_log_p = call.terms.non_target(log_p)
        loss += call.non_target_prob * (1 - target) * non_target_terms
        d_log_p += call.non_target_prob * (1 - target) * non_target_d_log_p
    if call.weight is not None:
        per_class = _along_classes(call.weight, log_p)
        loss, d_log_p = loss * per_class, d_log_p * per_class
    rows = loss.sum(1, keepdim=True) * -call.scale
    if out is None:
        return rows, None
    d_log_p *= -call.scale
    return rows, torch.addcmul(d_log_p, p, d_log_p.sum(1, keepdim=True), value=-1, out=p)


def _index_chunk(call: ChunkCall, logits: Tensor, target: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Compute what ``_soft_chunk`` computes, for class indices (N, ...)."""
    terms, weight = call.terms, call.weight
    target_factor: Eta = -call.target_prob * call.scale
    non_target_factor: Eta = -call.non_target_prob * call.scale
    classes, index = logits.shape[1], target.unsqueeze(1)
    x, e = call.exponentials(logits, out)
    sum_exp = e.sum(1, keepdim=True)
    lse = sum_exp.log()
    safe_index, ignored = index, None
    if call.ignore_index is not None:
        safe_index, ignored = index.clamp(0, classes - 1), index == call.ignore_index
        unknown = (safe_index != index) & ~ignored
        target_factor = target_factor * torch.ones_like(sum_exp).masked_fill_(unknown, torch.nan)
    if weight is not None:
        target_factor = target_factor * weight[safe_index]
    rows, target_d_log_p, target_p = terms.target(x.gather(1, safe_index) - lse, target_factor)
    sum_d_log_p = target_d_log_p
    if call.non_target_prob:
        count = classes - 1 if weight is None else weight.sum() - weight[safe_index]
        per_class = None if weight is None else _along_classes(weight, x)
        power_scale, zero = terms.power_scale(sum_exp, non_target_factor), torch.zeros_like(lse)
        sums, focal, products = terms.row_sums(
            x, e, per_class, lambda of_classes: of_classes.scatter_(1, safe_index, zero), call.buffer("focal", x)
        )
        sum_d_log_p = terms.add_non_target_rows(rows, target_d_log_p, sums, lse, power_scale, count, non_target_factor)
    if ignored is not None:
        rows.masked_fill_(ignored, 0.0 * call.scale)  # nan if nothing counts at all, as in torch
    if out is None:
        return rows, None
    grad = e.mul_((sum_d_log_p / sum_exp).neg_())
    if call.non_target_prob:
        terms.add_non_target_grad(grad, focal, products, lse, power_scale, per_class, non_target_factor)
    grad.scatter_(1, safe_index, torch.addcmul(target_d_log_p, target_p, sum_d_log_p, value=-1))
    return rows, grad if ignored is None else grad.masked_fill_(ignored, 0)


def _along_classes(weight: Tensor, log_p: Tensor) -> Tensor:
    return weight.view((1, -1) + (1,) * (log_p.dim() - 2))
