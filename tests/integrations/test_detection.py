"""Promise: torchvision's detectors learn from scenes of handwritten digits, by the cyclical and by the focal loss."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cyclofocal import BinaryCyclicalFocalLoss
from cyclofocal.integrations.progress import set_clock
from cyclofocal.schedules import cyclical_eta

pytest.importorskip("torchvision")
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou

from cyclofocal.integrations.torchvision import swap_loss

SIZE, QUARTER, CLASSES, CHANNELS = 48, 24, 2, 32
SCENES, BATCH, STEPS = 240, 4, 200


def _scenes(digits, labels, count, seed):
    """One to three digits of 14 to 22 pixels, each somewhere in a separate quarter of the image."""
    generator = np.random.default_rng(seed)
    images, targets = torch.zeros(count, 1, SIZE, SIZE), []
    for image in images:
        corners, rows = generator.permutation(4)[: generator.integers(1, 4)], []
        for corner in corners:
            row, side = generator.integers(len(digits)), int(generator.integers(14, 23))
            top, left = (QUARTER * place + generator.integers(QUARTER - side + 1) for place in divmod(int(corner), 2))
            digit = F.interpolate(digits[row][None, None], size=(side, side), mode="bilinear")
            image[:, top : top + side, left : left + side] = digit[0]
            rows.append([left, top, left + side, top + side, labels[row]])
        rows = torch.tensor(np.array(rows))
        targets.append({"boxes": rows[:, :4].float(), "labels": rows[:, 4]})
    return list(images.expand(-1, 3, -1, -1)), targets


@pytest.fixture(scope="module")
def scenes():
    """Scenes for training, and others with different digits for testing."""
    x, y = pytest.importorskip("sklearn.datasets").load_digits(n_class=CLASSES, return_X_y=True)
    x, half = torch.from_numpy(np.float32(x / 16)).view(-1, 8, 8), len(x) // 2
    return _scenes(x[:half], y[:half], SCENES, seed=0), _scenes(x[half:], y[half:], 60, seed=1)


class Backbone(nn.Sequential):
    out_channels = CHANNELS

    def __init__(self):
        layers, channels = [], (3, 16, CHANNELS, CHANNELS)
        for here, there, stride in zip(channels, channels[1:], (2, 2, 1), strict=False):
            layers += [nn.Conv2d(here, there, 3, stride, 1), nn.GroupNorm(8, there), nn.ReLU()]
        super().__init__(*layers)


def _detector(kind):
    anchors = AnchorGenerator(((18,),) if kind is RetinaNet else ((8,),), ((1.0,),))
    options = {"min_size": SIZE, "max_size": SIZE, "image_mean": [0.1] * 3, "image_std": [0.3] * 3}
    if kind is RetinaNet:
        # Its head begins with so small weights that 32 channels fade within four layers; the norm of its second version
        # helps. One square size rarely meets a digit at 0.5.
        options["head"] = RetinaNetHead(CHANNELS, 1, CLASSES, norm_layer=partial(nn.GroupNorm, 8))
        options |= {"fg_iou_thresh": 0.4, "bg_iou_thresh": 0.3}
    return kind(Backbone(), num_classes=CLASSES, anchor_generator=anchors, **options)


def _train(model, criterion, images, targets, cyclical):
    """SGD with warm-up and clipping: at eta 1 the first gradients of thousands of easy anchors are large."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=STEPS, pct_start=0.1)
    for step in range(STEPS):
        if cyclical:
            set_clock(criterion, step, STEPS)
        rows = [row % SCENES for row in range(step * BATCH, (step + 1) * BATCH)]
        losses = model([images[row] for row in rows], [targets[row] for row in rows])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()


def _ap50(predictions, targets, label):
    """Area under precision over recall, precision made falling; a box is right at an overlap of 0.5 with a free one."""
    found, count = [], 0
    for predicted, target in zip(predictions, targets, strict=True):
        free = target["boxes"][target["labels"] == label]
        count += len(free)
        chosen = predicted["labels"] == label
        for place in predicted["scores"][chosen].argsort(descending=True):
            overlap = box_iou(predicted["boxes"][chosen][place][None], free)[0]
            right = len(free) > 0 and overlap.max().item() >= 0.5
            found.append((predicted["scores"][chosen][place].item(), right))
            if right:
                free = free[torch.arange(len(free)) != overlap.argmax()]
    right = np.array([right for _, right in sorted(found, reverse=True)], dtype=float)
    recall, precision = right.cumsum() / count, right.cumsum() / np.arange(1, len(right) + 1)
    return float(np.diff(recall, prepend=0) @ np.maximum.accumulate(precision[::-1])[::-1])


@pytest.mark.parametrize("kind", [FCOS, RetinaNet])
@pytest.mark.parametrize("cyclical", [False, True], ids=["focal", "cyclical"])
def test_digits_are_found_and_named(kind, cyclical, scenes, watch):
    (images, targets), (test_images, test_targets) = scenes
    torch.manual_seed(1)
    model = _detector(kind)
    criterion = BinaryCyclicalFocalLoss(alpha=0.25, gamma_hc=2.0, reduction="sum", schedule=watch)
    swap_loss(model, criterion)
    criterion.set_progress(0.25)  # focal, unless progress changes
    watch.seen.clear()
    _train(model, criterion, images, targets, cyclical)
    expected = [cyclical_eta(step / (STEPS - 1)) for step in range(STEPS)] if cyclical else []
    assert watch.seen == pytest.approx(expected)
    with torch.inference_mode():
        predictions = model.eval()(test_images)
    precision = [_ap50(predictions, test_targets, label) for label in range(CLASSES)]
    assert np.mean(precision) > 0.6, precision


def test_ap50_is_the_area():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    target = [{"boxes": boxes, "labels": torch.zeros(2, dtype=torch.int64)}]
    found = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 31], [40, 40, 50, 50]])
    predicted = [{"boxes": found, "labels": torch.tensor([0, 0, 0, 1]), "scores": torch.tensor([0.9, 0.8, 0.7, 0.6])}]
    assert _ap50(predicted, target, 0) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)  # right, double, right
