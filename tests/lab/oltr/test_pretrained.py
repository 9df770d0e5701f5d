"""A network begins with the weights of a file in the layout that Caffe's ResNet-152 is published in."""

from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck

from cyclofocal.lab.data.config import FolderData
from cyclofocal.lab.messages import DamagedDataError, MissingDataError
from cyclofocal.lab.oltr.stage1 import stage1_model
from cyclofocal.lab.oltr.stage_recipe import StageRecipe
from cyclofocal.lab.oltr.weights import load_weights
from cyclofocal.lab.training.train_state import initial_model

LAYERS = (1, 2, 1, 1)
NARROW = StageRecipe("r", "a title", FolderData("x"), epochs=1, learning_rate=0.1, feature_length=6)


def published(path, wrap=lambda weights: weights):
    """A small network of torchvision's, and its file as torch of 2017 wrote it: without counters, not zipped."""
    theirs = torchvision.models.ResNet(Bottleneck, list(LAYERS)).eval()
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    weights = {name: value for name, value in theirs.state_dict().items() if "num_batches" not in name}
    torch.save(wrap(weights), path, _use_new_zipfile_serialization=False)
    return theirs


def ours(classes=7):
    return timm.create_model("resnet50", layers=LAYERS, num_classes=classes).eval()


@pytest.mark.parametrize("wrap", [lambda weights: weights, lambda weights: {"state_dict": weights}])
def test_features_are_those_of_the_network_in_the_file(tmp_path, wrap):
    theirs, model = published(tmp_path / "caffe.pth", wrap), ours()
    head = model.fc.weight.clone()
    load_weights(model, tmp_path / "caffe.pth")
    theirs.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(found, theirs(images), rtol=1e-4, atol=1e-4)
    assert torch.equal(model.fc.weight, head)  # of other classes


def test_resnet_152_has_the_names_of_the_file():
    with torch.device("meta"):
        theirs, model = torchvision.models.resnet152(), timm.create_model("resnet152")
    shapes = [{name: value.shape for name, value in found.state_dict().items()} for found in (theirs, model)]
    assert shapes[0] == shapes[1]


def test_stage_1_begins_with_them_and_narrows_its_features(tmp_path):
    recipe = replace(NARROW, model="resnet-10", width=4, image_size=32)
    plain = initial_model(recipe, 9, seed=5)
    torch.save(plain.state_dict(), tmp_path / "own.pth")
    model = stage1_model(StageRecipe(**{**vars(recipe), "weights_file": str(tmp_path / "own.pth")}), 3, seed=0)
    images = torch.randn(2, 3, 32, 32)
    plain.reset_classifier(0)
    features = torch.relu(nn.functional.linear(plain(images), model.narrow[0].weight, model.narrow[0].bias))
    assert features.shape == (2, 6)
    torch.testing.assert_close(model(images), model.classifier(features))
    again = stage1_model(StageRecipe(**{**vars(recipe), "weights_file": str(tmp_path / "own.pth")}), 3, seed=0)
    assert torch.equal(again.narrow[0].weight, model.narrow[0].weight)


def test_another_network_and_no_weights_are_refused(tmp_path):
    published(tmp_path / "caffe.pth")
    with pytest.raises(ValueError, match=r"caffe\.pth: weights of another network, .* missing \(layer1\.1\.conv1"):
        load_weights(timm.create_model("resnet50", layers=(2, 2, 1, 1)), tmp_path / "caffe.pth")
    with pytest.raises(ValueError, match=r"of another shape \(conv1\.weight \(64, 3, 7, 7\) for \(64, 1, 7, 7\)"):
        load_weights(timm.create_model("resnet50", layers=LAYERS, in_chans=1), tmp_path / "caffe.pth")
    with pytest.raises(MissingDataError, match=r"none\.pth: no such file"):
        load_weights(ours(), tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("text.pth", "list.pth"):
        with pytest.raises(DamagedDataError, match=name):
            load_weights(ours(), tmp_path / name)
    with pytest.raises(ValueError, match="the weights come from one"):
        StageRecipe("r", "t", FolderData("x"), epochs=1, learning_rate=0.1, pretrained=True, weights_file="a.pth")
    with pytest.raises(ValueError, match="feature_length is 6, but SmallConvNet has its own"):
        stage1_model(replace(NARROW, model="small-convnet"), 3, 0)
