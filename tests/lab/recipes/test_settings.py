"""``--set field=value`` is checked against the field's type; what is wrong is said with what would be right."""

import re
from dataclasses import replace

import pytest
import torch

from cyclofocal.lab.longtail import FOLLOWERS
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.settings import SettingError, with_settings
from cyclofocal.lab.training.optim import build_optimizer


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("epochs=3", {"epochs": 3}),
        ("learning_rate=1e-3", {"learning_rate": 1e-3}),
        ("model=resnet18", {"model": "resnet18"}),
        ("nesterov=False", {"nesterov": False}),
        ("clip_norm=2", {"clip_norm": 2.0}),
        ("clip_norm=none", {"clip_norm": None}),
        ("temperature_range=0.5,2", {"temperature_range": (0.5, 2.0)}),
        ("milestones=10, 20", {"milestones": (10, 20)}),
        ("mean=0.5", {"mean": (0.5,)}),
        ("precision=bf16", {"precision": "bf16"}),
        ("groups=followers", {"groups": FOLLOWERS}),
        ("title=a = b", {"title": "a = b"}),
    ],
)
def test_text_becomes_the_type_of_the_field(setting, expected):
    changed = with_settings(digits(), [setting])
    assert changed == replace(digits(), **expected)
    (name,) = expected
    assert type(getattr(changed, name)) is type(expected[name])


def test_several_settings_and_none():
    assert with_settings(digits(), ["epochs=3", "batch_size=7"]) == replace(digits(), epochs=3, batch_size=7)
    assert with_settings(digits(), []) == digits()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("epochs", "'epochs' is not a setting; it must be field=value"),
        ("epoch=3", "Did you mean 'epochs'?"),
        ("epochs=2.5", "epochs is '2.5'; it must be a whole number"),
        ("epochs=0", "epochs is 0; it must be at least 1"),
        ("learning_rate=fast", "learning_rate is 'fast'; it must be a number"),
        ("learning_rate=nan", "learning_rate is nan; it must be greater than 0"),
        ("learning_rate=inf", "learning_rate is inf; it must be finite"),
        ("mean=nan", "mean is (nan,); it must be finite"),
        ("std=0", "std is (0.0,); it must be greater than 0"),
        ("min_learning_rate=5", "min_learning_rate is 5.0; it must be at most learning_rate"),
        ("weight_decay=nan", "weight_decay is nan; it must be at least 0"),
        ("momentum=1", "momentum is 1.0; it must be in [0, 1)"),
        ("nesterov=maybe", "nesterov is 'maybe'; it must be true or false"),
        ("precision=fp8", "precision is 'fp8'; it must be one of no, bf16, fp16"),
        ("clip_norm=big", "clip_norm is 'big'; it must be a number, or none"),
        ("clip_norm=0", "clip_norm is 0.0; it must be greater than 0, or none"),
        ("temperature_range=2", "temperature_range is '2'; it must be 2 numbers, separated by commas, or none"),
        ("temperature_range=0,2", "it must be two numbers 0 < min <= max"),
        ("weight_decay_range=3,2", "weight_decay_range is (3.0, 2.0)"),
        ("groups=all", "groups is 'all'; it must be one of oltr, followers"),
        ("mean=1,2", "mean has 2 values for 1 channels"),
        ("channels=4", "channels is 4; it must be 1 (grey) or 3 (RGB)"),
        ("aug_splits=3", "aug_splits is 3 and augment is 'none'; it needs 'timm'"),
        ("random_erasing=0.5", "random_erasing is 0.5 and augment is 'none'"),
        ("cutout=4", "cutout is 4 and augment is 'none'; it needs 'crop' or 'crop-flip'"),
        ("folds=1", "folds is 1; it must be 0 (no cross-validation), or at least 2"),
        ("folds=-2", "folds is -2; it must be at least 0"),
        ("fold=1", "fold is 1 and folds is 0; it must be 0, or smaller than folds"),
        ("test_fraction=1", "test_fraction is 1.0; it must be in [0, 1)"),
        ("validation_fraction=-0.1", "validation_fraction is -0.1; it must be in [0, 1)"),
        ("split_batch_norm=true", "split_batch_norm needs aug_splits of 2 or more"),
    ],
)
def test_wrong_settings_are_refused_with_the_remedy(setting, words):
    with pytest.raises(SettingError, match=re.escape(words)):
        with_settings(digits(), [setting])


def test_settings_that_exclude_each_other():
    both = ["augment=timm", "aug_splits=2"]
    with pytest.raises(SettingError, match="mixup and cutmix must then be 0"):
        with_settings(digits(), [*both, "mixup=0.2"])
    with pytest.raises(SettingError, match="split_batch_norm and sync_batch_norm exclude each other"):
        with_settings(digits(), [*both, "split_batch_norm=true"])


def test_a_recipe_is_plain_values():
    assert digits().flat()["groups"] == {"name": "digits", "many_from": 40, "few_up_to": 10}


def test_an_unknown_optimizer_is_refused_with_the_nearest_name():
    recipe = with_settings(digits(), ["optimizer=adamm"])
    with pytest.raises(ValueError, match=r"optimizer is 'adamm'.*Did you mean 'adam"):
        build_optimizer(torch.nn.Linear(2, 2), recipe)
