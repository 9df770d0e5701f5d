"""A frozen backbone gives the features of its own run or weights, and anything else is refused by name."""

import re
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn.functional import linear

from cyclofocal.lab.messages import DamagedDataError, MissingDataError
from cyclofocal.lab.oltr.frozen import find_backbone
from cyclofocal.lab.oltr.stage1 import Stage1Error
from cyclofocal.lab.oltr.stages import STAGE1
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY, LDAM_DRW
from cyclofocal.lab.training import checkpoint
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.run_folder import RunFolder, identity
from cyclofocal.lab.training.train import train
from cyclofocal.lab.training.train_state import initial_model
from stages import FIRST

CPU = RunOptions(cpu=True)
SHORT = replace(digits(), epochs=1, width=4)


def ended(folder, recipe=SHORT, loss=CROSS_ENTROPY, task=None):
    train(Job(recipe, loss, 0, folder, CPU), task)
    return folder


def weights_in(folder):
    return checkpoint.load_checkpoint(checkpoint.checkpoints(folder)[0])["model"]


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_features_of_a_run_give_its_logits(average, tmp_path):
    recipe = replace(SHORT, ema_decay=average)
    folder = ended(tmp_path / "run", recipe)
    content = checkpoint.load_checkpoint(checkpoint.checkpoints(folder)[0])
    kept = content["average"] or content["model"]
    kept = {name.removeprefix("module."): value for name, value in kept.items()}
    model = initial_model(recipe, 10, seed=0)
    model.load_state_dict(kept)
    found, images = find_backbone(str(folder)), torch.rand(3, 1, 8, 8)
    features = found.network.eval()(images)
    expected = model.eval()(images)
    torch.testing.assert_close(linear(features, kept["classifier.weight"], kept["classifier.bias"]), expected)
    assert (found.center_crop, found.preparation["channels"], found.preparation["image_size"]) == (False, 1, 8)


def test_a_run_with_a_cosine_classifier_has_features_too(tmp_path):
    folder = ended(tmp_path / "run", loss=LDAM_DRW)
    found = find_backbone(str(folder)).network.state_dict()
    kept = {name: value for name, value in weights_in(folder).items() if not name.startswith("classifier")}
    torch.testing.assert_close(dict(found), kept)


def test_a_first_stage_that_narrows_gives_narrow_features(tmp_path):
    recipe = replace(FIRST, model="resnet-10", image_size=32, epochs=1, feature_length=6)
    found = find_backbone(str(ended(tmp_path / "run", recipe, task=STAGE1)))
    assert found.network.eval()(torch.rand(2, 1, 32, 32)).shape == (2, 6)


def test_a_file_gives_a_network_of_timm_its_weights(tmp_path):
    model = timm.create_model("resnet18").eval()
    torch.save(model.state_dict(), tmp_path / "own.pth")
    found, images = find_backbone(f"resnet18={tmp_path / 'own.pth'}"), torch.rand(1, 3, 64, 64)
    expected = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(found.network.eval()(images), expected)
    assert found.title == "resnet18, weights of own.pth"
    assert found.preparation["mean"] == pytest.approx((0.485, 0.456, 0.406))


@pytest.mark.parametrize("kind", ["model", "safetensors"])
def test_files_of_other_programs_are_read(kind, tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    path = tmp_path / f"own.{kind}"
    save_file(model.state_dict(), path) if kind == "safetensors" else torch.save({"model": model.state_dict()}, path)
    found, images = find_backbone(f"vit_tiny_patch16_224={path}"), torch.rand(1, 3, 224, 224)
    expected = model.eval().forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(found.network.eval()(images), expected)
    found.check_size(224)
    with pytest.raises(ValueError, match=r"image_size is 96; vit_tiny_patch16_224, .* takes 224, and not this size"):
        found.check_size(96)


def test_a_damaged_file_of_weights_is_named(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"cut off")
    with pytest.raises(DamagedDataError, match=r"cut\.safetensors: no weights that torch reads"):
        find_backbone(f"resnet18={tmp_path / 'cut.safetensors'}")


def test_the_digest_is_of_the_weights_and_not_of_the_path(tmp_path):
    model = timm.create_model("resnet18")
    for name in ("one", "other"):
        torch.save(model.state_dict(), tmp_path / name)
    model.conv1.weight.data[0, 0, 0, 0] += 1
    torch.save(model.state_dict(), tmp_path / "changed")
    one, other, changed = (find_backbone(f"resnet18={tmp_path / name}").digest for name in ("one", "other", "changed"))
    assert one == other != changed


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("resnet81", "'resnet81' is neither the folder of a run nor a network that timm knows"),
        ("resnet81", "Did you mean 'resnet18'?"),
        ("small-convnet", "neither the folder of a run nor a network"),
        ("resnet18=nowhere.pth", "nowhere.pth: no such file"),
    ],
)
def test_unknown_networks_are_refused(given, words):
    with pytest.raises((ValueError, MissingDataError), match=re.escape(words)):
        find_backbone(given)


def test_weights_that_timm_does_not_have_ask_for_a_file(monkeypatch):
    def fail(name, **options):
        raise RuntimeError("No pretrained weights exist")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ValueError, match=r"not available \(No pretrained weights exist\); give resnet18=FILE"):
        find_backbone("resnet18")


def test_runs_without_weights_are_refused(tmp_path):
    with pytest.raises(Stage1Error, match="no run there"):
        find_backbone(str(tmp_path))
    RunFolder(tmp_path / "unended", identity(SHORT, CROSS_ENTROPY, 0))
    with pytest.raises(Stage1Error, match="has not ended"):
        find_backbone(str(tmp_path / "unended"))
    head = identity(SHORT, CROSS_ENTROPY, 0)
    RunFolder(tmp_path / "head", head | {"recipe": head["recipe"] | {"backbone_digest": "x"}})
    RunFolder(tmp_path / "boxes", head | {"recipe": head["recipe"] | {"task": "detection"}})
    with pytest.raises(Stage1Error, match="a detector; give the run of a network that classifies images"):
        find_backbone(str(tmp_path / "boxes"))
    with pytest.raises(Stage1Error, match="a head on frozen features"):
        find_backbone(str(tmp_path / "head"))
    folder = ended(tmp_path / "run")
    for path in checkpoint.checkpoints(folder)[:1]:
        checkpoint.save_checkpoint(folder, 0, checkpoint.load_checkpoint(path) | {"model": {}})
    with pytest.raises(Stage1Error, match=r"of another model .*; give the folder of another run"):
        find_backbone(str(folder))
