"""The losses for imbalanced data have the values and gradients of their papers, in float64 loops over the formulas."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from cyclofocal.lab.recipes.catalogue import RECIPES
from cyclofocal.lab.recipes.criterion import build_box_criterion, build_criterion
from cyclofocal.lab.recipes.detection import digit_scenes
from cyclofocal.lab.recipes.loss import DETECTION_LOSSES, LOSSES
from cyclofocal.lab.recipes.parse_losses import losses_in, spelled_loss
from cyclofocal.lab.recipes.settings import SettingError
from cyclofocal.lab.training.models import CosineClassifier, classifier_of, use_cosine_classifier
from cyclofocal.lab.training.train_state import initial_model, try_custom_loss
from cyclofocal.schedules import cyclical_eta

COUNTS = [5000, 700, 80, 6]
BETA = 0.9999


def log_softmax(z):
    top = max(z)
    total = math.log(math.fsum(math.exp(v - top) for v in z)) + top
    return [v - total for v in z]


def mean_one(weights):
    return [len(weights) * w / math.fsum(weights) for w in weights]


def effective():
    return mean_one([(1 - BETA) / (1 - BETA**n) for n in COUNTS])


def weighted(z, t, progress):
    w = mean_one([1 / n for n in COUNTS])[t]
    return -w * log_softmax(z)[t], w


def balanced_softmax(z, t, progress):
    top = max(z)
    total = math.fsum(n * math.exp(v - top) for n, v in zip(COUNTS, z, strict=True))
    return -math.log(COUNTS[t] * math.exp(z[t] - top) / total), 1.0


def logit_adjusted(z, t, progress):
    prior = [n / sum(COUNTS) for n in COUNTS]
    gaps = [math.exp(z[j] - z[t]) * prior[j] / prior[t] for j in range(len(z)) if j != t]
    return math.log1p(math.fsum(gaps)), 1.0


def class_balanced_focal(z, t, progress):
    log_p, w = log_softmax(z)[t], effective()[t]
    return -w * (1 - math.exp(log_p)) ** 2 * log_p, w


def ldam_drw(z, t, progress):
    margins = [n**-0.25 for n in COUNTS]
    margins = [0.5 * m / max(margins) for m in margins]
    w = effective()[t] if progress >= 0.8 else 1.0
    return -w * log_softmax([v - 30 * margins[t] * (j == t) for j, v in enumerate(z)])[t], w


def vs(z, t, progress):
    scaled = [
        v * (n / max(COUNTS)) ** 0.3 + math.log(n / sum(COUNTS)) for v, n in zip(z, COUNTS, strict=True)
    ]  # Delta_c = (n_max / n_c)^0.3 divides the logit
    return -log_softmax(scaled)[t], 1.0


FORMULAS = {
    "weighted": weighted,
    "logit-adjusted": logit_adjusted,
    "balanced-softmax": balanced_softmax,
    "class-balanced-focal": class_balanced_focal,
    "ldam-drw": ldam_drw,
    "vs": vs,
}


@pytest.mark.parametrize("progress", [0.0, 0.79, 0.8, 1.0])
@pytest.mark.parametrize("name", FORMULAS)
def test_values_and_gradients_are_those_of_the_formula(name, progress):
    logits = 3 * torch.randn(12, 4, dtype=torch.float64)
    target = torch.arange(12) % 4
    criterion = build_criterion(next(loss for loss in LOSSES if loss.name == name), COUNTS)
    assert isinstance(criterion, nn.Module)
    criterion.double().set_progress(progress)

    def expected(z):
        rows = [FORMULAS[name](row, t, progress) for row, t in zip(z.tolist(), target.tolist(), strict=True)]
        return math.fsum(loss for loss, _ in rows) / math.fsum(weight for _, weight in rows)

    x = logits.clone().requires_grad_()
    loss = criterion(x, target)
    assert loss.item() == pytest.approx(expected(logits), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, x)
    step = 1e-5
    for i, j in [(0, 0), (1, 1), (2, 2), (3, 3), (5, 0), (7, 2)]:
        shifted = [logits.clone() for _ in range(2)]
        shifted[0][i, j] += step
        shifted[1][i, j] -= step
        slope = (expected(shifted[0]) - expected(shifted[1])) / (2 * step)
        assert gradient[i, j].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("name", ["ldam-drw", "vs"])
def test_one_hot_targets_are_indices(name):
    criterion = build_criterion(next(loss for loss in LOSSES if loss.name == name), COUNTS)
    logits, target = torch.randn(8, 4), torch.arange(8) % 4
    soft = nn.functional.one_hot(target, 4).float()
    torch.testing.assert_close(criterion(logits, soft), criterion(logits, target))


@pytest.mark.parametrize("name", ["small-convnet", "small-resnet", "cifar-resnet-32", "resnet18"])
def test_margins_are_of_a_normalised_last_layer(name):
    from dataclasses import replace

    recipe = replace(RECIPES["digits"](), model=name, width=0 if name == "resnet18" else 4, image_size=32)
    model = initial_model(recipe, 5, seed=1, cosine_scale=30.0).eval()
    logits = model(1e3 * torch.randn(64, 1, 32, 32))
    assert logits.shape == (64, 5)
    assert logits.abs().max() <= 30 * (1 + 1e-5)
    assert any(isinstance(layer, CosineClassifier) for layer in model.modules())
    again = initial_model(recipe, 5, seed=1, cosine_scale=30.0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_model_without_a_linear_classifier_is_refused():
    model = nn.Sequential(nn.Flatten())
    model.classifier = nn.Identity()
    with pytest.raises(ValueError, match="model ends in Identity; it must end in a linear classifier"):
        use_cosine_classifier(model, 30.0)
    assert classifier_of(initial_model(RECIPES["digits"](), 5, seed=0)).out_features == 5


@pytest.mark.filterwarnings("ignore:label_smoothing is")
def test_the_prior_goes_with_every_loss():
    logits, target = torch.randn(8, 4), torch.arange(8) % 4
    shift = torch.tensor(COUNTS).double().div(sum(COUNTS)).log().float()
    for name in ("ce", "smoothed", "focal", "asymmetric", "cyclical"):
        plain, prior = losses_in(f"{name},{name}:tau=0.7")
        a, b = build_criterion(plain, COUNTS), build_criterion(prior, COUNTS)
        torch.testing.assert_close(b(logits, target), a(logits + 0.7 * shift, target))


ONLY_MARGINS = "ldam-drw:class_weight=none,weight_start=0"


@pytest.mark.parametrize("name", ["logit-adjusted", "weighted", ONLY_MARGINS, "vs:tau=0"])
def test_a_class_without_samples_is_refused_by_name(name):
    (loss,) = losses_in(name)
    with pytest.raises(ValueError, match="counts is 0 for class 1"):
        build_criterion(loss, [3, 0, 2])


@pytest.mark.filterwarnings("error")
def test_margins_alone_say_nothing_of_counts_without_use():
    (loss,) = losses_in(ONLY_MARGINS)
    build_criterion(loss, COUNTS)


def test_settings_of_imbalance_are_stored_where_they_are_set():
    plain, prior = losses_in("focal,focal:tau=1")
    assert "tau" not in plain.flat()
    assert prior.flat()["tau"] == 1


DENSE = {loss.name: loss for loss in DETECTION_LOSSES}


def anchors():
    """Logits and targets of anchors in float64, most of them background."""
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(200, 4, dtype=torch.float64, generator=generator)
    return logits.requires_grad_(), (torch.rand(200, 4, generator=generator) < 0.03).double()


def test_focal_of_boxes_is_that_of_torchvision():
    ops = pytest.importorskip("torchvision.ops")
    logits, target = anchors()
    ours = build_box_criterion(DENSE["focal"], COUNTS)(logits, target)
    theirs = ops.sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2, reduction="sum")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    (one,), (other,) = (torch.autograd.grad(loss, logits, retain_graph=True) for loss in (ours, theirs))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(DENSE))
@pytest.mark.parametrize("progress", [0.0, 0.1, 0.25, 1.0])
def test_losses_of_boxes_have_the_values_of_their_equations(name, progress):
    loss, (logits, target) = DENSE[name], anchors()
    criterion: Any = build_box_criterion(loss, COUNTS)
    if loss.cyclical_factor is not None:
        criterion.set_progress(progress)
    eta = cyclical_eta(progress, loss.cyclical_factor) if loss.cyclical_factor else 0.0
    p = logits.sigmoid()
    alpha = 1.0 if loss.alpha is None else loss.alpha
    positive = (1 - eta) * (1 - p) ** loss.gamma_pos + eta * (1 + p) ** loss.gamma_hc
    negative = (1 - eta) * p**loss.gamma_neg + eta * (2 - p) ** loss.gamma_hc
    side = torch.tensor(effective() if loss.class_weight else [1.0] * 4, dtype=torch.float32).double()
    expected = -(target * side * alpha * positive * p.log())
    expected -= (1 - target) * (1.0 if loss.alpha is None else 1 - alpha) * negative * (-logits).sigmoid().log()
    torch.testing.assert_close(criterion(logits, target), expected.sum(), rtol=1e-6, atol=0)  # eta is in float32


def test_batches_of_images_with_boxes_cannot_be_balanced(tmp_path):
    loss = tmp_path / "loss.py"
    loss.write_text("def mine(logits, target):\n    return logits.sum()\n")
    assert losses_in(f"{loss}:mine,sampler=balanced")[0].sampler == "balanced"
    with pytest.raises(SettingError, match="'sampler' is not a setting of mine; allowed: learning_rate_scale"):
        losses_in(f"{loss}:mine,sampler=balanced", boxes=True)


def test_losses_of_boxes_are_spelled_as_they_are_read():
    text = "bce,cyclical:gamma_hc=2,alpha=0.5,focal:alpha=0.1,class-balanced-focal:class_weight=balanced"
    losses = losses_in(text, boxes=True)
    assert [loss.name for loss in losses] == [
        "bce",
        "cyclical:gamma_hc=2,alpha=0.5",
        "focal:alpha=0.1",
        "class-balanced-focal:class_weight=balanced",
    ]
    assert [spelled_loss(loss, boxes=True) for loss in losses] == [loss.name for loss in losses]
    with pytest.raises(SettingError, match="'ce' is not a loss of detectors; allowed: bce, focal"):
        losses_in("ce", boxes=True)
    with pytest.raises(SettingError, match=r"alpha must lie in|alpha is 2"):
        losses_in("focal:alpha=2", boxes=True)
    with pytest.raises(SettingError, match="'bce' is not a loss; allowed: ce"):
        losses_in("bce")


def test_a_custom_loss_of_boxes_is_tried_on_anchors(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "import torch.nn.functional as F\n"
        "def summed(logits, target):\n"
        "    return F.binary_cross_entropy_with_logits(logits, target, reduction='sum')\n"
        "def indices(logits, target):\n"
        "    return F.cross_entropy(logits, target.long())\n"
    )
    summed, indices = losses_in(f"{file}:summed,{file}:indices", boxes=True)
    try_custom_loss(digit_scenes(), summed, COUNTS)
    logits, target = anchors()
    own = build_box_criterion(summed, COUNTS)(logits, target)
    torch.testing.assert_close(own, build_box_criterion(DENSE["bce"], COUNTS)(logits, target))
    with pytest.raises(ValueError, match=r"called with logits \(N, 4\) and 0 or 1 for each anchor and class"):
        try_custom_loss(digit_scenes(), indices, COUNTS)
