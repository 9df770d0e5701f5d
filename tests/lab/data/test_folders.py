"""Image folders are read as torchvision reads them, and what does not fit is refused before any training."""

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from cyclofocal.lab.data import folders
from cyclofocal.lab.messages import MissingDataError
from formats import load, picture, write_folder


def _tree(folder, test=True):
    write_folder(folder / "train", {"bee": 3, "ant": 2})
    write_folder(folder / "val", {"ant": 1, "bee": 1}, seed=10)
    if test:
        write_folder(folder / "test", {"ant": 2, "bee": 1}, seed=20)
    return folder


def test_order_and_labels_are_torchvisions(tmp_path):
    _tree(tmp_path)
    for deep in ("train/ant/deep", "train/ant/deep/er", "train/ant/deep-er", "train/bee/a"):
        (tmp_path / deep).mkdir(parents=True, exist_ok=True)
        picture(7).save(tmp_path / deep / "x.PNG")
    data, theirs = load(str(tmp_path)), ImageFolder(tmp_path / "train")
    assert [(data.train.name(i), int(data.train.labels[i])) for i in range(len(data.train))] == theirs.samples
    assert data.classes == tuple(theirs.classes) == ("ant", "bee")
    assert np.array_equal(np.asarray(data.train.image(4)), np.asarray(theirs[4][0]))


def test_three_splits(tmp_path):
    data = load(f"path:{_tree(tmp_path)}")
    assert data.counts == (2, 3)
    assert data.validation.labels.tolist() == [0, 1]
    assert data.test.labels.tolist() == [0, 0, 1]


def test_val_is_the_test_set_where_there_is_no_other(tmp_path):
    data = load(str(_tree(tmp_path, test=False)))
    assert data.validation is None
    assert data.test.name(0) == f"{tmp_path}/val/ant/0.png"


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", None, "Test"),
        ("training", "validation", None),
        ("train", "valid", None),
        ("TRAINING", "Eval", "Testing"),
        ("train_images", None, "test_images"),
        ("seg-train", "seg-val", "seg-test"),
        ("trainset", None, "testset"),
        ("TrainData", None, "TestData"),
        ("trainImages", "valImages", "testImages"),
        ("train2017", "val2017", "test2017"),
        ("TRAINING_SET", None, "TestingSet"),
        ("trainingdata", "valdata", "testdata"),
    ],
)
def test_splits_may_have_the_usual_names_in_any_case(tmp_path, train, val, test):
    for seed, split in enumerate((train, val, test)):
        if split:
            write_folder(tmp_path / split, {"ant": 3 - seed, "bee": 3}, seed=100 * seed)
    data = load(str(tmp_path))
    assert (data.classes, data.counts) == (("ant", "bee"), (3, 3))
    assert data.test.name(0) == f"{tmp_path}/{test or val}/ant/0.png"
    assert len(data.test) == (4 if test else 5)
    assert (data.validation is None) == (not (val and test))
    assert data.validation is None or data.validation.name(0) == f"{tmp_path}/{val}/ant/0.png"


@pytest.mark.parametrize(
    "classes",
    [
        ("invalid", "valid"),
        ("bus", "bullet_train"),
        ("test tube", "vase"),
        ("Val", "x"),
        ("trainers", "testers"),
        ("bullet_train", "test tube", "vase"),
        ("dev", "ops"),
    ],
)
def test_classes_that_only_sound_like_splits_are_classes(tmp_path, classes):
    write_folder(tmp_path, dict.fromkeys(classes, 4))
    assert load(str(tmp_path), test_fraction=0.25).classes == tuple(sorted(classes))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("bus", "car", "train"),
            r"train: a split has class folders in it, and this has none, next to bus, car; if it",
        ),
        (("ant", "bee", "test"), "there is test, but no train; put the training images into train"),
        (("test", "val"), "there is test, val, but no train"),
        (("train", "test", "Test"), "Test and test are folders of the same split"),
        (("Train", "Test"), "Train: no folders in it; there must be one per class$"),
        (("train_images", "test_images"), "train_images: no folders in it"),
        (("trainImages", "testImages"), "trainImages: no folders in it"),
    ],
)
def test_what_is_neither_split_nor_class_is_refused(tmp_path, names, message):
    write_folder(tmp_path, dict.fromkeys(names, 3))
    with pytest.raises((ValueError, MissingDataError), match=message):
        load(str(tmp_path), test_fraction=0.3)


def test_a_folder_too_high_is_refused_and_the_right_one_named(tmp_path):
    _tree(tmp_path / "one" / "data")
    with pytest.raises(ValueError, match=f"one: only one class folder, 'data'; .*: give {tmp_path}/one/data$"):
        load(str(tmp_path / "one"), test_fraction=0.3)
    for name in ("a", "b"):
        _tree(tmp_path / "two" / name)
    with pytest.raises(ValueError, match=r"two/a is no class, for it has test, train, val in it; give .*two/a, or"):
        load(str(tmp_path / "two"), test_fraction=0.3)


@pytest.mark.parametrize("name", ["dev", "Validate", "tests", "testset"])
def test_further_names_are_splits_next_to_train(tmp_path, name):
    for seed, split in enumerate(("train", name)):
        write_folder(tmp_path / split, {"ant": 3, "bee": 2}, seed=100 * seed)
    assert load(str(tmp_path)).test.name(0) == f"{tmp_path}/{name}/ant/0.png"
    assert folders.ignored_folders(tmp_path) == []


def test_folders_that_may_not_be_splits_are_ignored_by_name(tmp_path):
    for seed, split in enumerate(("train", "val", "dev", "tests", "testset", "holdout", "test_images")):
        write_folder(tmp_path / split, {"ant": 3, "bee": 2}, seed=100 * seed)
    data = load(str(tmp_path))
    assert data.test.name(0) == f"{tmp_path}/val/ant/0.png"
    assert folders.ignored_folders(tmp_path) == ["dev", "holdout", "test_images", "tests", "testset"]
    write_folder(tmp_path / "classes", {"ant": 3, "bee": 2})
    assert folders.ignored_folders(tmp_path / "classes") == []


def test_splits_with_long_names_may_have_other_neighbours(tmp_path):
    for seed, name in enumerate(("train_images", "test_images")):
        write_folder(tmp_path / name, {"ant": 3, "bee": 2}, seed=100 * seed)
    write_folder(tmp_path, {"extra": 2})
    data = load(str(tmp_path))
    assert (data.classes, data.counts, len(data.test)) == (("ant", "bee"), (3, 2), 5)


@pytest.mark.parametrize("names", [("split0", "split1"), ("A", "B"), ("A", "B", "flat")])
def test_folders_of_the_same_folders_are_no_classes(tmp_path, names):
    for seed, name in enumerate(names[:2]):
        write_folder(tmp_path / name, {"ant": 3, "bee": 2}, seed=100 * seed)
    write_folder(tmp_path, dict.fromkeys(names[2:], 2))
    with pytest.raises(ValueError, match=f"{names[0]}, {names[1]} are no classes, for each has the folders ant, bee"):
        load(str(tmp_path), test_fraction=0.3)
    picture(0).save(tmp_path / names[0] / "0.png")
    assert load(str(tmp_path), test_fraction=0.3).classes == names


def test_a_single_class_is_refused(tmp_path):
    write_folder(tmp_path / "train", {"ant": 3})
    write_folder(tmp_path / "test", {"ant": 2}, seed=100)
    with pytest.raises(ValueError, match=r"train: only one class folder, 'ant'; there must be two or more$"):
        load(str(tmp_path))


def test_a_table_of_labels_with_flat_images_is_pointed_out(tmp_path):
    write_folder(tmp_path, {"train": 3, "test": 2})
    (tmp_path / "train.csv").write_text("id,label\n0,1\n")
    hint = rf"if {tmp_path}/train\.csv has the labels, write its rows into a list file, 'relative/path\.jpg 0'"
    with pytest.raises(MissingDataError, match=rf"train: no folders in it; there must be one per class; {hint}"):
        load(str(tmp_path))
    with pytest.raises(MissingDataError, match=hint):
        load(str(tmp_path / "train"))
    (tmp_path / "train" / "more").mkdir()
    with pytest.raises(ValueError, match=rf"3 images lie outside of the class folders: .*; {hint}"):
        load(str(tmp_path))


def test_one_folder_is_split_class_by_class(tmp_path):
    write_folder(tmp_path, {"ant": 10, "bee": 4, "cat": 2})
    data, again = load(str(tmp_path), test_fraction=0.25), load(str(tmp_path), test_fraction=0.25, seed=9)
    assert data.counts == (8, 3, 1)
    assert np.bincount(data.test.labels).tolist() == [2, 1, 1]
    assert sorted([*data.train.positions, *data.test.positions]) == list(range(16))
    assert data.test.positions.tolist() == again.test.positions.tolist()


def test_a_fraction_is_needed_exactly_where_there_is_no_test_set(tmp_path):
    write_folder(tmp_path / "flat", {"ant": 2, "bee": 2})
    for fraction in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match=rf"test_fraction is {fraction}[,;] .*(between 0 and 1|in \[0, 1\))"):
            load(str(tmp_path / "flat"), test_fraction=fraction)
    with pytest.raises(
        ValueError, match=r"class ant has 2 images, of which .* would leave none to train on; add images"
    ):
        load(str(tmp_path / "flat"), test_fraction=0.9)
    with pytest.raises(ValueError, match=r"test_fraction is 0\.5, but .*test; it must be 0"):
        load(str(_tree(tmp_path / "tree")), test_fraction=0.5)


def test_splits_of_different_classes_are_refused_naming_several(tmp_path):
    write_folder(tmp_path / "train", {"ant": 1, **{f"only{i}": 1 for i in range(7)}})
    write_folder(tmp_path / "val", {"ant": 1, "wasp": 1})
    with pytest.raises(ValueError, match=r"only in the first: only0, only1, .* and 2 more, only in the second: wasp"):
        load(str(tmp_path))


def test_classes_without_image_are_refused(tmp_path):
    _tree(tmp_path)
    for split in ("train", "val", "test"):
        (tmp_path / split / "cat").mkdir()
    with pytest.raises(ValueError, match="train: classes without an image: 'cat'"):
        load(str(tmp_path))


def test_nothing_is_passed_over_but_hidden_files(tmp_path):
    _tree(tmp_path)
    (tmp_path / "train" / "ant" / ".DS_Store").touch()
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "ant" / ".hidden").mkdir()
    (tmp_path / "train" / "ant" / ".hidden" / "0.png").touch()
    assert load(str(tmp_path)).counts == (2, 3)
    (tmp_path / "train" / "ant" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"1 files are no images by their name: ant/notes\.txt"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("link", "target"), [("cat/self", "."), ("cat/deep/up", "../.."), ("cat/dogs", "../dog"), ("whole", ".")]
)
def test_a_link_to_a_folder_around_it_is_refused(tmp_path, link, target):
    write_folder(tmp_path, {"cat": 2, "cat/deep": 1, "dog": 2})
    (tmp_path / link).symlink_to(target)
    if link == "cat/dogs":
        assert load(str(tmp_path), test_fraction=0.5).counts == (3, 1)
        (tmp_path / "dog" / "cats").symlink_to("../cat")
    with pytest.raises(ValueError, match=rf"{tmp_path}/\S+: a link to a folder that it lies in, {tmp_path}\S*; remove"):
        load(str(tmp_path), test_fraction=0.5)


def test_images_outside_of_class_folders_are_refused(tmp_path):
    picture(0).save(_tree(tmp_path) / "train" / "lost.png")
    with pytest.raises(ValueError, match=r"1 images lie outside of the class folders: lost\.png"):
        load(str(tmp_path))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(MissingDataError, match="no folders in it; there must be one per class"):
        load(str(tmp_path))


def test_imagenet_is_tested_on_its_validation_images(tmp_path, monkeypatch):
    with pytest.raises(MissingDataError, match=r"imagenet not found: .*ILSVRC2012.*image-net\.org"):
        load("imagenet", root=tmp_path)
    write_folder(tmp_path / "imagenet" / "train", {"n01440764": 2, "n01443537": 1})
    with pytest.raises(MissingDataError, match="val: no such folder"):
        load("imagenet", root=tmp_path)
    write_folder(tmp_path / "imagenet" / "val", {"n01440764": 1, "n01443537": 1})
    with pytest.raises(ValueError, match="has 2 classes; ImageNet-1k has 1000"):
        load("imagenet", root=tmp_path)
    monkeypatch.setattr(folders, "IMAGENET_CLASSES", 2)
    data = load("imagenet", root=tmp_path, validation_images=1)
    assert data.classes == ("n01440764", "n01443537")
    assert (len(data.train), len(data.validation), len(data.test)) == (2, 1, 2)
