"""Plankton, traffic signs and Tiny ImageNet are decoded once, and a tenth or the tracks of a fifth are held out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cyclofocal.lab.data.splits import draw_groups, split_off_groups
from cyclofocal.lab.messages import DamagedDataError, MissingDataError, MissingImageError
from formats import load, picture, write_classes, write_list

TRACKS = [f"{track:05d}_{frame:05d}.png" for track in range(3) for frame in (1, 4)]


@pytest.fixture(scope="module")
def plankton(tmp_path_factory):
    root = tmp_path_factory.mktemp("plankton")
    write_classes(root / "plankton" / "train", 121, [f"{i}.png" for i in range(3)], 48, "L")
    write_classes(root / "plankton" / "test", 121, ["9.png"], 48, "L")
    return root


@pytest.fixture
def gtsrb(tmp_path):
    write_classes(tmp_path / "gtsrb" / "train", 43, TRACKS, 32)
    write_classes(tmp_path / "gtsrb" / "test", 43, ["00000.png"], 32)
    return tmp_path


def _tiny(root, side=32, classes=200):
    folder = root / "tiny-imagenet-lt"
    for split, names in (("train", ["a.png", "b.png", "c.png"]), ("val", ["v.png"])):
        write_classes(folder / split, classes, names, side)
        lines = [(f"{split}/{c:03d}/{name}", c) for c in range(classes) for name in names]
        write_list(folder / f"TinyImageNet_LT_{split}.txt", lines)
    return folder


def test_plankton_is_in_memory_with_a_tenth_held_out(plankton):
    data = load("plankton", root=plankton)
    assert data.train.inputs.shape == (242, 1, 48, 48)
    assert data.validation.inputs.shape == (121, 1, 48, 48)
    assert data.counts == (2,) * 121
    assert sorted(data.validation.labels.tolist()) == data.test.labels.tolist() == list(range(121))
    assert not set(data.train.positions) & set(data.validation.positions)
    for images in (data.train, data.validation):
        expected = [
            np.asarray(picture(1000 * c + p % 3, (48, 48), "L"))
            for c, p in zip(images.labels, images.positions, strict=True)
        ]
        assert np.array_equal(images.inputs[:, 0], np.stack(expected))


def test_traffic_signs_are_held_out_by_track(gtsrb):
    data = load("gtsrb", root=gtsrb)
    assert data.train.inputs.shape == (172, 3, 32, 32)
    assert data.counts == (4,) * 43
    assert len(data.validation) == 86
    tracks = [set(zip(s.labels, s.positions % 6 // 2, strict=True)) for s in (data.train, data.validation)]
    assert not tracks[0] & tracks[1]
    assert len(tracks[0] | tracks[1]) == 43 * 3


def test_tiny_imagenet_is_read_by_its_lists(tmp_path):
    _tiny(tmp_path)
    data = load("tiny-imagenet-lt", root=tmp_path)
    assert data.train.inputs.shape == (400, 3, 32, 32)
    assert len(data.validation) == len(data.test) == 200
    assert data.classes[7] == "007"
    assert np.array_equal(data.test.inputs[7].movedim(0, -1), np.asarray(picture(7000, (32, 32))))


@given(
    groups=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=40),
    fraction=st.floats(0.05, 0.95),
)
def test_groups_are_drawn_whole_from_every_class(groups, fraction):
    labels, numbers = np.array(groups).T
    drawn = draw_groups(labels, numbers, fraction, np.random.default_rng(0))
    inside = {groups[i] for i in drawn}
    assert [i for i, group in enumerate(groups) if group in inside] == drawn.tolist()
    for c in set(labels.tolist()):
        own = {group for group in groups if group[0] == c}
        assert len(own & inside) == max(1, round(fraction * len(own)))


def test_a_class_of_one_track_is_refused(gtsrb):
    images = load("gtsrb", root=gtsrb).train
    with pytest.raises(ValueError, match=r"gtsrb train: 0\.2 of the groups of class 0 leaves none"):
        split_off_groups(images, np.zeros(len(images), np.int64), 0.2)


def test_what_does_not_fit_is_refused_by_name(gtsrb):
    first = gtsrb / "gtsrb" / "train" / "000" / TRACKS[0]
    Image.new("RGB", (30, 31)).save(first)
    with pytest.raises(DamagedDataError, match=rf"^{first}: 30 x 31 pixels; .* must have 32 x 32"):
        load("gtsrb", root=gtsrb)
    first.rename(first.with_name("0.png"))
    with pytest.raises(DamagedDataError, match=r"000/0\.png: .* must be TRACK_FRAME\.png"):
        load("gtsrb", root=gtsrb)


def test_other_classes_or_splits_are_refused(tmp_path):
    write_classes(tmp_path / "gtsrb" / "train", 3, ["1_1.png", "2_1.png"], 32)
    with pytest.raises(DamagedDataError, match="gtsrb has train only; gtsrb has folders train and test"):
        load("gtsrb", root=tmp_path)
    write_classes(tmp_path / "gtsrb" / "test", 3, ["1.png"], 32)
    with pytest.raises(DamagedDataError, match="gtsrb has 3 classes; gtsrb has 43"):
        load("gtsrb", root=tmp_path)
    folder = _tiny(tmp_path, classes=4)
    with pytest.raises(DamagedDataError, match="has 4 classes; tiny-imagenet-lt has 200"):
        load("tiny-imagenet-lt", root=tmp_path)
    (folder / "val" / "003" / "v.png").unlink()
    with pytest.raises(MissingImageError, match=r"val/003/v\.png"):
        load("tiny-imagenet-lt", root=tmp_path)


@pytest.mark.parametrize("name", ["plankton", "gtsrb", "tiny-imagenet-lt"])
def test_a_set_that_is_not_there_names_the_page(tmp_path, name):
    with pytest.raises(MissingDataError, match=rf"{name} not found: .*{tmp_path}.*docs/data\.md"):
        load(name, root=tmp_path)
