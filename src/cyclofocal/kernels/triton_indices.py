"""Triton kernel of the softmax family for class indices: loss and gradient of a tile of rows.

With l = log p, h_j the derivative of the j-th term of the loss by l_j, and S the sum of all h, the gradient by the
logits is h_k - p_k S, as in the other backends.

A tile is ROWS rows by BLOCK classes. Rows with more classes come in several blocks: one pass collects sums,
rescaled whenever a row's maximum moves, and the next begins with the block that is still on chip.
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
    log1p,
    power_of_exp,
    rows_of_program,
    side_weight,
    store_loss,
)


@triton.jit
def _non_target_sums(
    logits, weight, start, counted, index, target_x, target_weight, gamma_neg, classes, class_stride,
    LOWEST: tl.constexpr, NEG: tl.constexpr, SMOOTHED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return for every row, with u = x - maximum and class weights w: the last block of u and of e^u, the maximum, the
    sums over all classes but the true one of e^u, w e^(gamma u), w e^(gamma u) u, w u and w."""
    dtype: tl.constexpr = target_x.dtype
    row_max = tl.maximum(target_x, LOWEST)  # finite, so that a block of masked classes subtracts no infinities
    u = tl.full((ROWS, BLOCK), 0.0, dtype)
    e = tl.full((ROWS, BLOCK), 0.0, dtype)
    exps = tl.full((ROWS,), 0.0, dtype)
    powers = tl.full((ROWS,), 0.0, dtype)
    power_logs = tl.full((ROWS,), 0.0, dtype)
    logs = tl.full((ROWS,), 0.0, dtype)
    weights = tl.full((ROWS,), 0.0, dtype)
    for begin in range(0, classes, BLOCK):
        lane = begin + tl.arange(0, BLOCK)
        offsets, inside = block_of_classes(start, counted, begin, classes, class_stride, BLOCK)
        x = tl.load(logits + offsets, mask=inside, other=float("-inf")).to(dtype)
        is_non_target = (lane < classes)[None, :] & (lane[None, :] != index[:, None])
        u = tl.where(is_non_target, x, float("-inf"))
        higher = tl.maximum(row_max, tl.max(u, 1))
        shift = finite(row_max - higher)
        fade = tl.exp(shift)
        row_max = higher
        u -= row_max[:, None]
        e = tl.exp(u)
        exps = exps * fade + tl.sum(e, 1)
        if SMOOTHED:
            term = tl.where(is_non_target, u, 0.0)
            size = tl.minimum(classes - begin, BLOCK).to(dtype)
            if weight is not None:
                w = load_class_weights(weight, begin, classes, BLOCK)
                term *= w[None, :]
                size = tl.sum(w, 0)
            logs += shift * weights + tl.sum(term, 1)
            weights += size - tl.where((index >= begin) & (index < begin + BLOCK), target_weight, 0.0)
            if NEG != 0:
                term = power_of_exp(e, u, gamma_neg, NEG)
                if weight is not None:
                    term *= w[None, :]
                fade = power_of_exp(fade, shift, gamma_neg, NEG)
                power_logs = fade * (power_logs + shift * powers) + tl.sum(term * finite(u), 1)
                powers = fade * powers + tl.sum(term, 1)
    return u, e, row_max, exps, powers, power_logs, logs, weights


@triton.jit
def _target_part(
    u, exps, weight, eta, gamma_pos, gamma_hc, target_prob, POS: tl.constexpr, HC: tl.constexpr
):  # fmt: skip
    """Return what the true class, at u below the maximum, adds to loss, S and its gradient; p; and the sum of all
    exponentials as its inverse and logarithm."""
    e = tl.exp(u)
    inverse = 1 / (exps + e)
    log_sum = tl.log(exps + e)
    p = e * inverse
    not_p = exps * inverse  # without the true class in the sum nothing cancels as p goes to 1
    log_p = tl.where(u > -40, -log1p(exps / e), u - log_sum)
    value, slope = side_weight(p, not_p, eta, gamma_pos, gamma_hc, POS, HC)
    factor = -target_prob * weight
    h = factor * (value + finite(log_p) * p * slope)
    return factor * value * log_p, h, not_p * h, p, inverse, log_sum


@triton.jit
def _non_target_part(
    powers, power_logs, logs, weights, inverse, log_sum, focal, flat, gamma_neg, NEG: tl.constexpr
):  # fmt: skip
    """Return what the other classes add to loss and S: one part of their weights is focal, one flat."""
    logs -= log_sum * weights
    value = tl.where(flat == 0, 0.0, flat * logs)  # a masked class has a term unless eta is 0
    total = flat * weights
    if NEG != 0:
        divisor = power_of_exp(inverse, -log_sum, gamma_neg, NEG)
        powers *= divisor
        power_logs = power_logs * divisor - log_sum * powers
        value += focal * power_logs
        total += focal * (powers + gamma_neg * power_logs)
    return value, total


@triton.jit
def _index_gradient(
    u, e, is_target, target_grad, total, inverse, log_sum, focal, flat, gamma_neg, weight, begin, classes,
    NEG: tl.constexpr, SMOOTHED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the gradient of a block of classes."""
    p = e * inverse[:, None]
    gradient = -p * total[:, None]
    if SMOOTHED:
        h = flat
        if NEG != 0:
            log_p = finite(u - log_sum[:, None])
            h += focal * power_of_exp(p, log_p, gamma_neg, NEG) * (1 + gamma_neg * log_p)
        if weight is not None:
            h *= load_class_weights(weight, begin, classes, BLOCK)[None, :]
        gradient += h
    return tl.where(is_target, target_grad[:, None], gradient)


# Without alignment along classes, a thread of an image holds whole rows, and nothing passes between threads.
@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=["class_stride"])
def softmax_by_index(
    logits, target, weight, denominator, eta_pointer, loss, grad,
    eta: tl.int64, gamma_pos: tl.int64, gamma_neg: tl.int64, gamma_hc: tl.int64, target_prob: tl.int64,
    non_target_prob: tl.int64, ignore_index, classes, positions, tiles, batch_stride, position_stride, class_stride,
    LOWEST: tl.constexpr, POS: tl.constexpr, NEG: tl.constexpr, HC: tl.constexpr, SMOOTHED: tl.constexpr,
    REDUCED: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the loss of class indices. SMOOTHED: label smoothing gives the other classes a target too."""
    dtype: tl.constexpr = loss.dtype.element_ty
    eta = load_eta(eta, eta_pointer, dtype)
    gamma_pos = from_bits(gamma_pos, dtype)
    gamma_neg = from_bits(gamma_neg, dtype)
    gamma_hc = from_bits(gamma_hc, dtype)
    flat = -from_bits(non_target_prob, dtype)
    focal = flat * (1 - eta)
    if NEG != 0:
        flat *= eta
    classes = known_multiple(classes, ALIGNED)
    row, start, valid = rows_of_program(positions, tiles, batch_stride, position_stride, ALIGNED, WIDE, ROWS)
    index = tl.load(target + row, mask=valid, other=0)
    counted = valid & (index != ignore_index)  # nothing is read for the other rows
    known = counted & (index >= 0) & (index < classes)
    target_x = tl.load(logits + start + index.to(start.dtype) * class_stride, mask=known, other=0.0).to(dtype)
    target_weight = tl.where(known, 1.0, float("nan")).to(dtype)  # an index out of range spoils its row
    if weight is not None:
        target_weight = tl.load(weight + index, mask=known, other=float("nan"))
    index = tl.where(known, index, -1).to(tl.int32)
    u, e, row_max, exps, powers, power_logs, logs, weights = _non_target_sums(
        logits, weight, start, counted, index, target_x, target_weight, gamma_neg, classes, class_stride,
        LOWEST, NEG, SMOOTHED, ROWS, BLOCK,
    )  # fmt: skip
    value, total, target_grad, p, inverse, log_sum = _target_part(
        target_x - row_max, exps, target_weight, eta, gamma_pos, gamma_hc, from_bits(target_prob, dtype), POS, HC
    )
    if SMOOTHED:
        non_target_value, non_target_total = _non_target_part(
            powers, power_logs, logs, weights, inverse, log_sum, focal, flat, gamma_neg, NEG
        )
        value += non_target_value
        total += non_target_total
        target_grad -= p * non_target_total
    store_loss(loss, tl.where(counted, value, 0.0), row, valid, REDUCED)

    if grad is not None:
        scale = tl.full((), 1.0, dtype)
        if denominator is not None:
            scale /= tl.load(denominator).to(dtype)
        last = (classes - 1) // BLOCK * BLOCK
        for done in range(0, classes, BLOCK):
            begin = last - done
            offsets, inside = block_of_classes(start, valid, begin, classes, class_stride, BLOCK)
            if done > 0:
                u = tl.load(logits + offsets, mask=inside & counted[:, None], other=0.0).to(dtype) - row_max[:, None]
                e = tl.exp(u)
            is_target = (begin + tl.arange(0, BLOCK))[None, :] == index[:, None]
            gradient = _index_gradient(
                u, e, is_target, target_grad * scale, total * scale, inverse, log_sum, focal * scale, flat * scale,
                gamma_neg, weight, begin, classes, NEG, SMOOTHED, BLOCK,
            )  # fmt: skip
            tl.store(grad + offsets, tl.where(counted[:, None], gradient, 0.0), mask=inside)
