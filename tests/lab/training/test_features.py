"""Features are those of the network in evaluation mode, computed once, stored whole, and named by their content."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cyclofocal.lab.data.config import BoxData, FolderData, TableData
from cyclofocal.lab.messages import DamagedDataError, MissingDataError
from cyclofocal.lab.recipes.catalogue import RECIPES
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.head import HeadRecipe, head_recipe
from cyclofocal.lab.recipes.image_folder import image_recipe
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training import features as lab_features
from cyclofocal.lab.training.features import features_digest, load_features, store_features
from cyclofocal.lab.training.job import RunOptions
from cyclofocal.lab.training.train import load_data
from formats import picture, write_folder

CPU = RunOptions(cpu=True)
CLASSES = {"ant": 7, "bee": 5}
FROZEN = {"backbone": "a network", "backbone_digest": "0" * 16, "image_size": 8, "mean": (0.5,), "std": (0.2,)}


class Network(nn.Module):
    """Features that differ in training mode; counts its forward passes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.passes = 0

    def forward(self, images):
        self.passes += 1
        return self.layers(images)


@pytest.fixture
def recipe(tmp_path):
    """A head on the features of a folder of pictures."""
    write_folder(tmp_path / "images" / "train", CLASSES)
    write_folder(tmp_path / "images" / "test", CLASSES, seed=50)
    return pinned(tmp_path)


def pinned(tmp_path, **changes):
    head = replace(head_recipe(image_recipe(str(tmp_path / "images")), **FROZEN), **changes)
    digest = features_digest(load_data(head, tmp_path, 0), head)
    return replace(head, features_digest=digest, features_folder=str(tmp_path / "features" / digest))


def store(recipe, network=None):
    network = network or Network()
    counts = list(store_features(network, load_data(recipe, None, 0), recipe, CPU))
    assert counts[0] == sum(counts[1:])
    return network, counts[0]


def by_hand(images, network):
    """Features of images, one by one."""
    rows = []
    for index in range(len(images)):
        pixels = np.asarray(images.image(index).convert("RGB").resize((8, 8), 2))  # bilinear, as the shape is square
        batch = torch.tensor(pixels.transpose(2, 0, 1) / 255, dtype=torch.float32)[None]
        with torch.no_grad():
            rows.append(network.eval().layers((batch - 0.5) / 0.2)[0])
    return torch.stack(rows)


def test_features_are_those_by_hand_normalised_on_train(tmp_path):
    for split in ("train", "test"):
        for c, name in enumerate(CLASSES):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                picture(1000 * c + i + 50 * (split == "test"), size=(8, 8)).save(folder / f"{i}.png")
    recipe = pinned(tmp_path)
    network, n_images = store(recipe)
    data, rows = load_data(recipe, tmp_path, 0), load_features(recipe, tmp_path, 3)
    train, test = by_hand(data.train, network), by_hand(data.test, network)
    mean = train.mean(0)
    deviation = (train - mean).std(correction=0)
    torch.testing.assert_close(rows.train.inputs, (train - mean) / deviation, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rows.test.inputs, (test - mean) / deviation, rtol=1e-4, atol=1e-4)
    assert (n_images, rows.classes, rows.validation) == (16, ("ant", "bee"), None)
    for name in ("labels", "positions"):
        assert np.array_equal(getattr(rows.train, name), getattr(data.train, name))
        assert np.array_equal(getattr(rows.test, name), getattr(data.test, name))


def test_stored_features_need_no_forward_pass(recipe):
    store(recipe)
    network, n_images = store(recipe)
    assert (network.passes, n_images) == (0, 0)


def test_a_constant_feature_is_zero(recipe):
    network = Network()
    network.layers[0].weight.data[2] = 0
    store(recipe, network)
    rows = load_features(recipe, None, 0)
    assert not rows.train.inputs[:, 2].any()
    assert rows.train.inputs.isfinite().all()


def test_other_pixels_network_or_preparation_have_another_name(recipe, tmp_path):
    names = {recipe.features_digest}
    names |= {
        pinned(tmp_path, **{name: value}).features_digest
        for name, value in (
            ("backbone_digest", "1" * 16),
            ("image_size", 9),
            ("center_crop", True),
            ("mean", (0.4,)),
            ("std", (0.3,)),
        )
    }
    assert pinned(tmp_path, epochs=2, model="mlp").features_digest == recipe.features_digest
    picture(999).save(tmp_path / "images" / "train" / "ant" / "3.png")
    names.add(pinned(tmp_path).features_digest)
    assert len(names) == 7


def test_a_damaged_file_is_reported_and_computed_again(recipe, monkeypatch, capsys):
    monkeypatch.setattr(lab_features, "PART_SIZE", 5)
    store(recipe)
    expected = load_features(recipe, None, 0).train.inputs
    folder = Path(recipe.features_folder)
    assert sorted(path.name for path in folder.glob("train*")) == [f"train-0000{n}.pt" for n in range(3)]
    damaged = folder / "train-00001.pt"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(DamagedDataError, match=r"train-00001\.pt: damaged .*run the same command again"):
        load_features(recipe, None, 0)
    assert store(recipe)[1] == 5
    assert "damaged features, computed again" in capsys.readouterr().err
    torch.testing.assert_close(load_features(recipe, None, 0).train.inputs, expected, rtol=0, atol=0)


def test_features_that_are_not_stored_are_named(recipe):
    with pytest.raises(MissingDataError, match="no features there; `cyclofocal compare --features` computes them"):
        load_features(recipe, None, 0)


def test_a_feature_that_is_not_finite_is_refused(recipe):
    network = Network()
    network.layers[0].bias.data[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"a network: a feature of .* is not finite"):
        store(recipe, network)


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from cyclofocal.lab.training import features
from cyclofocal.lab.training.job import RunOptions
from cyclofocal.lab.training.train import load_data
sys.path.insert(0, sys.argv[3])
from test_features import Network, pinned

features.PART_SIZE = 5
replaced, replace = [], os.replace
def replace_or_die(*paths):
    if len(replaced) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    replaced.append(paths)
    replace(*paths)
os.replace = replace_or_die
recipe = pinned(Path(sys.argv[1]))
list(features.store_features(Network(), load_data(recipe, None, 0), recipe, RunOptions(cpu=True)))
"""


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
def test_a_kill_leaves_whole_files_and_the_rest_is_computed(recipe, tmp_path, monkeypatch):
    here = os.path.dirname(__file__)
    paths = os.pathsep.join([here, os.path.join(here, *[os.pardir] * 2), *sys.path])
    command = [sys.executable, "-c", KILLED, str(tmp_path), "2", here]
    killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = Path(recipe.features_folder)
    assert sorted(path.name for path in folder.glob("*.pt")) == ["train-00000.pt", "train-00001.pt"]
    assert len(list(folder.glob(".*.tmp"))) == 1
    with pytest.raises(MissingDataError):
        load_features(recipe, None, 0)
    monkeypatch.setattr(lab_features, "PART_SIZE", 5)
    assert store(recipe)[1] == 24 - 10
    assert not list(folder.glob(".*.tmp"))
    found = load_features(recipe, None, 0).test.inputs
    monkeypatch.undo()
    for path in folder.iterdir():
        path.unlink()
    store(recipe)
    torch.testing.assert_close(found, load_features(recipe, None, 0).test.inputs)


def test_the_recipe_of_a_head_reads_from_its_record(recipe):
    stored = recipe.flat()
    assert "features_folder" not in stored
    assert HeadRecipe.from_flat(stored) == recipe
    assert not {"backbone", "features_digest", "center_crop"} & digits().flat().keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "resnet18"}, "model is 'resnet18'; on features it must be linear or mlp"),
        ({"augment": "crop-flip"}, "augment is 'crop-flip'; it is for images"),
        ({"cutmix": 1.0}, "cutmix is 1.0; it is for images"),
    ],
)
def test_settings_of_images_are_refused_on_features(changes, words, recipe):
    with pytest.raises(ValueError, match=words):
        replace(recipe, **changes)


def test_tables_and_splits_by_seed_are_refused():
    table = Recipe("people", "people", TableData("people.csv", target="y"), epochs=1, learning_rate=0.1)
    with pytest.raises(ValueError, match="people is a table"):
        head_recipe(table, **FROZEN)
    with pytest.raises(ValueError, match="digits draws another test set for every seed"):
        head_recipe(digits(), **FROZEN)
    assert head_recipe(replace(table, data=FolderData("x")), **FROZEN).name == "people-head"


@pytest.mark.parametrize(
    "name", [name for name, make in RECIPES.items() if name != "digits" and not isinstance(make().data, BoxData)]
)
def test_every_recipe_of_images_can_have_a_head(name):
    """Cutout, split batch norm and the like stay with the network."""
    images = RECIPES[name]()
    head = head_recipe(images, **FROZEN)
    assert (head.data, head.groups) == (images.data, images.groups)
