"""Loss and closed-form gradient in torch: for every device, in chunks that stay in cache.

With l = log p and h_j the derivative of the j-th term of the loss by l_j, the gradient by the logits is
h_k - p_k * sum_j h_j.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cyclofocal.equation import Eta, other_term, power, softmax_denominator

CHUNK = {"cpu": 2**20}  # elements; on the CPU the two or three buffers of a chunk should stay in cache
CHUNK_ELSEWHERE = 2**24
LOG2_E = 1 / math.log(2)


def softmax(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    eta: Eta,
    gamma_pos: float,
    gamma_neg: float,
    gamma_hc: float,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Loss and its gradient by the logits.

    Args:
        logits: (N, C, ...), contiguous like every other tensor.
        target: int64 (N, ...), or probabilities (N, C, ...) in the dtype computed in (float32, float64 for float64).
        weight: (C,) in that dtype, or None.
        with_grad: False leaves the gradient out.

    Returns:
        The loss in that dtype, (N, ...) for reduction "none" and 0-d otherwise; the gradient like ``logits``, divided
        by the mean's denominator, or None. An index target out of range makes nan of its row.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    shape, batch, classes = logits.shape, logits.shape[0], logits.shape[1]
    size = shape[2:].numel()
    logits = logits.view(batch, classes, size)
    target = target.view(logits.shape if target.is_floating_point() else (batch, size))
    rows = logits.new_empty(batch, size, dtype=dtype) if reduction == "none" else None
    total: Tensor | float = 0.0
    grad = torch.empty_like(logits) if with_grad else None
    scale = _scale(target, weight, ignore_index, batch * size, dtype, reduction)
    terms = _Terms(_number(eta), gamma_pos, gamma_neg, gamma_hc)
    smoothing = (1 - label_smoothing + label_smoothing / classes, label_smoothing / classes)
    for n, s in _chunks(logits):
        place = (n, s) if size > 1 else (n, 0)  # 2-d without positions: torch is fastest along a last dimension
        out = None if grad is None else grad[n, :, place[1]]
        log_p, p = _softmax(logits[n, :, place[1]].to(dtype), out)
        if target.is_floating_point():
            chunk = _soft_chunk(terms, log_p, target[n, :, place[1]], weight, smoothing, scale)
        else:
            chunk = _index_chunk(terms, log_p, p, target[place].unsqueeze(1), weight, smoothing, scale, ignore_index)
        row, slope, unasked = chunk
        if rows is None:
            total = total + row.sum()
        else:
            rows[place] = row.squeeze(1)
        if out is not None:
            by_logits = torch.addcmul(slope, p, slope.sum(1, keepdim=True), value=-1, out=p)
            if unasked is not None:
                by_logits.masked_fill_(unasked, 0)
            if by_logits is not out:
                out.copy_(by_logits)
    grad = None if grad is None else grad.view(shape)
    if rows is not None:
        return rows.view(shape[:1] + shape[2:]), grad
    return torch.as_tensor(total * scale, dtype=dtype, device=logits.device), grad


def sigmoid(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    eta: Eta,
    gamma_pos: float,
    gamma_neg: float,
    gamma_hc: float,
    alpha: float | None,
    probability_margin: float,
    label_smoothing: float,
    reduction: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Loss and its gradient by the logits, of any shape; see ``native.sigmoid`` for the other tensors."""
    period = 1 if pos_weight is None or pos_weight.shape == logits.shape else pos_weight.numel()
    budget = CHUNK.get(logits.device.type, CHUNK_ELSEWHERE)
    step = max(1, budget // period)
    x, targets = logits.view(-1, period), target.view(-1, period)
    weights = None if weight is None else weight.view(-1, period)
    positives = pos_weight if pos_weight is None or period > 1 else pos_weight.view(-1, 1)
    terms = _Sides(_number(eta), gamma_pos, gamma_neg, gamma_hc, probability_margin)
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


class _Sides(NamedTuple):
    """Loss of yes-or-no logits, and its derivative."""

    eta: Eta
    gamma_pos: float
    gamma_neg: float
    gamma_hc: float
    margin: float

    def of(self, x: Tensor, yes: Tensor, no: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        """``yes`` and ``no`` are the factors of the two sides."""
        log_p, log_not_p = F.logsigmoid(x), F.logsigmoid(-x)
        p, not_p = log_p.exp(), log_not_p.exp()
        slope = p * not_p  # dp/dx
        focal = (self.gamma_pos * log_not_p).exp()
        weight = self._mix(focal, 1 + p)
        loss = -yes * weight * log_p
        grad = None
        if with_grad:
            by_x = self.eta * self._easy_slope(1 + p) * slope - (1 - self.eta) * self.gamma_pos * focal * p
            grad = -yes * (weight * not_p + by_x * log_p)

        if self.margin:
            p = (p - self.margin).clamp_(min=0)
            slope = torch.where(p > 0, slope, 0.0)
            log_not_p, focal = torch.log1p(-p), power(p, self.gamma_neg)
            focal_slope = self.gamma_neg * torch.where(p > 0, focal / torch.where(p > 0, p, 1.0), 0.0) * slope
            log_slope = slope / (1 - p)
        else:
            focal = (self.gamma_neg * log_p).exp()
            focal_slope, log_slope = self.gamma_neg * focal * not_p, p
        weight = self._mix(focal, 2 - p)
        loss -= no * weight * log_not_p
        if grad is not None:
            by_x = (1 - self.eta) * focal_slope - self.eta * self._easy_slope(2 - p) * slope
            grad -= no * (by_x * log_not_p - weight * log_slope)
        return loss, grad

    def _mix(self, focal: Tensor, twice: Tensor) -> Tensor:
        return focal + self.eta * (twice**self.gamma_hc - focal)

    def _easy_slope(self, twice: Tensor) -> Tensor:
        return self.gamma_hc * twice ** (self.gamma_hc - 1)


def _softmax(x: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """log p and p, the latter in ``out`` if it fits, in passes that each stay in cache."""
    log_p = x - x.amax(1, keepdim=True)
    # exp2 takes half as long as exp, which is half of what all of this takes
    p = torch.mul(log_p, LOG2_E, out=out if out is not None and out.dtype == x.dtype else None).exp2_()
    total = p.sum(1, keepdim=True)
    return log_p.sub_(total.log()), p.mul_(total.reciprocal())


def _chunks(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of the batch and, where one sample is large already, of its positions."""
    batch, classes, size = logits.shape
    budget = CHUNK.get(logits.device.type, CHUNK_ELSEWHERE)
    positions = max(1, min(size, budget // classes))
    samples = max(1, budget // (classes * positions)) if positions == size else 1
    for n in range(0, batch, samples):
        for s in range(0, size, positions):
            yield slice(n, n + samples), slice(s, s + positions)


def _scale(
    target: Tensor, weight: Tensor | None, ignore_index: int, rows: int, dtype: torch.dtype, reduction: str
) -> Eta:
    """What the sum of the rows, and so the gradient, is multiplied by."""
    if reduction != "mean":
        return 1.0
    denominator = _number(softmax_denominator(target, weight, ignore_index, rows))
    if isinstance(denominator, Tensor):
        return 1 / denominator.to(dtype)
    return 1 / denominator if denominator else torch.nan


def _number(value: Eta) -> Eta:
    """A Python float where reading it stalls nothing: torch is quicker with it."""
    return value.item() if isinstance(value, Tensor) and value.device.type == "cpu" else value


def _may(condition: Tensor | bool) -> bool:
    """Whether a condition may hold anywhere; always, where asking would stall the device."""
    if isinstance(condition, Tensor):
        return condition.device.type != "cpu" or bool(condition.any())
    return condition


class _Terms(NamedTuple):
    """The two kinds of terms of the loss and their derivatives by log p."""

    eta: Eta
    gamma_pos: float
    gamma_neg: float
    gamma_hc: float

    def own(self, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """Term and derivative of the target class."""
        finite = log_p.clamp(min=torch.finfo(log_p.dtype).min)  # p * log p is 0 at p = 0
        p, not_p = finite.exp(), -torch.expm1(finite)
        focal, steep = self._focal(not_p)
        twice = 1 + p
        easy_steep = twice ** (self.gamma_hc - 1)
        easy = easy_steep * twice
        weight = torch.lerp(focal, easy, self.eta)
        slope = self.eta * self.gamma_hc * easy_steep - (1 - self.eta) * self.gamma_pos * steep
        return weight * log_p, torch.addcmul(weight, slope * p, finite)

    def _focal(self, not_p: Tensor) -> tuple[Tensor, Tensor]:
        """(1-p)^gamma and (1-p)^(gamma-1), the latter times log p with its limit 0 at p = 1 also for gamma < 1."""
        if self.gamma_pos >= 1:
            steep = not_p ** (self.gamma_pos - 1)
            return steep * not_p, steep
        focal = power(not_p, self.gamma_pos)
        return focal, torch.where(not_p == 0, 0.0, focal / not_p)

    def other(self, log_p: Tensor) -> tuple[Tensor, Tensor]:
        term = other_term(log_p, self.eta, self.gamma_neg)
        if self.gamma_neg == 0:
            return term, torch.ones_like(log_p)
        finite = log_p.clamp(min=torch.finfo(log_p.dtype).min)
        focal = (self.gamma_neg * finite).exp()
        return term, (1 - self.eta) * focal * (1 + self.gamma_neg * finite) + self.eta

    def others(self, log_p: Tensor, p: Tensor, per_class: Tensor | None, factor: Eta) -> tuple[Tensor, Tensor]:
        """Row sums of the other classes' terms, and ``factor`` times their derivatives; overwrites log_p."""
        sums = self._sum(log_p, per_class)
        if self.gamma_neg == 0:
            slope = log_p.zero_().add_(factor)
        else:
            if _may(_number(sums.min()) == -torch.inf):
                log_p.clamp_(min=torch.finfo(p.dtype).min)  # p * log p is 0 at p = 0
            if self.gamma_neg == 2:
                hard = self._sum(log_p.mul_(p).mul_(p), per_class)
                slope = torch.addcmul(log_p, p, p, value=0.5, out=log_p).mul_(2 * (1 - self.eta) * factor)
            else:
                focal = (self.gamma_neg * log_p).exp_()
                hard = self._sum(log_p.mul_(focal), per_class)
                slope = focal.add_(log_p, alpha=self.gamma_neg).mul_((1 - self.eta) * factor)
            slope.add_(self.eta * factor)
            easy = self.eta * sums if _may(self.eta > 0) else 0.0
            easy = torch.where(self.eta > 0, easy, 0.0) if isinstance(self.eta, Tensor) else easy
            sums = (1 - self.eta) * hard + easy
        return sums, slope if per_class is None else slope.mul_(per_class)

    def _sum(self, terms: Tensor, per_class: Tensor | None) -> Tensor:
        return (terms if per_class is None else terms * per_class).sum(1, keepdim=True)


Chunk = tuple[Tensor, Tensor, Tensor | None]
"""Loss rows, their scaled derivatives by log p, and the mask of rows that nothing is asked of, or None."""


def _soft_chunk(
    terms: _Terms, log_p: Tensor, target: Tensor, weight: Tensor | None, smoothing: tuple[float, float], scale: Eta
) -> Chunk:
    """A chunk with probabilities as targets."""
    own, other = smoothing
    own_terms, own_slopes = terms.own(log_p)
    loss = own * target * own_terms.masked_fill_(target == 0, 0)
    slope = own * target * own_slopes
    if other:
        other_terms, other_slopes = terms.other(log_p)
        loss += other * (1 - target) * other_terms
        slope += other * (1 - target) * other_slopes
    if weight is not None:
        per_class = _along_classes(weight, log_p)
        loss, slope = loss * per_class, slope * per_class
    return -loss.sum(1, keepdim=True), -slope * scale, None


def _index_chunk(
    terms: _Terms,
    log_p: Tensor,
    p: Tensor,
    index: Tensor,
    weight: Tensor | None,
    smoothing: tuple[float, float],
    scale: Eta,
    ignore_index: int,
) -> Chunk:
    """A chunk with class indices: few passes over its elements, everything else over its rows. Overwrites log_p."""
    factor: Tensor | float
    factor, other = smoothing
    classes = log_p.shape[1]
    place = index.clamp(0, classes - 1)
    unasked, wrong = None, place != index
    if _may(wrong) or 0 <= ignore_index < classes:
        unasked = index == ignore_index
        factor = log_p.new_full(index.shape, factor).masked_fill_(wrong & ~unasked, torch.nan)
    if weight is not None:
        factor = factor * weight[place]
    own_terms, own_slopes = terms.own(log_p.gather(1, place))
    rows = own_terms * -factor
    if other == 0:
        slope = log_p.zero_()
    else:
        log_p.scatter_(1, place, 0.0)  # so that the sums are over the other classes
        per_class = None if weight is None else _along_classes(weight, log_p)
        sums, slope = terms.others(log_p, p, per_class, -other * scale)
        rows.sub_(sums, alpha=other)
    slope.scatter_(1, place, own_slopes * (-factor * scale))
    return rows if unasked is None else rows.masked_fill_(unasked, 0), slope, unasked


def _along_classes(weight: Tensor, log_p: Tensor) -> Tensor:
    return weight.view((1, -1) + (1,) * (log_p.dim() - 2))
