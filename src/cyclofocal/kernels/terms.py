"""Terms of both losses and their derivatives, in torch.

In the softmax loss, everything that the non-target classes add to a row follows from few sums. With x the logit less
the row's largest, s = log sum_j exp(x_j), p = exp(x - s), l = log p, and g for gamma_neg, the sums do not depend on s:

    sum p^g = exp(-g s) * sum exp(g x)        sum p^g l = exp(-g s) * (sum exp(g x) x  -  s * sum exp(g x))

Both parts of the difference have the same sign: nothing cancels.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cyclofocal.arguments import SoftmaxSettings
from cyclofocal.equation import Eta, non_target_term, power


def as_float_if_cpu(value: Eta) -> Eta:
    """Return a Python float where reading stalls nothing: torch is faster with it."""
    return value.item() if isinstance(value, Tensor) and value.device.type == "cpu" else value


def _may_be_infinite(sums: Tensor) -> bool:
    """Return True if a sum may be -inf or nan; always, where reading would stall the device."""
    return sums.device.type != "cpu" or not sums.min().item() > -torch.inf


class Scratch(dict[str, Tensor]):
    """Memory for the large tensors of a chunk, by name; reused from chunk to chunk, as it is still in cache."""

    def buffer(self, name: str, like: Tensor) -> Tensor:
        """Return memory for a tensor of this shape; the first chunk is the largest."""
        if name not in self:
            self[name] = torch.empty_like(like, memory_format=torch.contiguous_format)
        buffer = self[name]
        return buffer if buffer.shape == like.shape else buffer.view(-1)[: like.numel()].view(like.shape)


class SoftmaxTerms(NamedTuple):
    """Target and non-target terms of the softmax loss, and their derivatives by log p."""

    eta: Eta
    gamma_pos: float
    gamma_neg: float
    gamma_hc: float

    @classmethod
    def of(cls, eta: Eta, settings: SoftmaxSettings) -> "SoftmaxTerms":
        """Make terms of settings; a gamma_neg so small that p^gamma_neg is 1 becomes 0, as sums are divided by it."""
        gamma_neg = settings.gamma_neg if settings.gamma_neg > 1e-20 else 0.0
        return cls(as_float_if_cpu(eta), settings.gamma_pos, gamma_neg, settings.gamma_hc)

    def target(self, log_p: Tensor, factor: Eta) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``factor`` times term and derivative of the target class, and its p."""
        finite = log_p.clamp(min=torch.finfo(log_p.dtype).min)  # p * log p is 0 at p = 0
        p, not_p = finite.exp(), torch.expm1(finite).neg_()
        focal, focal_m1 = self._focal(not_p)
        one_plus_p = 1 + p
        easy_m1 = one_plus_p ** (self.gamma_hc - 1)
        weight = torch.lerp(focal, easy_m1 * one_plus_p, self.eta).mul_(factor)
        p_log_p = p * finite
        d_log_p = _add_product(weight, easy_m1, p_log_p, self.eta * self.gamma_hc * factor)
        d_log_p = _add_product(d_log_p, focal_m1, p_log_p, (self.eta - 1) * self.gamma_pos * factor)
        return weight * log_p, d_log_p, p

    def _focal(self, not_p: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1-p)^gamma and (1-p)^(gamma-1); the latter is 0 at p = 1, where its product with log p vanishes."""
        if self.gamma_pos == 2:
            return not_p * not_p, not_p
        if self.gamma_pos >= 1:
            focal_m1 = not_p ** (self.gamma_pos - 1)
            return focal_m1 * not_p, focal_m1
        focal = power(not_p, self.gamma_pos)
        return focal, torch.where(not_p == 0, 0.0, focal / not_p)

    def non_target(self, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """Return term and derivative of any non-target class."""
        term = non_target_term(log_p, self.eta, self.gamma_neg)
        if self.gamma_neg == 0:
            return term, torch.ones_like(log_p)
        finite = log_p.clamp(min=torch.finfo(log_p.dtype).min)
        focal = (self.gamma_neg * finite).exp()
        return term, (1 - self.eta) * focal * (1 + self.gamma_neg * finite) + self.eta

    # From here on all non-target classes at once, in the symbols of the module's docstring. A class's focal factor is
    # exp(g x), times its class weight if there is one.

    @property
    def constant_slope(self) -> Eta:
        """Limit of every derivative as p tends to 0."""
        return self.eta if self.gamma_neg else 1.0

    def power_terms(
        self,
        x: Tensor,
        e: Tensor,
        per_class: Tensor | None,
        zero_target: Callable[[Tensor], Tensor],
        buffer: Tensor | None = None,
        masked: bool = True,
    ) -> tuple[Tensor | None, Tensor]:
        """Return the focal factors and their products with x; None and x for g = 0.

        Args:
            x: (N, C, ...), overwritten by the products.
            e: exp(x).
            per_class: class weights that broadcast to x, or None.
            zero_target: puts 0 at every target.
            buffer: memory for the focal factors.
            masked: True if an x may be -inf.
        """
        if not self.gamma_neg:
            return None, x
        squares = self.gamma_neg == 2
        focal = zero_target(torch.mul(e, e, out=buffer) if squares else torch.mul(x, self.gamma_neg, out=buffer).exp_())
        focal = focal if per_class is None else focal.mul_(per_class)
        if masked:
            x.clamp_(min=torch.finfo(x.dtype).min)  # p * log p is 0 at p = 0
        return focal, x.mul_(focal)

    def row_sums(
        self,
        x: Tensor,
        e: Tensor,
        per_class: Tensor | None,
        zero_target: Callable[[Tensor], Tensor],
        buffer: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor | None, Tensor]:
        """Return the row sums of x and of the ``power_terms``, if there are any, and these terms."""
        x_sum = _sum(zero_target(x), per_class)
        focal, products = self.power_terms(x, e, per_class, zero_target, buffer, masked=_may_be_infinite(x_sum))
        return [x_sum] if focal is None else [x_sum, _sum(focal), _sum(products)], focal, products

    def power_scale(self, sum_exp: Tensor, factor: Eta) -> Tensor:
        """Return the multiplier of focal factors, ``factor`` (1 - eta) g exp(-g s), where ``sum_exp`` is exp(s)."""
        return sum_exp.pow(-self.gamma_neg).mul_((1 - self.eta) * self.gamma_neg * factor)

    def add_non_target_rows(
        self,
        rows: Tensor,
        sum_d_log_p: Tensor,
        sums: list[Tensor],
        lse: Tensor,
        scale: Tensor,
        count: Tensor | int,
        factor: Eta,
    ) -> Tensor:
        """Add ``factor`` times the terms to ``rows``, and return the same of their derivatives and ``sum_d_log_p``.

        Args:
            rows, sum_d_log_p, lse, scale: (N, 1, ...).
            sums: from ``row_sums``, over all classes.
            count: number of non-target classes, or the sum of their weights.
        """
        constant = self.constant_slope * factor
        easy = torch.sub(sums[0], lse, alpha=count) if isinstance(count, int) else sums[0] - lse * count
        if isinstance(constant, Tensor):
            rows.add_(torch.where(constant == 0, 0.0, constant * easy))  # masked classes make it infinite
        elif constant:
            rows.add_(easy, alpha=constant)
        sum_d_log_p = sum_d_log_p + constant * count
        if not self.gamma_neg:
            return sum_d_log_p
        _, focal, products = sums
        hard = torch.addcmul(products, lse, focal, value=-1)
        rows.addcmul_(scale, hard, value=1 / self.gamma_neg)
        return sum_d_log_p.addcmul_(scale, torch.add(hard, focal, alpha=1 / self.gamma_neg))

    def add_non_target_grad(
        self,
        grad: Tensor,
        focal: Tensor | None,
        products: Tensor,
        lse: Tensor,
        scale: Tensor,
        per_class: Tensor | None,
        factor: Eta,
    ) -> None:
        """Add ``factor`` times every derivative to ``grad``; overwrites ``products``."""
        if focal is not None:
            grad.addcmul_(products.addcmul_(focal, 1 / self.gamma_neg - lse), scale)
        constant = self.constant_slope * factor
        grad.add_(constant if per_class is None else constant * per_class)


def _add_product(base: Tensor, a: Tensor, b: Tensor, factor: Eta) -> Tensor:
    return torch.addcmul(base, a * factor, b) if isinstance(factor, Tensor) else torch.addcmul(base, a, b, value=factor)


def _sum(terms: Tensor, per_class: Tensor | None = None) -> Tensor:
    return (terms if per_class is None else terms * per_class).sum(1, keepdim=True)


class SigmoidTerms(NamedTuple):
    """Loss of binary logits, and its derivative.

    The loss of a side is w(p) * -log p with p the probability of this side, and w as in
    ``functional.binary_cyclical_focal_loss``. Both sides are one function, of the logit and of its negative.
    """

    eta: Eta
    gamma_pos: float
    gamma_neg: float
    gamma_hc: float
    margin: float

    def add_loss_and_grad(
        self, x: Tensor, pos: Tensor, neg: Tensor, loss: Tensor, grad: Tensor | None, scratch: Scratch
    ) -> None:
        """Add the loss to ``loss`` and its derivative to ``grad``; ``pos`` and ``neg`` are the factors of the sides."""
        p = torch.sigmoid(x, out=scratch.buffer("p", x))
        not_p = torch.neg(x, out=scratch.buffer("not_p", x)).sigmoid_()
        log_larger = torch.minimum(p, not_p, out=scratch.buffer("log_larger", x)).neg_().log1p_()
        log_p = torch.clamp(x, max=0, out=scratch.buffer("log_p", x)).add_(log_larger)
        log_not_p = log_larger.sub_(torch.clamp(x, min=0, out=scratch.buffer("focal", x)))
        self._add_side(p, not_p, log_p, self.gamma_pos, pos, loss, grad, 1, scratch)
        if self.margin:
            self._add_margin_side(p, not_p, neg, loss, grad)
        else:
            self._add_side(not_p, p, log_not_p, self.gamma_neg, neg, loss, grad, -1, scratch)

    def _add_side(
        self,
        p: Tensor,
        not_p: Tensor,
        log_p: Tensor,
        gamma: float,
        factor: Tensor,
        loss: Tensor,
        grad: Tensor | None,
        sign: int,
        scratch: Scratch,
    ) -> None:
        """Add ``factor`` times the loss of one side, and ``sign`` times that of its derivative by its logit.

        ``log_p`` is overwritten.
        """
        focal = self._power(not_p, gamma, scratch.buffer("focal", p))
        one_plus_p = torch.add(p, 1, out=scratch.buffer("one_plus_p", p))
        easy_m1 = self._power(one_plus_p, self.gamma_hc - 1, scratch.buffer("easy_m1", p))
        weight = torch.lerp(focal, one_plus_p.mul_(easy_m1), self.eta, out=one_plus_p)
        # dp/dx is p (1-p), so dw/dx is p times the mix of -gamma (1-p)^gamma and gamma_hc (1+p)^(gamma_hc-1) (1-p).
        if grad is not None:
            slope = torch.lerp(focal.mul_(-gamma), easy_m1.mul_(self.gamma_hc).mul_(not_p), self.eta, out=focal)
            slope.mul_(p).mul_(log_p).addcmul_(weight, not_p)
            grad.addcmul_(slope, factor, value=-sign)
        loss.addcmul_(log_p.mul_(weight), factor, value=-1)

    @staticmethod
    def _power(base: Tensor, exponent: float, out: Tensor) -> Tensor:
        """Return a power in ``out``; squares are the usual case."""
        return torch.mul(base, base, out=out) if exponent == 2 else torch.pow(base, exponent, out=out)

    def _add_margin_side(self, p: Tensor, not_p: Tensor, neg: Tensor, loss: Tensor, grad: Tensor | None) -> None:
        """Add the negative side with its probability lowered by the margin."""
        lower = (p - self.margin).clamp_(min=0)
        log_not_p, focal = torch.log1p(-lower), power(lower, self.gamma_neg)
        one_plus = 2 - lower
        weight = torch.lerp(focal, one_plus**self.gamma_hc, self.eta)
        loss.addcmul_(weight * log_not_p, neg, value=-1)
        if grad is not None:
            d_focal = self.gamma_neg * torch.where(lower > 0, focal / torch.where(lower > 0, lower, 1.0), 0.0)
            d_weight = torch.lerp(d_focal, -self.gamma_hc * one_plus ** (self.gamma_hc - 1), self.eta)
            slope = (weight / (1 - lower) - d_weight * log_not_p) * torch.where(lower > 0, p * not_p, 0.0)
            grad.addcmul_(slope, neg)
