"""A data set is found by name or path, and arguments that do not fit are refused, most before anything is read."""

import subprocess
import sys

import numpy as np
import pytest

from cyclofocal.lab.messages import MissingDataError
from formats import load, write_cifar10, write_cifar100, write_fashion_mnist, write_folder


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A generated CIFAR-10 of 6,000 training images, as many as the 4,000-sample sets need."""
    root = tmp_path_factory.mktemp("large")
    write_cifar10(root, batch_images=1200)
    return root


@pytest.mark.parametrize(
    ("subset", "counts"),
    [
        ("first-4000", (400,) * 10),
        ("5_3", tuple(490 - 20 * c for c in range(10))),
        ("6_2", tuple(580 - 40 * c for c in range(10))),
        ("balanced-4000", (400,) * 10),
    ],
)
def test_a_subset_and_what_it_leaves_for_validation(large, subset, counts):
    data = load("cifar10", root=large, subset=subset, validation_images=30)
    assert data.counts == counts
    assert data.title == f"cifar10, {subset}"
    assert np.bincount(data.validation.labels).tolist() == [3] * 10
    assert not set(data.validation.positions) & set(data.train.positions)
    assert len(data.test) == 1200


def test_the_released_list_is_the_intended_one_moved_by_one(large):
    intended, released = (load("cifar10", root=large, subset=subset) for subset in ("5_3", "5_3-released"))
    assert (released.train.positions - 1).tolist() == intended.train.positions.tolist()
    assert released.counts != intended.counts


def test_a_long_tail_takes_its_head_from_the_whole_set(large):
    data = load("cifar10", root=large, subset="long-tailed", imbalance=100)
    assert data.counts == tuple(int(600 * 0.01 ** (c / 9)) for c in range(10))
    assert data.title == "cifar10, long-tailed 100:1"
    assert data.validation is None


def test_every_subset_is_the_same_for_every_seed(large):
    for settings in ({"subset": "5_3"}, {"subset": "long-tailed", "imbalance": 10, "head_images": 500}):
        first, second = (load("cifar10", root=large, seed=seed, validation_images=50, **settings) for seed in (0, 1))
        assert first.train.positions.tolist() == second.train.positions.tolist()
        assert first.validation.positions.tolist() == second.validation.positions.tolist()


def test_a_full_set_gives_its_validation_images_up(tmp_path):
    write_fashion_mnist(tmp_path)
    data = load("fashion-mnist", root=tmp_path, validation_images=20)
    assert data.counts == (2,) * 10
    assert np.bincount(data.validation.labels).tolist() == [2] * 10
    assert sorted([*data.train.positions, *data.validation.positions]) == list(range(40))


def test_impossible_validation_images_are_refused(tmp_path, large):
    write_fashion_mnist(tmp_path / "few")
    with pytest.raises(
        ValueError, match=r"validation_images is 31, .* leaves a class without a training image, for the smallest has"
    ):
        load("fashion-mnist", root=tmp_path / "few", validation_images=31)
    with pytest.raises(ValueError, match="the subset uses every image of some class"):
        load("cifar10", root=large, subset="long-tailed", imbalance=2, validation_images=10)
    with pytest.raises(ValueError, match="validation_images is 2001; only 2000 training images are left"):
        load("cifar10", root=large, subset="first-4000", validation_images=2001)
    for split in ("train", "val", "test"):
        write_folder(tmp_path / "mine" / split, {"ant": 2, "bee": 2})
    with pytest.raises(ValueError, match=r"validation_images is 1, but .*mine has a validation set"):
        load(str(tmp_path / "mine"), validation_images=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subset": "7_1"}, r"subset is '7_1'; it must be '' or one of first-4000, 5_3"),
        ({"imbalance": 10.0}, r"imbalance is 10\.0 .* subset is ''"),
        ({"head_images": 3, "subset": "5_3"}, "head_images is 3, but subset is '5_3'"),
        ({"head_images": -1, "subset": "long-tailed"}, "head_images is -1; it must be at least 0"),
        ({"validation_images": -1}, "validation_images is -1; it must be at least 0"),
        ({"test_per_class": 5}, "test_per_class is 5, but only digits"),
        ({"test_fraction": 0.1}, "source is 'cifar10', .*test_fraction is for a folder or a list file"),
        ({"test_list": "a.txt"}, "source is 'cifar10', .*test_list is for a list file"),
    ],
)
def test_conflicting_fields_are_refused_before_data_is_read(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        load("cifar10", root=tmp_path, **arguments)


def test_a_subset_of_other_classes_is_refused(tmp_path):
    write_cifar100(tmp_path)
    with pytest.raises(ValueError, match="'balanced-4000' does not exist for 100 classes"):
        load("cifar100", root=tmp_path, subset="balanced-4000")


def test_lists_are_refused_for_folders(tmp_path):
    write_folder(tmp_path, {"ant": 2, "bee": 2})
    with pytest.raises(ValueError, match="test_list is for a list file"):
        load(str(tmp_path), test_list=tmp_path / "test.txt")


def test_an_unknown_source_says_what_there_is(tmp_path):
    with pytest.raises(MissingDataError, match=r"cifar11: no such folder or file; .*cifar10.*torch/"):
        load("cifar11", root=tmp_path)


def test_a_path_may_be_called_like_a_data_set(tmp_path, monkeypatch):
    write_folder(tmp_path / "digits", {"ant": 2, "bee": 2})
    monkeypatch.chdir(tmp_path)
    assert load("path:digits", test_fraction=0.5).classes == ("ant", "bee")


def test_importing_the_package_loads_no_host():
    code = (
        "import sys, cyclofocal.lab.data; print(*({'timm', 'torchvision', 'sklearn', 'datasets'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not loaded.split()
