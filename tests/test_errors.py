"""Promise: what does not fit is refused before any work, and the message says what would fit."""

import warnings

import pytest
import torch

from cyclofocal import BinaryCyclicalFocalLoss, CyclicalFocalLoss, arguments
from cyclofocal.functional import binary_cyclical_focal_loss, cyclical_focal_loss

X, T = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
Y = torch.rand(4, 3)
NAN = float("nan")

SHARED = [
    ({"eta": 1.5}, ValueError, r"eta is 1\.5; it must lie in \[0, 1\]"),
    ({"eta": -0.1}, ValueError, "eta is -0.1"),
    ({"eta": NAN}, ValueError, "eta is nan"),
    ({"eta": torch.tensor(3.14)}, ValueError, r"eta is 3\.14"),
    ({"eta": torch.tensor([0.5, 0.5])}, ValueError, r"eta has shape \(2,\).*0-d"),
    ({"gamma_pos": -1.0}, ValueError, "gamma_pos is -1.0.*>= 0"),
    ({"gamma_neg": NAN}, ValueError, "gamma_neg is nan"),
    ({"gamma_hc": float("inf")}, ValueError, "gamma_hc is inf"),
    ({"gamma_hc": 101.0}, ValueError, "overflows"),
    ({"label_smoothing": 1.1}, ValueError, "label_smoothing is 1.1"),
    ({"reduction": "batchmean"}, ValueError, "reduction is 'batchmean'.*'mean', 'sum', 'none'"),
    ({"logits": X.long()}, TypeError, "logits has dtype torch.int64"),
]
SOFTMAX = [
    ({"logits": X[0, 0], "target": T[0]}, ValueError, "logits is a scalar"),
    ({"logits": X[:, :0]}, ValueError, "has no class"),
    ({"target": T[:3]}, ValueError, r"target has shape \(3,\).*must have shape \(4,\)"),
    ({"target": Y[:, :2]}, ValueError, r"class probabilities.*\(4, 3\)"),
    ({"target": T.float()}, ValueError, "pass class indices as int64"),
    ({"target": T > 0}, TypeError, "torch.bool"),
    ({"target": torch.ones(4, 3, dtype=torch.long)}, ValueError, "binary_cyclical_focal_loss"),
    ({"target": torch.tensor([0, 1, 3, 0])}, IndexError, r"class 3 for 3 classes.*\[0, 2\].*ignore_index \(-100\)"),
    ({"target": torch.tensor([0, -1, 2, 0])}, IndexError, "class -1"),
    ({"target": torch.tensor([0, 255, 2, -100]), "ignore_index": 255}, IndexError, "class -100"),
    ({"target": Y, "ignore_index": 1}, ValueError, "ignore_index is 1, but target holds probabilities"),
    ({"weight": torch.ones(4)}, ValueError, r"weight has shape \(4,\); it must be \(3,\)"),
    ({"weight": torch.ones(3, dtype=torch.long)}, TypeError, "weight has dtype"),
    ({"weight": torch.ones(3, device="meta")}, ValueError, "weight is on meta, logits on cpu"),
]
SIGMOID = [
    ({"target": T}, ValueError, r"cyclical_focal_loss \(softmax\)"),
    ({"target": Y[:2]}, ValueError, r"target has shape \(2, 3\), logits \(4, 3\)"),
    ({"target": torch.full((4, 3), 2)}, ValueError, r"from 2 to 2.*\[0, 1\].*cyclical_focal_loss"),
    ({"target": Y - 0.9}, ValueError, r"must lie in \[0, 1\]"),
    ({"target": torch.full((4, 3), NAN)}, ValueError, r"must lie in \[0, 1\]"),
    ({"alpha": -1.0}, ValueError, "alpha is -1.0.*None"),
    ({"probability_margin": 1.0}, ValueError, "probability_margin is 1.0"),
    ({"pos_weight": torch.ones(4)}, ValueError, r"pos_weight has shape \(4,\).*broadcast.*\(4, 3\)"),
    ({"weight": torch.ones(2, 4, 3)}, ValueError, "weight has shape"),
]


@pytest.mark.parametrize(("change", "error", "message"), SHARED + SOFTMAX, ids=[case[2] for case in SHARED + SOFTMAX])
def test_softmax_refuses(change, error, message):
    with pytest.raises(error, match=message):
        cyclical_focal_loss(**({"logits": X, "target": T, "eta": 0.5} | change))


@pytest.mark.parametrize(("change", "error", "message"), SHARED + SIGMOID, ids=[case[2] for case in SHARED + SIGMOID])
def test_sigmoid_refuses(change, error, message):
    with pytest.raises(error, match=message):
        binary_cyclical_focal_loss(**({"logits": X, "target": Y, "eta": 0.5} | change))


@pytest.mark.parametrize("loss", [CyclicalFocalLoss, BinaryCyclicalFocalLoss])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma_pos": -1.0}, "gamma_pos"),
        ({"cyclical_factor": 0.5}, "cyclical_factor is 0.5"),
        ({"total_steps": 0}, "total_steps is 0"),
        ({"accumulation": 0}, "accumulation is 0"),
        ({"label_smoothing": 2.0}, "label_smoothing"),
        ({"reduction": "avg"}, "reduction"),
    ],
)
def test_modules_refuse_at_construction(loss, options, message):
    with pytest.raises(ValueError, match=message):
        loss(**options)


def test_what_torch_accepts_is_accepted():
    cyclical_focal_loss(X, 5 * Y, torch.tensor([-1.0, 0.0, 2.0]), eta=0.5)


def test_a_gamma_hc_that_is_not_monotone_warns_once():
    arguments._warn_not_monotone.cache_clear()
    with pytest.warns(UserWarning, match=r"above 3\.59.*wrong way"):
        cyclical_focal_loss(X, T, eta=0.5, gamma_hc=4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cyclical_focal_loss(X, T, eta=0.5, gamma_hc=4.0)
        cyclical_focal_loss(X, T, eta=0.5, gamma_hc=3.59)
