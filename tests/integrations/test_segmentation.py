"""Promise: networks of segmentation-models-pytorch and MONAI train with the loss, added to their Dice losses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cyclofocal import CyclicalFocalLoss, class_counts
from cyclofocal.schedules import cyclical_eta

IGNORE, STEPS = 255, 40


@pytest.fixture(scope="module")
def masks():
    """Handwritten zeros and ones: images (N, 1, 32, 32) and a mask of 0 (paper), 1 (of a zero), 2 (of a one).

    Pixels between ink and paper are left open (255).
    """
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(n_class=2, return_X_y=True)
    images = torch.from_numpy(np.float32(x / 16)).view(-1, 1, 8, 8)
    images = F.interpolate(images, size=32, mode="bilinear")
    ink = images.squeeze(1)
    target = torch.where(ink > 0.5, torch.from_numpy(y).view(-1, 1, 1) + 1, 0)
    target[(ink > 0.3) & (ink < 0.7)] = IGNORE
    return images[:128], target[:128]


def _train(network, images, target, criterion, dice, batch=12):
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    etas = []
    for step in range(STEPS):
        rows = torch.arange(step * batch, (step + 1) * batch) % (len(images) // 2)
        etas.append(criterion.eta.item())
        logits = network(images[rows])
        loss = criterion(logits, target[rows]) + dice(logits, target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        return etas, network.eval()(images[len(images) // 2 :]).argmax(1)


def _mean_iou(predicted, target):
    seen = target != IGNORE
    both = [((predicted == c) & (target == c)).sum() for c in range(3)]
    either = [(((predicted == c) | (target == c)) & seen).sum() for c in range(3)]
    return np.mean([(a / b).item() for a, b in zip(both, either, strict=True)])


def _criterion(**settings):
    weight = torch.tensor([0.5, 1.0, 1.0])
    return CyclicalFocalLoss(weight, ignore_index=IGNORE, total_steps=STEPS, **settings)


def test_segmentation_models_pytorch(masks):
    smp = pytest.importorskip("segmentation_models_pytorch")
    images, target = masks
    torch.manual_seed(0)
    network = smp.Unet(
        "mobilenet_v2", encoder_depth=3, encoder_weights=None, decoder_channels=(32, 16, 8), in_channels=1, classes=3
    )
    dice = smp.losses.DiceLoss("multiclass", ignore_index=IGNORE)
    etas, predicted = _train(network, images, target, _criterion(), dice)
    assert (etas[0], min(etas), etas[-1]) == pytest.approx((1, 0, 0.98), abs=0.05)
    assert _mean_iou(predicted, target[64:]) > 0.6  # all paper: 0.3


def test_monai_in_three_dimensions(masks):
    networks, losses = pytest.importorskip("monai.networks.nets"), pytest.importorskip("monai.losses")
    images, target = (t[..., ::2, ::2].unsqueeze(-1).repeat_interleave(4, -1) for t in masks)  # 16 x 16 x 4
    torch.manual_seed(0)
    network = networks.UNet(
        spatial_dims=3, in_channels=1, out_channels=3, channels=(8, 16, 32), strides=((2, 2, 1), (2, 2, 1))
    )
    overlap = losses.DiceLoss(softmax=True, to_onehot_y=True, ignore_index=IGNORE)

    def dice(logits, target):
        return overlap(logits, target.unsqueeze(1))  # MONAI has a channel

    etas, predicted = _train(network, images, target, _criterion(), dice)
    assert min(etas) == pytest.approx(0, abs=0.05)
    assert _mean_iou(predicted, target[64:]) > 0.6  # all paper: 0.3


def test_eta_under_accumulation_and_after_loading_a_state(masks):
    networks = pytest.importorskip("monai.networks.nets")
    images, target = (part[:4] for part in masks)
    network = networks.UNet(spatial_dims=2, in_channels=1, out_channels=3, channels=(4, 8), strides=(2,))
    optimizer, seen = torch.optim.SGD(network.parameters(), lr=0.1), []

    def train(criterion, batches):
        for batch in batches:
            seen.append(criterion.eta.item())
            criterion(network(images), target).backward()
            if batch % 2:
                optimizer.step()
                optimizer.zero_grad()
        return criterion

    def accumulating():
        return CyclicalFocalLoss(ignore_index=IGNORE, total_steps=5, accumulation=2)

    halted, resumed = train(accumulating(), range(4)), accumulating()
    resumed.load_state_dict(halted.state_dict())
    train(resumed, range(4, 10))
    assert seen == pytest.approx([cyclical_eta(batch // 2 / 4) for batch in range(10)], abs=1e-6)


@pytest.mark.parametrize(("scheme", "tau"), [(None, 1.0), ("balanced", 0.0), ("sqrt", 0.5), ("effective", 1.0)])
def test_pixels_of_a_loader_give_class_weights_and_the_prior(masks, prior_loss, scheme, tau):
    """The loss of a network's batch is the independent one of its pixels, and so is the gradient of its last bias."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    images, target = masks
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, target), batch_size=48)
    counts = class_counts((target for _, target in loader), 3, ignore_index=IGNORE)
    assert counts.tolist() == [int((target == c).sum()) for c in range(3)]
    options = {"encoder_weights": None, "encoder_depth": 3, "decoder_channels": (16, 8, 8), "in_channels": 1}
    network = smp.Unet("mobilenet_v2", classes=3, **options)
    settings = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0, "ignore_index": IGNORE}
    criterion = CyclicalFocalLoss.from_counts(counts, class_weight=scheme, tau=tau, **settings)
    logits = network(images[:4])
    loss = criterion(logits, target[:4])
    loss.backward()
    seen = target[:4] != IGNORE
    rows = logits.detach().movedim(1, -1)[seen]
    value, gradient = prior_loss(rows, target[:4][seen], counts, tau, scheme)
    assert loss.item() == pytest.approx(value, rel=1e-4)
    bias = network.segmentation_head[0].bias.grad
    assert bias.tolist() == pytest.approx(gradient.sum(0), abs=1e-5)


def test_a_rare_class_is_segmented_with_the_prior_taken_out(masks):
    networks = pytest.importorskip("monai.networks.nets")
    images, target = masks
    counts = class_counts(target, 3, ignore_index=IGNORE)
    torch.manual_seed(0)
    network = networks.UNet(spatial_dims=2, in_channels=1, out_channels=3, channels=(8, 16, 32), strides=(2, 2))
    settings = {"class_weight": "sqrt", "weight_start": 0.8, "ignore_index": IGNORE, "total_steps": STEPS}
    criterion = CyclicalFocalLoss.from_counts(counts, tau=1.0, **settings)
    _, predicted = _train(network, images, target, criterion, lambda *_: 0)
    recalls = [((predicted == c) & (target[64:] == c)).sum() / (target[64:] == c).sum() for c in range(3)]
    assert sum(recalls) / 3 > 0.6  # chance: 0.33
    assert criterion.progress == 1


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 4, 6, 8)])
def test_what_is_ignored_and_what_a_class_weighs(shape):
    logits = torch.randn(shape, requires_grad=True)
    target = torch.randint(3, (shape[0], *shape[2:]))
    target[0, :2] = IGNORE
    _criterion()(logits, target).backward()
    open_ = (target == IGNORE).unsqueeze(1).expand(shape)
    assert not logits.grad[open_].any()
    assert logits.grad[~open_].all()
    plain = _criterion(gamma_pos=0.0, gamma_neg=0.0, gamma_hc=0.0)
    expected = F.cross_entropy(logits, target, plain.weight, ignore_index=IGNORE)
    torch.testing.assert_close(plain(logits, target), expected)
