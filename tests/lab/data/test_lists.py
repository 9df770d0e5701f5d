"""List files give the images and labels that they name, and what they name wrongly is refused before any training."""

import numpy as np
import pytest

from cyclofocal.lab.data import files
from cyclofocal.lab.data.lists import list_images, read_list
from cyclofocal.lab.messages import DamagedDataError, MissingDataError, MissingImageError
from formats import load, picture, write_list

TRAIN = [("train/attic/1.png", 1), ("train/airfield/0.png", 0), ("train/airfield/a b.png", 0)]
VALIDATION = [("val/2.png", 0), ("val/3.png", 1)]
TEST = [("test/4.png", 1)]


@pytest.fixture
def root(tmp_path):
    for seed, (name, _) in enumerate(TRAIN + VALIDATION + TEST):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(tmp_path / name)
    return tmp_path


def test_images_and_labels_come_in_the_order_of_the_list(root):
    data = load(str(write_list(root / "train.txt", TRAIN)), test_list=write_list(root / "test.txt", TEST))
    assert data.train.labels.tolist() == [1, 0, 0]
    assert data.train.name(2) == f"{root}/train/airfield/a b.png"
    assert np.array_equal(np.asarray(data.train.image(2)), np.asarray(picture(2)))
    assert np.array_equal(np.asarray(data.test.image(0)), np.asarray(picture(5)))
    assert data.validation is None


def test_lists_may_lie_elsewhere_than_the_images(root, tmp_path_factory):
    lists = tmp_path_factory.mktemp("lists")
    data = load(
        f"path:{write_list(lists / 'train.txt', TRAIN)}",
        image_root=root,
        validation_list=write_list(lists / "val.txt", VALIDATION),
        test_list=write_list(lists / "test.txt", TEST),
    )
    assert data.validation.labels.tolist() == [0, 1]
    assert data.test.image(0).size == (9, 7)


def test_one_list_can_be_split(root):
    path = write_list(root / "all.txt", TRAIN + VALIDATION)
    data = load(str(path), test_fraction=0.5)
    assert data.counts == (1, 1)
    assert len(data.test) == 3


def test_classes_are_named_by_their_folders_if_one_to_one(root):
    train = write_list(root / "train.txt", TRAIN)
    assert load(str(train), test_list=write_list(root / "test.txt", TEST)).classes == ("airfield", "attic")
    mixed = write_list(root / "mixed.txt", [*TRAIN, ("val/3.png", 1)])
    assert load(str(mixed), test_list=root / "test.txt").classes == ("0", "1")


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        (("cat", "dog"), ("cat", "dog")),
        (("./cat", "./dog"), ("cat", "dog")),
        (("./cat", "x/../dog"), ("cat", "dog")),
        (("cat", "dog/big"), ("cat", "dog/big")),
        (("./train/cat", "train//dog"), ("cat", "dog")),
        (("data_256/c/cat", "data_256/d/dog"), ("c/cat", "d/dog")),
        ((".", "dog"), ("0", "1")),
        (("a/cat", "b/cat"), ("0", "1")),
    ],
)
def test_a_class_has_one_name_however_its_folder_is_written(tmp_path, folders, classes):
    names = [f"{folder}/{label}{i}.png" for label, folder in enumerate(folders) for i in range(2)]
    for seed, name in enumerate(names):
        for path in (tmp_path / name.partition("..")[0], tmp_path / name):  # "x/.." needs x to be there
            path.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x").mkdir(exist_ok=True)
        picture(seed).save(tmp_path / name)
    path = write_list(tmp_path / "train.txt", [(name, i // 2) for i, name in enumerate(names)])
    assert load(str(path), test_fraction=0.5).classes == classes


@pytest.mark.parametrize(
    ("train", "other"),
    [
        ("{}/{}.png", "{}/{}.png"),
        ("train/{}/{}.png", "test/{}/{}.png"),
        ("./a/b/train/{}/{}.png", "./c/test/{}/{}.png"),
    ],
)
@pytest.mark.parametrize("field", ["test_list", "validation_list"])
def test_lists_that_number_classes_otherwise_are_refused(tmp_path, train, other, field):
    lines = [[(form.format(name, number), label) for label, name in enumerate(("cat", "dog"))] for form, number in
             ((train, 0), (other, 1))]  # fmt: skip
    for seed, (name, _) in enumerate(lines[0] + lines[1]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(tmp_path / name)
    one, two = (write_list(tmp_path / f"{name}.txt", part) for name, part in zip(("one", "two"), lines, strict=True))
    assert load(str(one), **{field: two}).test.labels.tolist() == [0, 1]
    write_list(two, [(name, 1 - label) for name, label in lines[1]])
    with pytest.raises(
        ValueError, match=r"two\.txt: the label of class cat is 1 \(.*cat/1\.png\), but 0 in .*one\.txt;"
    ):
        load(str(one), **{field: two})


def test_folders_that_name_no_class_may_have_any_label(root):
    mixed = write_list(root / "mixed.txt", [*TRAIN, ("val/3.png", 1)])  # classes 0 and 1 are not folders
    for name in ("1/x.png", "attic/x.png"):
        (root / name).parent.mkdir()
        picture(9).save(root / name)
    test = write_list(root / "test.txt", [("1/x.png", 0), ("attic/x.png", 0)])
    assert load(str(mixed), test_list=test).test.labels.tolist() == [0, 0]


def test_an_image_in_two_splits_is_refused_however_it_is_written(root):
    train, other = write_list(root / "train.txt", TRAIN), root / "other.txt"
    for lines, count in (
        (TRAIN, "3 of 3"),
        ([("./train/attic/1.png", 1), *TEST], "1 of 2"),
        ([("train/../train//attic/1.png", 1), ("val/2.png", 0), *TEST], "1 of 3"),
        ([(f"{root}/train/attic/1.png", 1)], "1 of 1"),
    ):
        write_list(other, lines)
        with pytest.raises(ValueError, match=rf"^{train}: {count} test images are training images too: .*attic/1\.png"):
            load(str(train), test_list=other)
    val, test = write_list(root / "val.txt", VALIDATION), write_list(root / "test.txt", TEST + VALIDATION[:1])
    with pytest.raises(ValueError, match="1 of 2 test images are validation images too"):
        load(str(train), validation_list=val, test_list=test)


def test_a_repeated_line_cannot_be_split_from_itself(root):
    everything = TRAIN + VALIDATION + TEST
    twice = write_list(root / "twice.txt", everything * 2)
    with pytest.raises(ValueError, match=r"test images are training images too: .* be listed once$"):
        load(str(twice), test_fraction=0.5)
    test = write_list(root / "test.txt", TEST)
    often = write_list(root / "often.txt", TRAIN * 3)
    assert load(str(often), test_list=test).counts == (6, 3)  # more of them in training harms no evaluation
    with pytest.raises(ValueError, match="validation images are training images too"):
        load(str(often), test_list=test, validation_images=3)


def test_a_list_of_one_class_is_refused(root):
    with pytest.raises(ValueError, match=r"train\.txt: only one class, 'val'; there must be two or more"):
        load(str(write_list(root / "train.txt", [("./val/2.png", 0), ("val/3.png", 0)])), test_fraction=0.5)


def test_a_list_is_read_without_touching_its_images(tmp_path):
    images = list_images(write_list(tmp_path / "train.txt", TRAIN), tmp_path / "nowhere")
    assert images.labels.tolist() == [1, 0, 0]
    assert images.name(0) == f"{tmp_path}/nowhere/train/attic/1.png"


def test_every_folder_is_looked_into_once(root, monkeypatch):
    looked_in = []
    monkeypatch.setattr(files, "_listing", lambda folder: looked_in.append(folder) or set())
    path = write_list(root / "train.txt", TRAIN * 50)
    with pytest.raises(MissingImageError, match="150 of 150"):
        load(str(path), test_list=path)
    assert len(looked_in) == 2


def test_missing_images_are_named_with_their_number(root):
    lines = [*TRAIN, *((f"train/attic/gone{i}.png", 1) for i in range(8))]
    with pytest.raises(MissingImageError, match=r"8 of 11 .* are not in .*: train/attic/gone0\.png, .* and 3 more$"):
        load(str(write_list(root / "train.txt", lines)), test_list=write_list(root / "test.txt", TEST))
    with pytest.raises(MissingImageError, match=r"1 of 1 .*: elsewhere/4\.png; is the list of another layout"):
        load(str(write_list(root / "t.txt", TRAIN)), test_list=write_list(root / "e.txt", [("elsewhere/4.png", 1)]))


def test_labels_that_do_not_fit_are_refused(root):
    train = write_list(root / "train.txt", TRAIN)
    beyond = write_list(root / "beyond.txt", [*TEST, ("val/3.png", 2)])
    with pytest.raises(ValueError, match=r"1 labels are not in 0 to 1: .*val/3\.png \(label 2\)"):
        load(str(train), test_list=beyond)
    hole = write_list(root / "hole.txt", [*TRAIN, ("val/2.png", 3)])
    with pytest.raises(ValueError, match="1 of 4 classes have no training image: 2"):
        load(str(hole), test_list=train)
    with pytest.raises(ValueError, match="label 99, but only 1 images"):
        load(str(write_list(root / "far.txt", [("val/2.png", 99)])), test_list=train)
    with pytest.raises(ValueError, match="label -1; labels of known classes count from 0"):
        load(str(write_list(root / "open.txt", [("val/2.png", -1), *TRAIN])), test_list=train)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a.png 0\nb.png\nc.png 1\n d.png x\n", "2 lines are not 'relative/path label': line 2, 4$"),
        (b"a.png 0\n\nb.png 1\n", "1 lines .*: line 2$"),
        (b"a.png 0\nb/../a.png 1\n", r"1 images are listed again with another label: b/\.\./a.png$"),
        (b"a.png 0\n./a.png 1\n", r"1 images are listed again with another label: \./a.png$"),
        (b"id,label\n0,1\n", r"2 lines .*: line 1, 2; a list has no header and no commas: write .*, as target$"),
        (b"\n \n", "it is empty"),
        (b"a.png 1\nb.png 5000000000000000000000\n", "1 lines .*: line 2$"),
        (b"a.png 1\na.png 1\na.png 0\nb.png 2\n", "1 images are listed again with another label: a.png$"),
        (b"a.png 1.5\n", "1 lines"),
        (b"", "it is empty"),
        (b"\xff\xd8\xff\xe0 0\n", "not a text file"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path, content, message):
    path = tmp_path / "train.txt"
    path.write_bytes(content)
    with pytest.raises(DamagedDataError, match=f"^{path}: .*{message}"):
        read_list(path)


@pytest.mark.parametrize("end", ["", "\n\n", "\r\n\r\n", "\n  \n\t\n"])
def test_blank_lines_at_the_end_are_no_lines(tmp_path, end):
    path = tmp_path / "train.txt"
    path.write_text(f"a b.png 0\n./c.png 1{end}", newline="")
    names, labels = read_list(path)
    assert (names, labels.tolist()) == (["a b.png", "./c.png"], [0, 1])


def test_a_byte_order_mark_is_no_part_of_a_path(tmp_path):
    path = tmp_path / "train.txt"
    path.write_bytes(b"\xef\xbb\xbfa.png 0\r\nb.png 1\r\n")
    assert read_list(path)[0] == ["a.png", "b.png"]


def test_a_missing_list_or_folder_is_named(root):
    train = write_list(root / "train.txt", TRAIN)
    with pytest.raises(MissingDataError, match="nowhere: no such list file"):
        load(str(train), test_list=root / "nowhere")
    with pytest.raises(MissingDataError, match="nowhere: no such folder; image_root"):
        load(str(train), test_list=train, image_root=root / "nowhere")
