"""Triton kernel of the softmax family for distributions over the classes: loss and gradient of a tile of rows.

Tiles and gradient are those of ``triton_indices.py``. The terms of the loss are known only when maximum and divisor of
a row are, so that rows in several blocks take a pass for these, one for the loss and S, and one for the gradient.
"""
# mypy: ignore-errors
# ruff: noqa: N803

import triton
import triton.language as tl

from cyclofocal.kernels.triton_terms import (
    NUMBERS,
    block_of_classes,
    finite,
    from_bits,
    known_multiple,
    load_class_weights,
    load_eta,
    one_minus_exp,
    power_of_exp,
    rows_of_program,
    side_weight,
    store_loss,
)


@triton.jit
def _soft_terms(
    x, y, weight, inside, begin, row_max, inverse, log_sum, eta, gamma_pos, gamma_neg, gamma_hc, target_prob,
    non_target_prob, classes, POS: tl.constexpr, NEG: tl.constexpr, HC: tl.constexpr, SMOOTHED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Return parts of the loss, h and p for a block of classes with target probabilities y."""
    u = x - row_max[:, None]
    p = tl.exp(u) * inverse[:, None]
    log_p = u - log_sum[:, None]
    log_p = tl.where(log_p > 0, 0.0, log_p)  # by rounding
    log = finite(log_p)
    target_factor = -target_prob * y
    side, slope = side_weight(p, one_minus_exp(log), eta, gamma_pos, gamma_hc, POS, HC)
    # a target of 0 adds nothing, even for a masked class
    value = tl.where(target_factor == 0, 0.0, target_factor * side * log_p)
    h = target_factor * (side + log * p * slope)
    if SMOOTHED:
        non_target_factor = -non_target_prob * (1 - y)
        non_target_value = log_p
        non_target_slope = tl.full(p.shape, 1.0, p.dtype)
        if NEG != 0:
            focal = (1 - eta) * power_of_exp(p, log, gamma_neg, NEG)
            non_target_value = focal * log + tl.where(eta == 0, 0.0, eta * log_p)
            non_target_slope = focal * (1 + gamma_neg * log) + eta
        value += tl.where(non_target_factor == 0, 0.0, non_target_factor * non_target_value)
        h += non_target_factor * non_target_slope
    if weight is not None:
        w = load_class_weights(weight, begin, classes, BLOCK)[None, :]
        value *= w
        h *= w
    return tl.where(inside, value, 0.0), tl.where(inside, h, 0.0), p


@triton.jit
def _log_sum_exp(
    logits, start, valid, classes, class_stride, dtype: tl.constexpr, LOWEST: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the last block of logits, the maxima of the rows, and their sums of exponentials relative to those."""
    x = tl.full((ROWS, BLOCK), 0.0, dtype)
    row_max = tl.full((ROWS,), LOWEST, dtype)
    exps = tl.full((ROWS,), 0.0, dtype)
    for begin in range(0, classes, BLOCK):
        offsets, inside = block_of_classes(start, valid, begin, classes, class_stride, BLOCK)
        x = tl.load(logits + offsets, mask=inside, other=float("-inf")).to(dtype)
        higher = tl.maximum(row_max, tl.max(x, 1))
        exps = exps * tl.exp(finite(row_max - higher)) + tl.sum(tl.exp(x - higher[:, None]), 1)
        row_max = higher
    return x, row_max, exps


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=["class_stride"])
def softmax_by_probabilities(
    logits, target, weight, eta_pointer, loss, grad,
    eta: tl.int64, gamma_pos: tl.int64, gamma_neg: tl.int64, gamma_hc: tl.int64, target_prob: tl.int64,
    non_target_prob: tl.int64, scale: tl.int64, classes, positions, tiles, batch_stride, position_stride,
    class_stride,
    LOWEST: tl.constexpr, POS: tl.constexpr, NEG: tl.constexpr, HC: tl.constexpr, SMOOTHED: tl.constexpr,
    REDUCED: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the loss of distributions over the classes, whose terms need the maximum and the divisor first."""
    dtype: tl.constexpr = loss.dtype.element_ty
    eta = load_eta(eta, eta_pointer, dtype)
    gamma_pos = from_bits(gamma_pos, dtype)
    gamma_neg = from_bits(gamma_neg, dtype)
    gamma_hc = from_bits(gamma_hc, dtype)
    target_prob = from_bits(target_prob, dtype)
    non_target_prob = from_bits(non_target_prob, dtype)
    classes = known_multiple(classes, ALIGNED)
    row, start, valid = rows_of_program(positions, tiles, batch_stride, position_stride, ALIGNED, WIDE, ROWS)
    x, row_max, exps = _log_sum_exp(logits, start, valid, classes, class_stride, dtype, LOWEST, ROWS, BLOCK)
    inverse = 1 / exps
    log_sum = tl.log(exps)
    rows = tl.full((ROWS,), 0.0, dtype)
    total = tl.full((ROWS,), 0.0, dtype)
    h = tl.full((ROWS, BLOCK), 0.0, dtype)
    p = tl.full((ROWS, BLOCK), 0.0, dtype)
    last = (classes - 1) // BLOCK * BLOCK
    for done in range(0, classes, BLOCK):
        begin = last - done
        offsets, inside = block_of_classes(start, valid, begin, classes, class_stride, BLOCK)
        if done > 0:
            x = tl.load(logits + offsets, mask=inside, other=float("-inf")).to(dtype)
        y = tl.load(target + offsets, mask=inside, other=0.0)
        value, h, p = _soft_terms(
            x, y, weight, inside, begin, row_max, inverse, log_sum, eta, gamma_pos, gamma_neg, gamma_hc,
            target_prob, non_target_prob, classes, POS, NEG, HC, SMOOTHED, BLOCK,
        )  # fmt: skip
        rows += tl.sum(value, 1)
        total += tl.sum(h, 1)
    store_loss(loss, rows, row, valid, REDUCED)

    if grad is not None:
        for begin in range(0, classes, BLOCK):
            offsets, inside = block_of_classes(start, valid, begin, classes, class_stride, BLOCK)
            if begin > 0:
                x = tl.load(logits + offsets, mask=inside, other=float("-inf")).to(dtype)
                y = tl.load(target + offsets, mask=inside, other=0.0)
                value, h, p = _soft_terms(
                    x, y, weight, inside, begin, row_max, inverse, log_sum, eta, gamma_pos, gamma_neg, gamma_hc,
                    target_prob, non_target_prob, classes, POS, NEG, HC, SMOOTHED, BLOCK,
                )  # fmt: skip
            tl.store(grad + offsets, from_bits(scale, dtype) * (h - p * total[:, None]), mask=inside)
