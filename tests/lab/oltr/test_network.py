"""The second stage's network begins as its first stage: the same features, whose classifier is the hallucinator."""

import pytest
import timm
import torch
from torch import nn

from cyclofocal.lab.oltr.attention import ModulatedAttention
from cyclofocal.lab.oltr.backbone import Backbone, BottleneckHead
from cyclofocal.lab.oltr.network import OpenLongTailed
from cyclofocal.lab.recipes.head import HEADS
from cyclofocal.lab.training.models import MODELS, SmallResNet


def models():
    ours = [
        (name, lambda name=name: MODELS[name](5, width=8, image_size=32, channels=3))
        for name in MODELS
        if name not in HEADS
    ]
    narrowed = ("narrowed", lambda: BottleneckHead(MODELS["resnet-10"](5, width=4), 6, 5))
    return [*ours, narrowed, ("timm", lambda: timm.create_model("mobilenetv3_small_050", num_classes=5))]


@pytest.mark.parametrize(("name", "make"), models())
def test_three_parts_give_the_logits_of_the_whole(name, make):
    model, images = make().eval(), torch.randn(2, 3, 32, 32)
    expected = model(images)
    backbone = Backbone(model, (3, 32, 32)).eval()
    features = backbone(images)
    assert features.shape == (2, backbone.length)
    assert backbone.feature_map(images).shape[:2] == (2, backbone.channels)
    torch.testing.assert_close(nn.functional.linear(features, backbone.weight, backbone.bias), expected)


def test_resnet_10_has_its_ten_layers_with_weights():
    model = MODELS["resnet-10"](7)
    layers = [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and "downsample" not in name
    ]
    assert len(layers) == 10
    assert model.num_features == 512


@pytest.mark.parametrize("size", [32, 48])
def test_the_second_stage_begins_with_the_features_of_the_first(size):
    model = SmallResNet(5, width=4).eval()
    images = torch.randn(3, 3, size, size)
    features = model.features(images)
    network = OpenLongTailed(Backbone(model, (3, 32, 32))).eval()
    torch.testing.assert_close(network.features(images), features)
    network.memory.fill([(features, torch.tensor([0, 1, 2])), (torch.randn(2, 32), torch.tensor([3, 4]))])
    torch.testing.assert_close(network.classifier.hallucinator(features), model.classifier(features))
    logits, apart = network(images, torch.tensor([1, 2, 0]))  # none at its own centroid
    torch.testing.assert_close(logits, network(images))
    assert logits.isfinite().all()
    assert apart > 0


def test_every_weight_learns_and_frozen_ones_do_not():
    for frozen in (False, True):
        network = OpenLongTailed(Backbone(SmallResNet(5, width=4), (3, 32, 32)), frozen=frozen)
        nn.init.normal_(network.attention.project.weight)
        network.memory.fill([(torch.randn(5, 32), torch.arange(5))])
        network.train()
        assert any(layer.training for layer in network.backbone.modules()) != frozen
        logits, apart = network(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
        (logits.square().mean() + apart).backward()
        still = {name for name, weight in network.named_parameters() if weight.grad is None}
        assert still == ({f"backbone.{name}" for name, _ in network.backbone.named_parameters()} if frozen else set())
        assert isinstance(network.attention, ModulatedAttention)


def test_bottleneck_learns_on_frozen_features():
    backbone = Backbone(BottleneckHead(MODELS["resnet-10"](5, width=4), 6, 5), (3, 32, 32))
    network = OpenLongTailed(backbone, frozen=True)
    assert (backbone.length, network.memory.centroids.shape) == (6, (5, 6))
    learning = {name for name, weight in backbone.named_parameters() if weight.requires_grad}
    assert learning == {"narrow.0.weight", "narrow.0.bias"}


def test_a_model_without_a_feature_map_is_refused():
    with pytest.raises(ValueError, match="must have a feature map"):
        Backbone(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1), (3, 32, 32))
