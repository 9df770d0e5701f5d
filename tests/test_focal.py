"""The focal losses are the cyclical ones at eta 0, whatever the progress."""

import warnings

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from cyclofocal import BinaryFocalLoss, FocalLoss, binary_cyclical_focal_loss, cyclical_focal_loss


def test_softmax_form_is_the_function_at_eta_0():
    logits, target = torch.randn(6, 4), torch.randint(4, (6,))
    criterion = FocalLoss(gamma_pos=1.5, gamma_neg=3.0, label_smoothing=0.1)
    expected = cyclical_focal_loss(logits, target, eta=0.0, gamma_pos=1.5, gamma_neg=3.0, label_smoothing=0.1)
    for progress in (0.0, 0.5, 1.0):
        criterion.set_progress(progress)
        assert torch.equal(criterion(logits, target), expected)


def test_sigmoid_form_is_torchvisions():
    logits, target = torch.randn(6, 4, dtype=torch.float64), torch.randint(2, (6, 4)).double()
    ours = BinaryFocalLoss(alpha=0.25)(logits, target)
    torch.testing.assert_close(ours, sigmoid_focal_loss(logits, target, 0.25, 2.0, "mean"), rtol=1e-12, atol=0)
    margin = BinaryFocalLoss(gamma_pos=0.0, gamma_neg=4.0, probability_margin=0.05)(logits, target)
    settings = {"gamma_pos": 0.0, "gamma_neg": 4.0, "probability_margin": 0.05}
    assert margin == binary_cyclical_focal_loss(logits, target, eta=0.0, **settings)


def test_progress_need_not_be_set():
    criterion = FocalLoss()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(200):
            criterion(torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1])).backward()
    late = FocalLoss.from_counts([3, 2, 1], class_weight="balanced", weight_start=0.5)
    assert type(late) is FocalLoss

    def train():
        for _ in range(200):
            late(torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1])).backward()

    with pytest.warns(UserWarning, match="progress was never set"):
        train()


@pytest.mark.parametrize("name", ["gamma_hc", "cyclical_factor", "schedule"])
def test_settings_of_the_cycle_are_refused(name):
    for kind in (FocalLoss, BinaryFocalLoss):
        with pytest.raises(TypeError, match=f"{name} is a setting of the cycle, which {kind.__name__} does not have"):
            kind(**{name: 2.0})
