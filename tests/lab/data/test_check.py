"""A check opens every image and reports what is missing and what cannot be read, without raising."""

import pytest

from cyclofocal.lab.data.check import check
from cyclofocal.lab.data.files import files
from cyclofocal.lab.data.folders import read_split
from cyclofocal.lab.data.images import on_demand
from formats import picture, write_folder


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_wrong_is_counted_and_named(tmp_path, workers):
    write_folder(tmp_path, {"ant": 3, "bee": 4})
    images = read_split(tmp_path, ("ant", "bee"))
    assert check(images, workers).sound
    (tmp_path / "ant" / "0.png").unlink()
    for name in ("1.png", "3.png"):
        (tmp_path / "bee" / name).write_bytes(b"cut")
    report = check(images, workers)
    assert not report.sound
    assert (report.images, report.counts) == (7, (3, 4))
    assert report.missing == (f"{tmp_path}/ant/0.png: no such file",)
    assert [message.split(":")[0] for message in report.unreadable] == [f"{tmp_path}/bee/{i}.png" for i in (1, 3)]
    assert "7 images of 2 classes, 3 to 4 each; 1 missing, 2 unreadable" in str(report)


def test_many_are_counted_and_some_of_them_named(tmp_path):
    report = check(on_demand(files(tmp_path, [f"{i}.png" for i in range(9)]), [0] * 9, "all gone"))
    assert "9 missing" in str(report)
    assert "0.png: no such file, " in str(report)
    assert str(report).endswith("and 4 more")


def test_a_class_without_image_is_not_sound(tmp_path):
    picture(0).save(tmp_path / "0.png")
    report = check(on_demand(files(tmp_path, ["0.png"]), [1], "holes"))
    assert report.counts == (0, 1)
    assert not report.sound


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match="workers is 0"):
        check(on_demand(files(tmp_path, ["0.png"]), [0], "one"), workers=0)
    with pytest.raises(ValueError, match="none has no image to check"):
        check(on_demand(files(tmp_path, []), [], "none"))
