"""Promise: in torchvision's RetinaNet and FCOS the swapped loss is theirs at eta 0, and a part of the model."""

import copy
import pickle

import pytest
import torch
from torch import nn

from cyclofocal import BinaryCyclicalFocalLoss

pytest.importorskip("torchvision")
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from cyclofocal.integrations.torchvision import swap_loss

SIZE = 48


class Backbone(nn.Sequential):
    out_channels = 32

    def __init__(self):
        super().__init__(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())


def _detector(kind):
    torch.manual_seed(0)
    sizes = ((12, 16, 20),) if kind is RetinaNet else ((8,),)
    anchors = AnchorGenerator(sizes, ((1.0,),))
    return kind(Backbone(), num_classes=3, min_size=SIZE, max_size=SIZE, anchor_generator=anchors)


@pytest.fixture(scope="module")
def scenes():
    """Two images with objects, and one with none: there the division is by 1."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, SIZE, SIZE, generator=generator).double()
    boxes = [torch.tensor([[4.0, 4, 20, 22], [25, 20, 45, 44]]), torch.tensor([[10.0, 12, 26, 28]]), torch.zeros(0, 4)]
    labels = [torch.tensor([0, 2]), torch.tensor([1]), torch.zeros(0, dtype=torch.int64)]
    return list(images), [{"boxes": b.double(), "labels": c} for b, c in zip(boxes, labels, strict=True)]


def _criterion(progress, **settings):
    criterion = BinaryCyclicalFocalLoss(alpha=0.25, reduction="sum", **settings)
    criterion.set_progress(progress)
    return criterion


@pytest.mark.parametrize("kind", [RetinaNet, FCOS])
def test_at_eta_0_it_is_torchvisions_own(kind, scenes):
    own = _detector(kind).double()
    swapped = copy.deepcopy(own)
    swap_loss(swapped, _criterion(0.25))
    expected, losses = own(*scenes), swapped(*scenes)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-12, atol=1e-12)
    sum(expected.values()).backward()
    sum(losses.values()).backward()
    for there, here in zip(own.parameters(), swapped.parameters(), strict=True):
        torch.testing.assert_close(here.grad, there.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [RetinaNet, FCOS])
def test_the_prior_is_a_bias_of_the_head_in_training(kind, scenes):
    """Torchvision's loss of a head whose bias contains the prior is the loss with that logit_offset."""
    own = _detector(kind).double()
    swapped = copy.deepcopy(own)
    criterion = BinaryCyclicalFocalLoss.from_counts([9, 2, 30], 100, tau=0.5, alpha=0.25, reduction="sum")
    criterion.set_progress(0.25)
    swap_loss(swapped, criterion)
    share = torch.tensor([0.09, 0.02, 0.3]).double()
    with torch.no_grad():
        own.head.classification_head.cls_logits.bias.view(-1, 3).add_(0.5 * (share / (1 - share)).log())
    losses = swapped(*scenes)
    for name, value in own(*scenes).items():
        torch.testing.assert_close(losses[name], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", [RetinaNet, FCOS])
def test_the_clock_moves_the_classification_loss_alone(kind, scenes):
    model, criterion = _detector(kind).double(), _criterion(0.25)
    swap_loss(model, criterion)
    focal = model(*scenes)
    criterion.set_progress(0.0)
    easy = model(*scenes)
    assert easy["classification"] > focal["classification"] * 1.5
    others = {name: value for name, value in focal.items() if name != "classification"}
    assert others == {name: easy[name] for name in others}


@pytest.mark.parametrize("kind", [RetinaNet, FCOS])
def test_copies_and_checkpoints_hold_the_clock(kind, scenes):
    model = _detector(kind).double()
    swap_loss(model, _criterion(0.6))
    before = model(*scenes)["classification"]
    copied, pickled, resumed = copy.deepcopy(model), pickle.loads(pickle.dumps(model)), _detector(kind).double()
    swap_loss(resumed, _criterion(0.0))
    resumed.load_state_dict(model.state_dict())
    model.load_state_dict(model.state_dict() | {k: torch.zeros_like(v) for k, v in model.state_dict().items()})
    for other in (copied, pickled, resumed):
        torch.testing.assert_close(other(*scenes)["classification"], before)


@pytest.mark.parametrize("kind", [RetinaNet, FCOS])
def test_forwards_do_not_change_progress_but_warn_if_never_set(kind, scenes):
    model, criterion = _detector(kind).double(), _criterion(0.25)
    swap_loss(model, criterion)
    for _ in range(2):  # accumulated
        sum(model(*scenes).values()).backward()
    assert criterion.progress == 0.25
    forgotten = BinaryCyclicalFocalLoss(alpha=0.25, reduction="sum")
    swap_loss(model, forgotten)
    with pytest.warns(UserWarning, match="progress was never set"):
        [model(*scenes) for _ in range(100)]


def test_swapping_again_takes_the_new_one(scenes):
    model = _detector(RetinaNet).double()
    swap_loss(model, _criterion(0.0))
    swap_loss(model, _criterion(0.25))
    assert model.head.classification_head.criterion.eta == 0


def test_a_wrong_call_is_refused():
    with pytest.raises(TypeError, match="CrossEntropyLoss"):
        swap_loss(_detector(FCOS), nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"has total_steps=10 .* and call criterion\.set_progress"):
        swap_loss(_detector(FCOS), BinaryCyclicalFocalLoss(reduction="sum", total_steps=10))
    with pytest.raises(ValueError, match="reduction is 'mean'"):
        swap_loss(_detector(FCOS), BinaryCyclicalFocalLoss())
    with pytest.raises(ValueError, match="model is a Linear without the head"):
        swap_loss(nn.Linear(2, 2), BinaryCyclicalFocalLoss(reduction="sum"))
