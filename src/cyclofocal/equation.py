"""The two losses as in the paper, one line of torch per line of mathematics.

Differentiable any number of times and through ``torch.func``; finite wherever the mathematics is. The fused
kernels compute the same numbers faster and fall back to these for second derivatives and function transforms.

Throughout, with p the probability of the true side and eta the clock's mixing weight:

    weight of the true side:    (1 - eta) * (1 - p)^gamma_pos + eta * (1 + p)^gamma_hc
    weight of the other side:   (1 - eta) * p^gamma_neg + eta                (softmax, label smoothing only)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cyclofocal.arguments import SigmoidSettings, SoftmaxSettings

Eta = float | Tensor


def softmax_rows(log_p: Tensor, target: Tensor, weight: Tensor | None, eta: Eta, settings: SoftmaxSettings) -> Tensor:
    """Return the loss of every row; ``log_p`` (N, C, ...), ``target`` indices (N, ...) or probabilities (N, C, ...)."""
    gamma_pos, gamma_neg, gamma_hc, ignore_index, label_smoothing = settings
    classes = log_p.shape[1]
    non_target_prob = label_smoothing / classes
    target_prob = 1 - label_smoothing + non_target_prob
    by_class = (1, -1) + (1,) * (log_p.dim() - 2)

    if target.is_floating_point():
        rows = target * target_prob * target_term(log_p, eta, gamma_pos, gamma_hc)
        rows = torch.where(target == 0, 0.0, rows)  # a target of 0 adds nothing, even for a masked class (-inf)
        if non_target_prob:
            rows = rows + (1 - target) * non_target_prob * non_target_term(log_p, eta, gamma_neg)
        return -(rows if weight is None else rows * weight.view(by_class)).sum(1)

    ignored = target == ignore_index
    index = target.masked_fill(ignored, 0).unsqueeze(1)
    log_p_target = log_p.gather(1, index).squeeze(1)
    rows = target_prob * target_term(log_p_target, eta, gamma_pos, gamma_hc)
    if weight is not None:
        rows = rows * weight[index.squeeze(1)]
    if non_target_prob:
        terms = non_target_term(log_p, eta, gamma_neg)
        terms = terms if weight is None else terms * weight.view(by_class)
        is_non_target = torch.arange(classes, device=log_p.device).view(by_class) != index
        rows = rows + non_target_prob * torch.where(is_non_target, terms, 0.0).sum(1)
    return torch.where(ignored, 0.0, -rows)


def softmax_denominator(
    target: Tensor, weight: Tensor | None, ignore_index: int, sample_weight: Tensor | None = None
) -> Tensor | int:
    """Return the divisor of torch's mean: the summed weights of the targets that count, or the number of rows."""
    if target.is_floating_point():
        return target.numel() // target.shape[1] if sample_weight is None else sample_weight.sum()
    counts = target != ignore_index
    if weight is None and sample_weight is None:
        return counts.sum()
    factors = 1.0 if weight is None else weight[target.clamp(0, len(weight) - 1)]
    factors = factors if sample_weight is None else factors * sample_weight
    return torch.where(counts, factors, 0.0).sum()


def sigmoid_elements(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    eta: Eta,
    settings: SigmoidSettings,
) -> Tensor:
    """Return the loss of every element; all tensors broadcast to the shape of ``logits``, ``target`` in [0, 1]."""
    gamma_pos, gamma_neg, gamma_hc, alpha, probability_margin, label_smoothing = settings
    target = target * (1 - label_smoothing) + label_smoothing / 2
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    pos = _mix((gamma_pos * log_not_p).exp(), (1 + log_p.exp()) ** gamma_hc, eta) * log_p
    if probability_margin == 0:
        focal, not_p = (gamma_neg * log_p).exp(), log_not_p.exp()
    else:
        p = (log_p.exp() - probability_margin).clamp(min=0)
        focal, not_p, log_not_p = power(p, gamma_neg), 1 - p, torch.log1p(-p)
    neg = _mix(focal, (1 + not_p) ** gamma_hc, eta) * log_not_p

    pos = pos if pos_weight is None else pos * pos_weight
    if alpha is not None:
        pos, neg = alpha * pos, (1 - alpha) * neg
    elements = -(target * pos + (1 - target) * neg)
    return elements if weight is None else elements * weight


def power(base: Tensor, exponent: float) -> Tensor:
    """Return ``base ** exponent`` for base >= 0, with gradient 0 instead of infinity at 0 for exponents below 1."""
    if exponent == 0:
        return torch.ones_like(base)
    if exponent >= 1:
        return base**exponent
    zero = base == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, base) ** exponent)


def target_term(log_p: Tensor, eta: Eta, gamma_pos: float, gamma_hc: float) -> Tensor:
    """Return log p of the target class times its weight, which tends to 1 as p tends to 0."""
    masked = log_p == -torch.inf
    finite = log_p.masked_fill(masked, 0.0)
    focal = power(-torch.expm1(finite), gamma_pos)
    return torch.where(masked, log_p, _mix(focal, (1 + finite.exp()) ** gamma_hc, eta) * finite)


def non_target_term(log_p: Tensor, eta: Eta, gamma_neg: float) -> Tensor:
    """Return log p of a non-target class times its weight; p^gamma * log p tends to 0 as p tends to 0."""
    if gamma_neg == 0:
        return log_p
    masked = log_p == -torch.inf
    finite = log_p.masked_fill(masked, 0.0)
    at_zero = torch.as_tensor(eta, dtype=log_p.dtype, device=log_p.device)
    unbounded = masked & (at_zero > 0)
    return torch.where(unbounded, at_zero * log_p, _mix((gamma_neg * finite).exp(), 1.0, eta) * finite)


def _mix(hard: Tensor, easy: Tensor | float, eta: Eta) -> Tensor:
    """Interpolate from the focal weight at eta 0 to the high-confidence weight at eta 1; exactly 1 where both are 1."""
    return hard + eta * (easy - hard)
