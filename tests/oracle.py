"""Oracle of the losses: slow float64 loops over Python numbers that share no code with the package.

Written from the equations of arXiv 2202.08978 and, for soft targets, as the expectation over classes.
"""

import math

from torch import Tensor


def softmax_loss(logits, target, weight, eta, gamma_pos, gamma_neg, gamma_hc, ignore_index, label_smoothing, reduction):
    """``logits`` (N, C) as nested lists; ``target`` a list of N indices or an (N, C) nested list of probabilities."""
    classes = len(logits[0]) if logits else 0
    weight = [1.0] * classes if weight is None else weight
    rows, denominator = [], 0.0
    for z, t in zip(logits, target, strict=True):
        if t == ignore_index:
            rows.append(0.0)
            continue
        given = t if isinstance(t, list) else [float(j == t) for j in range(classes)]
        denominator += 1.0 if isinstance(t, list) else weight[t]
        # expectation over the true class c, with probability given[c], of the loss for that class
        outside = 1 - sum(given)  # probabilities need not sum to one: what is missing is smoothing without a class
        row = sum(
            s * _one_row(z, c, weight, eta, gamma_pos, gamma_neg, gamma_hc, label_smoothing)
            for c, s in enumerate(given)
        )
        row += outside * _one_row(z, None, weight, eta, gamma_pos, gamma_neg, gamma_hc, label_smoothing)
        rows.append(row)
    if reduction == "none":
        return rows
    return sum(rows) if reduction == "sum" else (sum(rows) / denominator if denominator else math.nan)


def _one_row(z, true, weight, eta, gamma_pos, gamma_neg, gamma_hc, smoothing):
    top = max(z)
    total = math.fsum(math.exp(v - top) for v in z)
    loss = 0.0
    for j, v in enumerate(z):
        log_p = v - top - math.log(total)
        p = math.exp(log_p)
        if j == true:
            w = (1 - eta) * (-math.expm1(log_p)) ** gamma_pos + eta * (1 + p) ** gamma_hc
        else:
            w = (1 - eta) * p**gamma_neg + eta
        q = (1 - smoothing) * (j == true) + smoothing / len(z)
        loss -= weight[j] * q * w * log_p if q else 0.0
    return loss


def sigmoid_loss(x, y, eta, gamma_pos, gamma_neg, gamma_hc, alpha, margin, smoothing, pos_weight=1.0, weight=1.0):
    """One element."""
    y = y * (1 - smoothing) + smoothing / 2
    p = 1 / (1 + math.exp(-x))
    q = max(p - margin, 0.0)  # probability of "yes" as the negative side sees it
    yes = ((1 - eta) * (1 - p) ** gamma_pos + eta * (1 + p) ** gamma_hc) * -math.log(p)
    no = ((1 - eta) * q**gamma_neg + eta * (1 + (1 - q)) ** gamma_hc) * -math.log(1 - q)
    side_yes, side_no = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    return weight * (y * side_yes * pos_weight * yes + (1 - y) * side_no * no)


def rows_of(logits: Tensor, target: Tensor) -> tuple[list, list]:
    """(N, C, d1, ...) tensors as the lists of rows that the loops take."""
    flat = logits.movedim(1, -1).reshape(-1, logits.shape[1]).tolist()
    if target.is_floating_point():
        return flat, target.movedim(1, -1).reshape(-1, logits.shape[1]).tolist()
    return flat, target.flatten().tolist()
