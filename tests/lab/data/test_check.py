"""A check opens every image and reports what is missing, what cannot be read and what is a copy, without raising."""

import numpy as np
import pytest

from cyclofocal.lab.data.check import TAIL, check_images, find_copies
from cyclofocal.lab.data.dataset import on_demand
from cyclofocal.lab.data.files import files
from cyclofocal.lab.data.folders import read_split
from formats import load, picture, write_folder, write_shard


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_wrong_is_counted_and_named(tmp_path, workers):
    write_folder(tmp_path, {"ant": 3, "bee": 4})
    images = read_split(tmp_path, ("ant", "bee"))
    assert check_images(images, workers).sound
    (tmp_path / "ant" / "0.png").unlink()
    for name in ("1.png", "3.png"):
        (tmp_path / "bee" / name).write_bytes(b"cut")
    report = check_images(images, workers)
    assert not report.sound
    assert (report.n_images, report.class_counts) == (7, (3, 4))
    assert report.missing == (f"{tmp_path}/ant/0.png: no such file",)
    assert [message.split(":")[0] for message in report.unreadable] == [f"{tmp_path}/bee/{i}.png" for i in (1, 3)]
    assert "7 images of 2 classes, 3 to 4 each; 1 missing, 2 unreadable" in str(report)


def test_many_are_counted_and_some_of_them_named(tmp_path):
    report = check_images(on_demand(files(tmp_path, [f"{i}.png" for i in range(9)]), [0] * 9, "all gone"))
    assert "9 missing" in str(report)
    assert "0.png: no such file, " in str(report)
    assert str(report).endswith("and 4 more")


def test_unreadable_images_are_all_named(tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.png").write_bytes(b"cut")
    said = str(check_images(on_demand(files(tmp_path, [f"{i}.png" for i in range(9)]), [0] * 9, "all cut")))
    assert all(f"/{i}.png: not a readable image" in said for i in range(9))


def test_a_class_without_image_is_not_sound(tmp_path):
    picture(0).save(tmp_path / "0.png")
    report = check_images(on_demand(files(tmp_path, ["0.png"]), [1], "holes"))
    assert report.class_counts == (0, 1)
    assert not report.sound


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match="workers is 0"):
        check_images(on_demand(files(tmp_path, ["0.png"]), [0], "one"), workers=0)
    with pytest.raises(ValueError, match="none has no image to check"):
        check_images(on_demand(files(tmp_path, []), [], "none"))


def _written(root, contents, title="training", labels=None):
    """Files that hold these bytes, as images."""
    for i, content in enumerate(contents):
        (root / f"{title}{i}.png").write_bytes(content)
    paths = [f"{title}{i}.png" for i in range(len(contents))]
    return on_demand(files(root, paths), [0] * len(contents) if labels is None else labels, title)


def test_copies_are_counted_by_what_they_spoil_and_named(tmp_path):
    a, b, c, d = (bytes([n]) * 100 for n in range(4))
    train = _written(tmp_path, [a, b, b, c, a, d[:50]], labels=[0, 0, 0, 1, 1, 0])
    test = _written(tmp_path, [d, b, c, c], "test", labels=[0, 1, 1, 1])
    found = find_copies({"training": train, "validation": None, "test": test})
    name = f"{tmp_path}/{{}}.png".format
    assert found.shared == {
        ("test", "training"): [f"{name(f'test{i}')} = {name(f'training{j}')}" for i, j in ((1, 1), (2, 3), (3, 3))]
    }
    assert sorted(found.conflicting) == [
        f"{name('test1')} (label 1) = {name('training1')} (label 0)",
        f"{name('training4')} (label 1) = {name('training0')} (label 0)",
    ]
    assert found.repeated == [f"{name('training2')} = {name('training1')}"]
    first, second, third = str(found).split("\n")
    assert first.startswith(f"3 of 4 test images are training images too, byte for byte: {name('test1')} = ")
    assert second.startswith("2 images are of two classes: ")
    assert third == f"1 image is repeated within its class: {found.repeated[0]}"
    assert found.problems == [first, second]
    assert str(find_copies({"training": train.select([0, 1, 3]), "test": test.select([0])})) == ""


def test_files_that_differ_in_one_byte_are_no_copies(tmp_path):
    same = bytes(3 * TAIL)
    others = [same[:place] + b"x" + same[place + 1 :] for place in (0, TAIL, 2 * TAIL - 1, 2 * TAIL, 3 * TAIL - 1)]
    assert str(find_copies({"training": _written(tmp_path, [same, *others]), "test": None})) == ""
    assert len(find_copies({"training": _written(tmp_path, [same, *others, same])}).repeated) == 1


def test_a_file_that_no_other_equals_is_not_read_as_a_whole(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    contents = [rng.bytes(3 * TAIL) for _ in range(20)] + [rng.bytes(TAIL + n) for n in range(9)]
    train, read = _written(tmp_path, [*contents, contents[4]]), []
    tail = type(train.reader).tail
    monkeypatch.setattr(type(train.reader), "tail", lambda *args: read.append(args[1:]) or tail(*args))
    assert len(find_copies({"training": train}, workers=1).repeated) == 1
    assert sorted(read) == sorted([*((i, TAIL) for i in [*range(20), 29]), (4, 3 * TAIL), (29, 3 * TAIL)])


def test_links_are_copies_and_missing_images_are_none(tmp_path):
    train = _written(tmp_path, [b"abc", b"def", b"abc"])
    (tmp_path / "training2.png").unlink()
    (tmp_path / "unknown0.png").symlink_to(tmp_path / "training1.png")
    unknown = on_demand(files(tmp_path, ["unknown0.png", "gone.png"]), [-1, -1], "unknown")
    found = find_copies({"training": train, "open-set": unknown})
    assert found.shared == {("open-set", "training"): [f"{tmp_path}/unknown0.png = {tmp_path}/training1.png"]}
    assert not found.conflicting


def test_copies_in_shards_are_found(tmp_path):
    write_shard(tmp_path / "train.tar", {f"{i}": (picture(i), i % 2) for i in range(4)})
    write_shard(tmp_path / "test.tar", {f"{i}": (picture(i), i % 2) for i in (2, 4, 5)})
    found = find_copies(load(str(tmp_path)).splits)
    assert found.shared == {("test", "training"): [f"{tmp_path}/test.tar:2 = {tmp_path}/train.tar:2"]}


def test_images_in_memory_are_passed_over():
    assert str(find_copies(load("digits", test_per_class=10).splits)) == ""
