"""Triton kernel of the sigmoid family: loss and gradient of independent binary logits."""
# mypy: ignore-errors
# ruff: noqa: N803

import triton
import triton.language as tl

from cyclofocal.kernels.triton_terms import NUMBERS, finite, from_bits, load_eta, log1p, side_weight, store_loss


@triton.jit
def _positive_and_negative(
    x, eta, gamma_pos, gamma_neg, gamma_hc, margin,
    POS: tl.constexpr, NEG: tl.constexpr, HC: tl.constexpr, MARGIN: tl.constexpr,
):  # fmt: skip
    """Return weight times log p and weight times log(1 - p), each with its derivative by x; p is the sigmoid of x."""
    small = tl.exp(-tl.abs(x))
    softplus = log1p(small)
    large = 1 / (1 + small)
    small *= large
    p = tl.where(x > 0, large, small)
    not_p = tl.where(x > 0, small, large)
    slope = p * not_p
    log_p = tl.where(x > 0, 0.0, x) - softplus
    weight, weight_slope = side_weight(p, not_p, eta, gamma_pos, gamma_hc, POS, HC)
    pos = weight * log_p
    pos_slope = weight * not_p + finite(log_p) * slope * weight_slope

    log_not_p = tl.where(x > 0, -x, 0.0) - softplus
    log_slope = -p
    if MARGIN:
        under = p <= margin
        p = tl.where(under, 0.0, p - margin)
        not_p = tl.where(under, 1.0, not_p + margin)
        slope = tl.where(under, 0.0, slope)
        log_not_p = tl.where(p > 0.5, tl.log(not_p), log1p(-p))  # each where the other loses digits
        log_slope = -slope / not_p
    weight, weight_slope = side_weight(not_p, p, eta, gamma_neg, gamma_hc, NEG, HC)
    neg_slope = weight * log_slope - finite(log_not_p) * slope * weight_slope
    return pos, pos_slope, weight * log_not_p, neg_slope


@triton.jit(do_not_specialize=NUMBERS)
def sigmoid_by_element(
    logits, target, weight, pos_weight, eta_pointer, loss, grad,
    eta: tl.int64, gamma_pos: tl.int64, gamma_neg: tl.int64, gamma_hc: tl.int64, pos_factor: tl.int64,
    neg_factor: tl.int64, margin: tl.int64, label_smoothing: tl.int64, scale: tl.int64, count, period,
    POS: tl.constexpr, NEG: tl.constexpr, HC: tl.constexpr, MARGIN: tl.constexpr,
    REDUCED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute loss and gradient of elements; ``pos_weight`` repeats every ``period`` elements."""
    dtype: tl.constexpr = loss.dtype.element_ty
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    offset = program * BLOCK + tl.arange(0, BLOCK)
    valid = offset < count
    pos, pos_slope, neg, neg_slope = _positive_and_negative(
        tl.load(logits + offset, mask=valid, other=0.0).to(dtype), load_eta(eta, eta_pointer, dtype),
        from_bits(gamma_pos, dtype), from_bits(gamma_neg, dtype), from_bits(gamma_hc, dtype),
        from_bits(margin, dtype), POS, NEG, HC, MARGIN,
    )  # fmt: skip
    smoothing = from_bits(label_smoothing, dtype)
    y = tl.load(target + offset, mask=valid, other=0.0) * (1 - smoothing) + smoothing / 2
    pos_scale = -y * from_bits(pos_factor, dtype)
    neg_scale = (y - 1) * from_bits(neg_factor, dtype)
    if pos_weight is not None:
        pos_scale *= tl.load(pos_weight + offset % period, mask=valid, other=0.0)
    if weight is not None:
        w = tl.load(weight + offset, mask=valid, other=0.0)
        pos_scale *= w
        neg_scale *= w
    value = tl.where(pos_scale == 0, 0.0, pos_scale * pos) + tl.where(neg_scale == 0, 0.0, neg_scale * neg)
    store_loss(loss, value, offset, valid, REDUCED)
    if grad is not None:
        gradient = from_bits(scale, dtype) * (pos_scale * pos_slope + neg_scale * neg_slope)
        tl.store(grad + offset, gradient, mask=valid)
