"""Held-out classes and images from elsewhere make the open set, and are never trained on."""

import numpy as np
import pytest

from cyclofocal.lab.messages import MissingDataError, MissingImageError
from cyclofocal.lab.oltr.open_set_data import hold_out, open_images
from formats import load, picture, write_folder, write_list


def test_held_out_classes_are_unknown_in_the_test_set_alone():
    data = load("digits", seed=0, test_per_class=20, subset="long-tailed", head_images=50, imbalance=10)
    found = hold_out(data, 2)
    assert found.counts == data.counts[:8]
    assert found.classes == data.classes[:8]
    assert set(found.test.labels) == set(range(8))
    assert np.array_equal(found.unknown.labels, np.full(40, -1))
    assert set(data.test.labels[np.isin(data.test.positions, found.unknown.positions)]) == {8, 9}
    assert not set(found.train.positions) & set(found.unknown.positions)


def test_too_many_held_out_classes_are_refused():
    data = load("digits", seed=0, test_per_class=20)
    for classes in (0, 9):
        with pytest.raises(ValueError, match=f"held_out_classes is {classes} of 10"):
            hold_out(data, classes)


def test_an_open_set_from_a_list_or_a_folder(tmp_path):
    write_folder(tmp_path / "images", {"ant": 2, "bee": 1})
    (tmp_path / "images" / "notes.txt").write_text("no image")
    listed = write_list(tmp_path / "open.txt", [("ant/0.png", 7), ("bee/0.png", -1)])
    for source, root, count in ((tmp_path / "images", None, 3), (listed, tmp_path / "images", 2)):
        images = open_images(source, root)
        assert images.labels.tolist() == [-1] * count
        assert images.image(0).tobytes() == picture(0).tobytes()


def test_an_open_set_that_is_not_there_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingDataError, match="no image in this folder"):
        open_images(tmp_path / "empty")
    with pytest.raises(MissingDataError, match=r"none\.txt"):
        open_images(tmp_path / "none.txt")
    with pytest.raises(MissingImageError, match="1 of 1 listed images"):
        open_images(write_list(tmp_path / "open.txt", [("ant/0.png", -1)]))
