"""Promise: the losses are the paper's equations, compared with an independent float64 oracle and released vectors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import sigmoid_focal_loss

from cyclofocal.functional import binary_cyclical_focal_loss, cyclical_focal_loss
from oracle import rows_of, sigmoid_loss, softmax_loss

VECTORS = Path(__file__).parent / "vectors"
gammas = st.sampled_from([0.0, 0.3, 1.0, 2.0, 2.5, 3.0])
etas = st.sampled_from([0.0, 0.25, 0.7, 1.0])
smoothings = st.sampled_from([0.0, 0.1, 0.6, 1.0])
seeds = st.integers(0, 10_000)


def released_cases():
    cases = json.loads((VECTORS / "released_loss_vectors.json").read_text())
    with np.load(VECTORS / "released_loss_vectors.npz") as arrays:
        return [
            (c, {k: torch.from_numpy(arrays[f"{c['id']}_{k}"]) for k in ("logits", "target", "loss", "grad")})
            for c in cases
        ]


@pytest.mark.parametrize(("case", "arrays"), released_cases(), ids=lambda v: v.get("id", "") if "id" in v else "")
def test_released_vectors(case, arrays):
    logits = arrays["logits"].requires_grad_()
    settings = {k: case[k] for k in ("eta", "gamma_pos", "gamma_neg", "gamma_hc", "label_smoothing")}
    loss = cyclical_focal_loss(logits, arrays["target"], **settings, reduction="none")
    torch.testing.assert_close(loss, arrays["loss"].view_as(loss), rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, arrays["grad"], rtol=1e-10, atol=1e-12)


@given(
    seeds,
    etas,
    gammas,
    gammas,
    gammas,
    smoothings,
    st.sampled_from(["mean", "sum", "none"]),
    st.booleans(),
    st.booleans(),
)
def test_softmax_against_the_oracle(seed, eta, pos, neg, hc, smoothing, reduction, soft, weighted):
    torch.manual_seed(seed)
    batch, classes, size = (int(v) for v in torch.randint(1, 5, (3,)))
    logits = 3 * torch.randn(batch, classes, size, dtype=torch.float64)
    target = torch.rand_like(logits) if soft else torch.randint(classes, (batch, size))
    weight = torch.randn(classes, dtype=torch.float64) if weighted else None
    options = {
        "eta": eta,
        "gamma_pos": pos,
        "gamma_neg": neg,
        "gamma_hc": hc,
        "reduction": reduction,
        "label_smoothing": smoothing,
    }
    ignore_index = -100 if soft else 0
    loss = cyclical_focal_loss(logits, target, weight, ignore_index=ignore_index, **options)
    expected = softmax_loss(
        *rows_of(logits, target), None if weight is None else weight.tolist(), ignore_index=ignore_index, **options
    )
    expected = torch.tensor(expected, dtype=torch.float64).view(loss.shape)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-11, equal_nan=True)


@given(
    seeds,
    etas,
    gammas,
    gammas,
    gammas,
    smoothings,
    st.sampled_from([None, 0.25, 1.0]),
    st.sampled_from([0.0, 0.05, 0.4]),
)
def test_sigmoid_against_the_oracle(seed, eta, pos, neg, hc, smoothing, alpha, margin):
    torch.manual_seed(seed)
    x, y = 3 * torch.randn(2, 3, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64)
    weight, pos_weight = torch.rand(2, 1, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    loss = binary_cyclical_focal_loss(
        x,
        y,
        weight,
        eta=eta,
        gamma_pos=pos,
        gamma_neg=neg,
        gamma_hc=hc,
        alpha=alpha,
        pos_weight=pos_weight,
        probability_margin=margin,
        label_smoothing=smoothing,
        reduction="none",
    )
    for i in range(2):
        for j in range(3):
            expected = sigmoid_loss(
                x[i, j].item(),
                y[i, j].item(),
                eta,
                pos,
                neg,
                hc,
                alpha,
                margin,
                smoothing,
                pos_weight[j].item(),
                weight[i, 0].item(),
            )
            assert loss[i, j].item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_asymmetric_loss_of_timm():
    timm_loss = pytest.importorskip("timm.loss")
    logits, target = torch.randn(16, 10, dtype=torch.float64), torch.randint(10, (16,))
    theirs = timm_loss.AsymmetricLossSingleLabel(gamma_pos=1, gamma_neg=4, eps=0.1)(logits, target)
    ours = cyclical_focal_loss(logits, target, eta=0.0, gamma_pos=1.0, gamma_neg=4.0, label_smoothing=0.1)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_multi_label_asymmetric_loss_of_timm():
    timm_loss = pytest.importorskip("timm.loss")
    logits, target = torch.randn(8, 6, dtype=torch.float64), torch.randint(2, (8, 6)).double()
    theirs = timm_loss.AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=1, clip=0.05)(logits, target)
    ours = binary_cyclical_focal_loss(
        logits, target, eta=0.0, gamma_pos=1.0, gamma_neg=4.0, probability_margin=0.05, reduction="sum"
    )
    ours = (ours / 8).float()  # theirs: summed over labels, mean over the batch, cast, clamped at 1e-8
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.7, 1.0), (None, 2.0)])
def test_sigmoid_focal_loss_of_torchvision(alpha, gamma):
    logits, target = torch.randn(5, 9, dtype=torch.float64), torch.randint(2, (5, 9)).double()
    theirs = sigmoid_focal_loss(logits, target, alpha=-1 if alpha is None else alpha, gamma=gamma, reduction="none")
    ours = binary_cyclical_focal_loss(
        logits, target, eta=0.0, gamma_pos=gamma, gamma_neg=gamma, alpha=alpha, reduction="none"
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
