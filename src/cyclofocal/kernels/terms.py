"""The terms of both losses and their derivatives, in torch.

Of the softmax loss all that the other classes add to a row follows from few sums. With x the logit less the row's
largest, s = log sum_j exp(x_j), p = exp(x - s), l = log p, and g for gamma_neg, the sums know nothing of s:

    sum p^g = exp(-g s) * sum exp(g x)        sum p^g l = exp(-g s) * (sum exp(g x) x  -  s * sum exp(g x))

Both parts of the difference have the same sign: nothing cancels.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cyclofocal.arguments import SoftmaxSettings
from cyclofocal.equation import Eta, other_term, power


def number(value: Eta) -> Eta:
    """A Python float where reading it stalls nothing: torch is quicker with it."""
    return value.item() if isinstance(value, Tensor) and value.device.type == "cpu" else value


def _may_be_infinite(sums: Tensor) -> bool:
    """Whether one may be -inf, or nan; always, where asking would stall the device."""
    return sums.device.type != "cpu" or not sums.min().item() > -torch.inf


class Terms(NamedTuple):
    """The two kinds of terms of the loss and their derivatives by log p."""

    eta: Eta
    gamma_pos: float
    gamma_neg: float
    gamma_hc: float

    @classmethod
    def of(cls, eta: Eta, settings: SoftmaxSettings) -> "Terms":
        """A gamma_neg so small that p^gamma_neg is 1 counts as 0: the sums below are divided by it."""
        gamma_neg = settings.gamma_neg if settings.gamma_neg > 1e-20 else 0.0
        return cls(number(eta), settings.gamma_pos, gamma_neg, settings.gamma_hc)

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

    def factors(
        self,
        x: Tensor,
        e: Tensor,
        per_class: Tensor | None,
        clear: Callable[[Tensor], Tensor],
        room: Tensor | None = None,
        masked: bool = True,
    ) -> tuple[Tensor | None, Tensor]:
        """The focal factors, and their products with x; None and x for g = 0.

        Args:
            x: (N, C, ...), overwritten by the products.
            e: exp(x).
            per_class: class weights that broadcast to x, or None.
            clear: puts 0 at every target.
            room: where to put the focal factors.
            masked: whether an x may be -inf.
        """
        if not self.gamma_neg:
            return None, x
        squares = self.gamma_neg == 2
        focal = clear(torch.mul(e, e, out=room) if squares else torch.mul(x, self.gamma_neg, out=room).exp_())
        focal = focal if per_class is None else focal.mul_(per_class)
        if masked:
            x.clamp_(min=torch.finfo(x.dtype).min)  # p * log p is 0 at p = 0
        return focal, x.mul_(focal)

    def sums(
        self,
        x: Tensor,
        e: Tensor,
        per_class: Tensor | None,
        clear: Callable[[Tensor], Tensor],
        room: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor | None, Tensor]:
        """Row sums of x and of both ``factors``, as far as there are any; and these."""
        of_x = _sum(clear(x), per_class)
        focal, products = self.factors(x, e, per_class, clear, room, masked=_may_be_infinite(of_x))
        return [of_x] if focal is None else [of_x, _sum(focal), _sum(products)], focal, products

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


class Sides(NamedTuple):
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
