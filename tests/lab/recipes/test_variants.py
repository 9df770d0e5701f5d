"""The variants of the loss in results/ differ from the cyclical focal loss in the one way that their names say."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cyclofocal import CyclicalFocalLoss
from cyclofocal.lab.recipes.criterion import build_criterion
from cyclofocal.lab.recipes.custom_loss import file_digest, load_loss
from cyclofocal.lab.recipes.parse_losses import losses_in

FILE = Path(__file__).parents[3] / "results/variants.py"
COUNTS = [50, 10, 2]


@pytest.fixture
def batch():
    return torch.randn(12, 3, requires_grad=True), torch.arange(12) % 3


def variant(name, progress) -> Any:
    loss: Any = load_loss(f"{FILE}:{name}", file_digest(FILE), COUNTS)
    loss.set_progress(progress)
    return loss


def base(progress) -> Any:
    loss: Any = build_criterion(losses_in("cyclical:tau=1")[0], COUNTS)
    loss.set_progress(progress)
    return loss


def gradient(loss, batch):
    return torch.autograd.grad(loss(*batch), batch[0])[0]


@pytest.mark.parametrize("name", ["Capped", "Detached", "EtaByClass"])
def test_the_focal_phase_has_the_value_of_the_base(name, batch):
    torch.testing.assert_close(variant(name, 0.25)(*batch), base(0.25)(*batch))


def test_the_cap_holds_and_leaves_lower_values_alone(batch):
    assert variant("Capped", 0.0).eta.item() == pytest.approx(0.45)
    torch.testing.assert_close(variant("Capped", 0.2)(*batch), base(0.2)(*batch))


def test_the_mirror_image_swaps_the_ends_and_the_turn(batch):
    torch.testing.assert_close(variant("Mirrored", 0.0)(*batch), base(0.25)(*batch))
    torch.testing.assert_close(variant("Mirrored", 0.25)(*batch), base(0.0)(*batch))


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_detached_weights_change_the_gradient_alone(batch, progress):
    ours, theirs = variant("Detached", progress), base(progress)
    torch.testing.assert_close(ours(*batch), theirs(*batch))
    assert not torch.allclose(gradient(ours, batch), gradient(theirs, batch), rtol=0.05)


@pytest.mark.parametrize("progress", [0.0, 0.4])
def test_normalising_changes_the_scale_alone(batch, progress):
    ratio = gradient(variant("Normalised", progress), batch) / gradient(base(progress), batch)
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))


def test_eta_by_class_is_0_for_the_head_and_full_for_the_tail(batch):
    logits, target = batch
    loss = variant("EtaByClass", 0.0)
    head, tail = target == 0, target == 2
    torch.testing.assert_close(loss(logits[head], target[head]), base(0.25)(logits[head], target[head]))
    nearly_one = loss(logits[tail], target[tail])
    eta = CyclicalFocalLoss(schedule=lambda progress: 0 * progress + 1 - 2 / 50, label_smoothing=0.1)
    eta.logit_offset = loss.logit_offset
    torch.testing.assert_close(nearly_one, eta(logits[tail], target[tail]))
