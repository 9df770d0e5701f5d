"""Promise: a wrong argument is refused before any work, and the message gives the rule."""

import warnings

import pytest
import torch

from cyclofocal import BinaryCyclicalFocalLoss, CyclicalFocalLoss, arguments
from cyclofocal.functional import binary_cyclical_focal_loss, cyclical_focal_loss
from cyclofocal.linear import linear_cyclical_focal_loss

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


class Mask(torch.Tensor):
    """An ordinary subclass, as torchvision's and MONAI's are."""


@pytest.mark.parametrize("kind", ["own", "torchvision", "monai"])
def test_subclasses_of_tensor_are_checked_and_taken(kind):
    if kind == "own":
        subclass = lambda t: t.as_subclass(Mask)  # noqa: E731
    elif kind == "torchvision":
        subclass = pytest.importorskip("torchvision.tv_tensors").Mask
    else:
        subclass = pytest.importorskip("monai.data").MetaTensor
    with pytest.raises(ValueError, match="from 0 to 255"):
        binary_cyclical_focal_loss(torch.zeros(2, 2), subclass(torch.tensor([[0, 255], [255, 0]])), eta=0.5)
    with pytest.raises(IndexError, match="class 255 for 3 classes"):
        cyclical_focal_loss(X, subclass(torch.tensor([0, 255, 1, 2])), eta=0.5)
    with pytest.raises(IndexError, match="class 255 for 3 classes"):
        linear_cyclical_focal_loss(X, X[:3], subclass(torch.tensor([0, 255, 1, 2])), eta=0.5)
    for requires_grad in (False, True):
        logits = subclass(X.clone()).requires_grad_(requires_grad)
        for value, expected in (
            (
                cyclical_focal_loss(logits, subclass(T), subclass(Y[0]), eta=0.5),
                cyclical_focal_loss(X, T, Y[0], eta=0.5),
            ),
            (binary_cyclical_focal_loss(logits, subclass(Y), eta=0.5), binary_cyclical_focal_loss(X, Y, eta=0.5)),
        ):
            assert type(value) is torch.Tensor
            torch.testing.assert_close(value, expected)
            if requires_grad:
                value.backward()


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_index_targets_of_every_integer_dtype(dtype):
    logits, target = torch.randn(4, 100), torch.tensor([0, 99, 7, 100])
    expected = cyclical_focal_loss(logits, target, eta=0.5, ignore_index=100)
    torch.testing.assert_close(cyclical_focal_loss(logits, target.to(dtype), eta=0.5, ignore_index=100), expected)
    layer = linear_cyclical_focal_loss(logits, torch.eye(100), target.to(dtype), eta=0.5, ignore_index=100)
    torch.testing.assert_close(layer, expected)
    for function in (cyclical_focal_loss, lambda x, t, **o: linear_cyclical_focal_loss(x, torch.eye(100), t, **o)):
        with pytest.raises(IndexError, match="class 100 for 100 classes"):
            function(logits, target.to(dtype), eta=0.5)
    torch.testing.assert_close(
        binary_cyclical_focal_loss(X, (Y > 0.5).to(dtype), eta=0.5), binary_cyclical_focal_loss(X, (Y > 0.5), eta=0.5)
    )
    with pytest.raises(ValueError, match="from 2 to 2"):
        binary_cyclical_focal_loss(X, torch.full((4, 3), 2).to(dtype), eta=0.5)


@pytest.mark.parametrize(
    ("dtype", "value", "ignore_index", "shown"),
    [
        (torch.uint8, 156, -100, 156),  # what -100 wraps to
        (torch.uint8, 255, -1, 255),
        (torch.int8, -1, 255, -1),
        (torch.uint16, 2**16 - 100, -100, 2**16 - 100),
        (torch.uint32, 2**32 - 1, -1, 2**32 - 1),
        (torch.uint64, 2**64 - 100, -100, 2**64 - 100),
    ],
    ids=str,
)
def test_an_index_is_not_ignored_for_wrapping_around(dtype, value, ignore_index, shown):
    target = torch.tensor([0, value, 1, 2], dtype=dtype)
    with pytest.raises(IndexError, match=f"class {shown} for 3 classes"):
        cyclical_focal_loss(X, target, eta=0.5, ignore_index=ignore_index)
    with pytest.raises(IndexError, match=f"class {shown} for 3 classes"):
        linear_cyclical_focal_loss(X, X[:3], target, eta=0.5, ignore_index=ignore_index)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_float8_is_for_targets_only(dtype):
    for call in (
        lambda x: cyclical_focal_loss(x, T, eta=0.5),
        lambda x: binary_cyclical_focal_loss(x, Y, eta=0.5),
        lambda x: linear_cyclical_focal_loss(x, x, T, eta=0.5),
    ):
        with pytest.raises(TypeError, match=r"has dtype torch.float8.*pass \w+.float\(\)"):
            call(X.to(dtype))
    one_hot = torch.nn.functional.one_hot(T, 3).to(dtype)
    torch.testing.assert_close(cyclical_focal_loss(X, one_hot, eta=0.5), cyclical_focal_loss(X, T, eta=0.5))
    binary = binary_cyclical_focal_loss(X, one_hot, eta=0.5)
    torch.testing.assert_close(binary, binary_cyclical_focal_loss(X, one_hot.float(), eta=0.5))
