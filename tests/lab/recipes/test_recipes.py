"""Every recipe builds, asks for data in words the data sets know, and takes two steps on images of their format."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cyclofocal.lab.data.dataset import DataSet, in_memory, on_demand
from cyclofocal.lab.messages import MissingDataError
from cyclofocal.lab.recipes.catalogue import IMBALANCES, RECIPES
from cyclofocal.lab.recipes.detection import DetectionRecipe
from cyclofocal.lab.recipes.image_folder import image_recipe
from cyclofocal.lab.recipes.loss import ASYMMETRIC, CROSS_ENTROPY, CYCLICAL, DETECTION_LOSSES, FOCAL, LOSSES, SMOOTHED
from cyclofocal.lab.training import loop
from cyclofocal.lab.training import train as module
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.loop import run_task
from cyclofocal.lab.training.models import MODELS, build_model, check_model
from cyclofocal.lab.training.train import load_data, train

CLASSES = {
    "digits": 10,
    "fashion-mnist": 10,
    "cifar10": 10,
    "cifar100": 100,
    "tiny-imagenet-lt": 200,
    "plankton": 121,
    "gtsrb": 43,
    "imagenet": 1000,
}
SHAPES = {
    "digits": (1, 8, 8),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
    "tiny-imagenet-lt": (3, 32, 32),
    "plankton": (1, 48, 48),
    "gtsrb": (3, 32, 32),
}

CLASSIFIERS = [name for name, make in RECIPES.items() if not isinstance(make(), DetectionRecipe)]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Photographs:
    """Images of many sizes, as ImageNet's are."""

    def read(self, position):
        rng = np.random.default_rng(position)
        return Image.fromarray(rng.integers(256, size=(*rng.integers(30, 60, size=2), 3), dtype=np.uint8))

    def name(self, position):
        return f"photograph {position}"


def fake(source, images, few=8):
    labels = np.arange(images) % few
    if source == "imagenet":
        return on_demand(Photographs(), labels, "imagenet")
    pixels = np.random.default_rng(images).integers(256, size=(images, *SHAPES[source]), dtype=np.uint8)
    return in_memory(torch.from_numpy(pixels), labels, source)


def small(recipe):
    """Two steps at a size that a processor can bear, in the precision that it is quick in."""
    sizes = {"image_size": 32} if recipe.image_size == 224 else {}
    width = min(recipe.width, 8)
    return replace(recipe, epochs=1, cooldown_epochs=0, batch_size=4, precision="no", width=width, **sizes)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_two_steps(name, monkeypatch, tmp_path):
    recipe, steps = RECIPES[name](), []
    source = recipe.data.source
    classes = CLASSES[source]
    data = DataSet(source, tuple(map(str, range(classes))), fake(source, 8), None, fake(source, 2 * 8))
    real = loop.run_epoch
    monkeypatch.setattr(loop, "run_epoch", lambda *arguments: steps.append(arguments) or real(*arguments))
    monkeypatch.setattr(module, "load_data", lambda recipe, root, seed: data)
    monkeypatch.setattr(module, "compute_metrics", lambda logits, *rest: {"shape": logits.shape})  # classes are missing
    monkeypatch.setattr(loop, "check_every_class_is_tested", lambda data: None)
    monkeypatch.setattr(module, "recall_per_class", lambda *given: np.zeros(1))
    record = train(Job(small(recipe), CYCLICAL, 0, options=RunOptions(cpu=True)))
    assert record.metrics["shape"] == (16, classes)
    assert len(record.epochs) == len(steps) == 1
    assert len(steps[0][1].batches(0)) == 2
    assert np.isfinite(record.epochs[0]["train_loss"])


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - CLASSIFIERS))
def test_two_steps_of_a_detector(name):
    pytest.importorskip("torchmetrics")
    from cyclofocal.lab.detection.task import DETECTION

    scenes = load_data(RECIPES["digit-scenes"](), None, 0)
    data = replace(scenes, train=scenes.train.select(range(8)), validation=None)
    recipe = replace(RECIPES[name](), epochs=1, warmup_epochs=0, batch_size=4, image_size=64)
    job = Job(recipe, DETECTION_LOSSES[1], 0, options=RunOptions(cpu=True))
    record = run_task(job, DETECTION._replace(load=lambda *_: data))
    assert np.isfinite(record.epochs[0]["train_loss"])
    assert record.metrics["ap"] is not None


@pytest.mark.parametrize("name", RECIPES)
def test_its_data_set_is_known(name, tmp_path):
    with contextlib.suppress(MissingDataError):  # which says that only the files are missing
        data = load_data(RECIPES[name](), tmp_path, 0)
        assert sum(data.counts) >= len(data.train) > 0


def test_all_that_was_promised_is_there():
    subsets = {"cifar10": ("4000", "5_3", "5_3-released", "6_2"), "cifar100": ("4000", "5_3", "6_2")}
    expected = {"digits", "imagenet", "fashion-mnist", "tiny-imagenet-lt", "plankton", "gtsrb"}
    expected |= {"bccd-retinanet", "bccd-fcos", "digit-scenes"}
    expected |= {f"fashion-mnist-{kind}" for kind in ("4000", "imbalanced", "lt")}
    for source, kinds in subsets.items():
        expected |= {source, f"{source}-fast", *(f"{source}-{kind}" for kind in kinds)}
        expected |= {f"{source}-lt-{imbalance}" for imbalance in IMBALANCES}
        expected |= {f"{source}-{kind}-small" for kind in ("4000", "5_3", "6_2", "lt-10", "lt-50", "lt-100")}
    assert set(RECIPES) == expected
    assert IMBALANCES == (10, 50, 100, 200)
    assert LOSSES[:5] == (CROSS_ENTROPY, SMOOTHED, FOCAL, ASYMMETRIC, CYCLICAL)
    others = {"weighted", "logit-adjusted", "balanced-softmax", "class-balanced-focal", "ldam-drw", "vs"}
    assert {loss.name for loss in LOSSES[5:]} == others


def test_small_settings_train_on_the_published_images():
    for name in (name for name in RECIPES if name.endswith("-small")):
        published, recipe = RECIPES[name.removesuffix("-small")](), RECIPES[name]()
        changed = {"validation_images": 2000, "head_images": recipe.data.flat()["head_images"]}
        assert recipe.data.flat() == published.data.flat() | changed
        assert changed["head_images"] in (0, 4800, 480)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_its_name_cost_and_result(name):
    assert RECIPES[name]().name == name
    assert RECIPES[name]().facts.cost
    assert RECIPES[name]().facts.expected


def test_published_settings():
    """The commands that were published for CIFAR and ImageNet."""
    for name in ("cifar10", "cifar100", "cifar10-4000", "cifar100-6_2"):
        recipe = RECIPES[name]()
        assert (recipe.model, recipe.batch_size, recipe.learning_rate) == ("tresnet_m", 384, 0.15)
        assert (recipe.epochs, recipe.cooldown_epochs, recipe.weight_decay) == (200, 1, 5e-4)
        assert (recipe.warmup_epochs, recipe.warmup_learning_rate) == (3, 0.01)
        assert (recipe.auto_augment, recipe.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.6)
        assert (recipe.aug_splits, recipe.split_batch_norm, recipe.mixup) == (3, True, 0.0)
    recipe = RECIPES["imagenet"]()
    assert (recipe.batch_size, recipe.learning_rate, recipe.weight_decay) == (4 * 384, 0.6, 2e-5)
    assert (recipe.mixup, recipe.random_erasing, recipe.aug_splits) == (0.2, 0.4, 1)
    assert recipe.ema_decay > 0
    assert (CYCLICAL.gamma_hc, CYCLICAL.gamma_pos, CYCLICAL.gamma_neg, CYCLICAL.cyclical_factor) == (3, 2, 2, 4)


@pytest.mark.parametrize("model", MODELS)
def test_our_models_give_logits(model):
    recipe = replace(RECIPES["cifar10-fast"](), model=model, width=0 if model == "linear" else 8)
    network = build_model(recipe, classes=7)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_the_published_cifar_resnet_has_its_size():
    """0.46 million weights, as He et al. say of 32 layers."""
    network = build_model(RECIPES["cifar10-lt-100"](), classes=10)
    weights = sum(weight.numel() for weight in network.parameters())
    assert 0.455e6 < weights < 0.47e6
    assert sum(isinstance(layer, torch.nn.Conv2d | torch.nn.Linear) for layer in network.modules()) == 32


def test_unknown_models_are_refused():
    recipe = image_recipe("somewhere")
    check_model(replace(recipe, model="resnet50"))
    with pytest.raises(ValueError, match=r"'resnet5O'.*did you mean 'resnet50'"):
        check_model(replace(recipe, model="resnet5O"))
    with pytest.raises(ValueError, match="width is 9, but resnet18 is timm's"):
        check_model(replace(recipe, width=9))
    with pytest.raises(ValueError, match="pretrained"):
        build_model(replace(recipe, model="small-resnet", pretrained=True), 10)
