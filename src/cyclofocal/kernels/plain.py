"""Loss and closed-form gradient in torch: for every device, in chunks that stay in cache.

With l = log p and h_j the derivative of the j-th term of the loss by l_j, the gradient by the logits is
h_k - p_k * sum_j h_j.

Index targets take few passes over the logits, because neither p nor l is ever written down. With x the logit less the
row's largest, s = log sum_j exp(x_j), and g for gamma_neg, all that the other classes add follows from sums that know
nothing of s:

    sum p^g = exp(-g s) * sum exp(g x)        sum p^g l = exp(-g s) * (sum exp(g x) x  -  s * sum exp(g x))

Both parts of the difference have the same sign: nothing cancels.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cyclofocal.arguments import check_index_values
from cyclofocal.equation import Eta, other_term, power, softmax_denominator

CHUNK = {"cpu": 2**20}  # elements; on the CPU the two or three buffers of a chunk should stay in cache
CHUNK_ELSEWHERE = 2**24
STRETCH = 4096  # positions side by side that are worth a loop
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
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    shape, batch, classes = logits.shape, logits.shape[0], logits.shape[1]
    soft = target.is_floating_point()
    all_count = not soft and _all_count(target, classes, ignore_index)
    if strict and not soft and not all_count:
        check_index_values(target, classes, ignore_index)
    if len(shape) > 2:
        size = shape[2:].numel()
        positions = () if size == 1 else (size,)  # torch is fastest along a last dimension
        logits = logits.view(batch, classes, *positions)
        target = target.view(logits.shape if soft else (batch, *positions))
    grad = torch.empty_like(logits) if with_grad else None
    rows = logits.new_empty(logits.shape[:1] + logits.shape[2:], dtype=dtype) if reduction == "none" else None
    scale = _scale(target, weight, ignore_index, shape[:1].numel() * shape[2:].numel(), dtype, reduction, all_count)
    other = label_smoothing / classes
    chunks = list(_chunks(logits, target, grad, rows))
    terms, scratch = _Terms.of(eta, gamma_pos, gamma_neg, gamma_hc), _Scratch() if len(chunks) > 1 else None
    call = _Call(terms, weight, 1 - label_smoothing + other, other, scale, None if all_count else ignore_index, scratch)
    total: Tensor | None = None
    for x, y, out, place in chunks:
        row, by_logits = (_soft_chunk if soft else _index_chunk)(call, x.to(dtype), y, out)
        if place is not None:
            place.copy_(row.squeeze(1))
        else:
            total = row.sum() if total is None else total + row.sum()
        if out is not None and by_logits is not None and out is not by_logits:
            out.copy_(by_logits)
    if len(shape) > 2:
        grad, rows = (
            None if grad is None else grad.view(shape),
            None if rows is None else rows.view(shape[:1] + shape[2:]),
        )
    if rows is not None:
        return rows, grad
    return torch.as_tensor(0.0 * scale, dtype=dtype, device=logits.device) if total is None else total, grad


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


def _chunks(logits: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Parts of logits (N, C) or (N, C, positions) and of tensors of their shape or of that without C."""
    batch, classes = logits.shape[:2]
    size = logits.shape[2:].numel()
    budget = CHUNK.get(logits.device.type, CHUNK_ELSEWHERE)
    if logits.numel() <= budget:
        if logits.numel():
            yield logits, *others
        return
    most = max(1, budget // classes)  # rows
    # Large samples are cut across: torch gives a thread some samples of every tensor, but of a single one either some
    # classes or some positions, by the operation, and what one core wrote the other would have to fetch.
    positions = min(size, most, max(STRETCH, most // batch))
    positions = -(-size // -(-size // positions))
    samples = max(1, most // positions)
    for n in range(0, batch, samples):
        for s in range(0, size, positions):
            part = slice(n, n + samples) if logits.dim() == 2 else (slice(n, n + samples), ..., slice(s, s + positions))
            yield tuple(None if tensor is None else tensor[part] for tensor in (logits, *others))


def _all_count(target: Tensor, classes: int, ignore_index: int) -> bool:
    """Whether surely every index is that of a class and none is ignored; False where asking would stall the device."""
    if target.device.type != "cpu" or 0 <= ignore_index < classes:
        return False
    if target.numel() == 0:
        return True
    low, high = torch.aminmax(target)
    return low.item() >= 0 and high.item() < classes


def _scale(
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    rows: int,
    dtype: torch.dtype,
    reduction: str,
    all_count: bool = False,
) -> Eta:
    """What the sum of the rows, and so the gradient, is multiplied by."""
    if reduction != "mean":
        return 1.0
    if all_count and weight is None:
        denominator: Eta = rows
    else:
        denominator = _number(softmax_denominator(target, weight, ignore_index, rows))
    if isinstance(denominator, Tensor):
        return 1 / denominator.to(dtype)
    return 1 / denominator if denominator else torch.nan


def _number(value: Eta) -> Eta:
    """A Python float where reading it stalls nothing: torch is quicker with it."""
    return value.item() if isinstance(value, Tensor) and value.device.type == "cpu" else value


def _may_be_infinite(sums: Tensor) -> bool:
    """Whether one may be -inf, or nan; always, where asking would stall the device."""
    return sums.device.type != "cpu" or not sums.min().item() > -torch.inf


class _Terms(NamedTuple):
    """The two kinds of terms of the loss and their derivatives by log p."""

    eta: Eta
    gamma_pos: float
    gamma_neg: float
    gamma_hc: float

    @classmethod
    def of(cls, eta: Eta, gamma_pos: float, gamma_neg: float, gamma_hc: float) -> "_Terms":
        """A gamma_neg so small that p^gamma_neg is 1 counts as 0: the sums below are divided by it."""
        return cls(_number(eta), gamma_pos, gamma_neg if gamma_neg > 1e-20 else 0.0, gamma_hc)

    def own(self, log_p: Tensor, factor: Eta) -> tuple[Tensor, Tensor, Tensor]:
        """``factor`` times term and derivative of the target class, and its p."""
        finite = log_p.clamp(min=torch.finfo(log_p.dtype).min)  # p * log p is 0 at p = 0
        p, not_p = finite.exp(), torch.expm1(finite).neg_()
        focal, steep = self._focal(not_p)
        twice = 1 + p
        easy_steep = twice ** (self.gamma_hc - 1)
        weight = torch.lerp(focal, easy_steep * twice, self.eta).mul_(factor)
        by_log_p = p * finite
        slope = _add_product(weight, easy_steep, by_log_p, self.eta * self.gamma_hc * factor)
        slope = _add_product(slope, steep, by_log_p, (self.eta - 1) * self.gamma_pos * factor)
        return weight * log_p, slope, p

    def _focal(self, not_p: Tensor) -> tuple[Tensor, Tensor]:
        """(1-p)^gamma and (1-p)^(gamma-1), the latter times log p with its limit 0 at p = 1 also for gamma < 1."""
        if self.gamma_pos == 2:
            return not_p * not_p, not_p
        if self.gamma_pos >= 1:
            steep = not_p ** (self.gamma_pos - 1)
            return steep * not_p, steep
        focal = power(not_p, self.gamma_pos)
        return focal, torch.where(not_p == 0, 0.0, focal / not_p)

    def other(self, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """Term and derivative of any other class."""
        term = other_term(log_p, self.eta, self.gamma_neg)
        if self.gamma_neg == 0:
            return term, torch.ones_like(log_p)
        finite = log_p.clamp(min=torch.finfo(log_p.dtype).min)
        focal = (self.gamma_neg * finite).exp()
        return term, (1 - self.eta) * focal * (1 + self.gamma_neg * finite) + self.eta

    # From here on all other classes at once, in the symbols of this file's head. A class's focal factor is exp(g x),
    # times its weight if there are class weights.

    @property
    def level(self) -> Eta:
        """What every derivative tends to as p tends to 0."""
        return self.eta if self.gamma_neg else 1.0

    def sums(
        self,
        x: Tensor,
        e: Tensor,
        per_class: Tensor | None,
        clear: Callable[[Tensor], Tensor],
        room: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor | None, Tensor]:
        """Row sums of x, the focal factors and their products; and both the latter, which are None and x for g = 0.

        Args:
            x: (N, C, ...), overwritten by the products.
            e: exp(x).
            per_class: class weights that broadcast to x, or None.
            clear: puts 0 at every target.
            room: where to put the focal factors.
        """
        sums = [_sum(clear(x), per_class)]
        if not self.gamma_neg:
            return sums, None, x
        squares = self.gamma_neg == 2
        focal = clear(torch.mul(e, e, out=room) if squares else torch.mul(x, self.gamma_neg, out=room).exp_())
        focal = focal if per_class is None else focal.mul_(per_class)
        if _may_be_infinite(sums[0]):
            x.clamp_(min=torch.finfo(x.dtype).min)  # p * log p is 0 at p = 0
        products = x.mul_(focal)
        return [*sums, _sum(focal), _sum(products)], focal, products

    def shrink(self, total: Tensor, factor: Eta) -> Tensor:
        """``factor`` (1 - eta) g exp(-g s), which focal factors are multiplied by. ``total`` is exp(s)."""
        return total.pow(-self.gamma_neg).mul_((1 - self.eta) * self.gamma_neg * factor)

    def add_others(
        self,
        rows: Tensor,
        slopes: Tensor,
        sums: list[Tensor],
        s: Tensor,
        shrink: Tensor,
        count: Tensor | int,
        factor: Eta,
    ) -> Tensor:
        """Add ``factor`` times the terms to ``rows``, and return the same of their derivatives and ``slopes``.

        Args:
            rows, slopes, s, shrink: (N, 1, ...).
            sums: from ``sums``, over all classes.
            count: of the other classes, or their weights' sum.
        """
        level = self.level * factor
        easy = torch.sub(sums[0], s, alpha=count) if isinstance(count, int) else sums[0] - s * count
        if isinstance(level, Tensor):
            rows.add_(torch.where(level == 0, 0.0, level * easy))  # masked classes make it infinite
        elif level:
            rows.add_(easy, alpha=level)
        slopes = slopes + level * count
        if not self.gamma_neg:
            return slopes
        _, focal, products = sums
        hard = torch.addcmul(products, s, focal, value=-1)
        rows.addcmul_(shrink, hard, value=1 / self.gamma_neg)
        return slopes.addcmul_(shrink, torch.add(hard, focal, alpha=1 / self.gamma_neg))

    def spread(
        self,
        grad: Tensor,
        focal: Tensor | None,
        products: Tensor,
        s: Tensor,
        shrink: Tensor,
        per_class: Tensor | None,
        factor: Eta,
    ) -> None:
        """Add ``factor`` times every derivative to ``grad``; overwrites ``products``."""
        if focal is not None:
            grad.addcmul_(products.addcmul_(focal, 1 / self.gamma_neg - s), shrink)
        level = self.level * factor
        grad.add_(level if per_class is None else level * per_class)


def _add_product(base: Tensor, a: Tensor, b: Tensor, factor: Eta) -> Tensor:
    return torch.addcmul(base, a * factor, b) if isinstance(factor, Tensor) else torch.addcmul(base, a, b, value=factor)


def _sum(terms: Tensor, per_class: Tensor | None = None) -> Tensor:
    return (terms if per_class is None else terms * per_class).sum(1, keepdim=True)


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

    terms: _Terms
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
