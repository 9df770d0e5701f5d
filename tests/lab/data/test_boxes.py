"""Promise: boxes of COCO and Pascal VOC are read as written, and what is wrong with them is said before training."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from cyclofocal.lab.data.coco import coco_results, read_results
from cyclofocal.lab.data.config import BoxData, data_config
from cyclofocal.lab.data.dataset import join
from cyclofocal.lab.data.load import load as load_config
from cyclofocal.lab.messages import DamagedDataError, MissingDataError, MissingImageError
from cyclofocal.lab.recipes.resolve import resolve_recipes
from formats import load, write_coco, write_voc


@pytest.fixture
def coco(tmp_path):
    return write_coco(tmp_path / "coco")


def change(path, edit):
    """Write an edited copy next to a COCO file."""
    content = json.loads(path.read_text())
    edit(content)
    changed = path.with_name("changed.json")
    changed.write_text(json.dumps(content))
    return changed


def test_coco_is_read_as_written(coco):
    data, content = load(str(coco), test_fraction=0.34), json.loads(coco.read_text())
    assert data.classes == ("kind0", "kind1")
    assert data.category_ids == (3, 13)
    assert (len(data.train), data.validation, len(data.test)) == (4, None, 2)
    read = {
        (found.image_id, c, *corners)
        for split in (data.train, data.test)
        for found in split.boxes
        for c, corners in zip(found.classes.tolist(), found.corners.tolist(), strict=True)
    }
    written = {
        (entry["image_id"], (entry["category_id"] - 3) // 10, x, y, x + w, y + h)
        for entry in content["annotations"]
        for x, y, w, h in [entry["bbox"]]
    }
    assert read == written
    assert sum(data.counts) + sum(data.test.class_counts(2)) == len(content["annotations"])
    assert data.train.image(0).size == data.train.boxes[0].size == (40, 32)


def test_a_fifth_of_the_images_is_the_test_set_by_default(tmp_path):
    data = load(str(write_coco(tmp_path, images=20)))
    assert (len(data.train), len(data.test)) == (16, 4)
    assert min(data.test.class_counts(2)) > 0  # drawn evenly over the rarest classes of the images


def test_a_class_of_two_images_is_in_both_parts(coco):
    def rare(content):
        content["categories"].append({"id": 99, "name": "rare"})
        for place in (0, 1):  # of two images
            content["annotations"][place]["category_id"] = 99

    for fraction in (0.2, 0.34, 0.5, 0.6):
        data = load(str(change(coco, rare)), test_fraction=fraction)
        assert min(*data.counts, *data.test.class_counts(3)) > 0


def test_an_empty_split_is_refused(tmp_path):
    folder = write_voc(tmp_path / "voc", {"train": 4, "test": 2})
    (folder / "ImageSets" / "Main" / "test.txt").write_text("")
    with pytest.raises(DamagedDataError, match="voc test: no image in it"):
        load(f"voc:{folder}")


def test_crowds_are_marked_and_not_counted(coco):
    whole = load(str(coco), test_fraction=0.34)

    def crowd(content):
        for entry in content["annotations"]:
            entry["iscrowd"] = int(entry["image_id"] == 103 and entry["category_id"] == 3)

    crowds = load(str(change(coco, crowd)), test_fraction=0.34)
    ignored = sum(int(found.ignored.sum()) for split in (crowds.train, crowds.test) for found in split.boxes)
    assert ignored > 0
    total = sum(whole.counts) + sum(whole.test.class_counts(2))
    assert sum(crowds.counts) + sum(crowds.test.class_counts(2)) == total - ignored
    assert crowds.digest_with_test != whole.digest_with_test


def test_files_of_other_splits_have_the_same_images_folder(coco, tmp_path):
    images = coco.parent
    content = json.loads(coco.read_text())
    for name, numbers in {"train": (0, 1, 2, 3), "val": (4,), "test": (5,)}.items():
        kept = [image for image in content["images"] if image["id"] - 100 in numbers]
        ids = {image["id"] for image in kept}
        annotations = [entry for entry in content["annotations"] if entry["image_id"] in ids]
        (tmp_path / f"{name}.json").write_text(json.dumps(content | {"images": kept, "annotations": annotations}))
    lists = {"validation_list": tmp_path / "val.json", "test_list": tmp_path / "test.json"}
    data = load(str(tmp_path / "train.json"), image_root=images, **lists)
    assert [len(split) for split in data.splits.values()] == [4, 1, 1]
    other = change(tmp_path / "val.json", lambda c: c["categories"].pop())
    with pytest.raises(ValueError, match="has other categories than"):
        load(str(tmp_path / "train.json"), image_root=images, **(lists | {"validation_list": other}))


@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        (lambda c: c["images"][1].update(file_name="gone.png"), MissingImageError, "1 of 6 listed images are not in"),
        (lambda c: c["annotations"][0].update(bbox=[30, 0, 20, 9]), DamagedDataError, "1 box is outside of the image"),
        (lambda c: c["annotations"][0].update(bbox=[3, 3, 0, 9]), DamagedDataError, "or without area"),
        (lambda c: c["annotations"][0].update(bbox=[3, 3, 9]), DamagedDataError, "bbox has 3 numbers; it must have 4"),
        (lambda c: c["annotations"][0].update(image_id=9), DamagedDataError, "annotations[0].image_id is 9, which is"),
        (lambda c: c["annotations"][0].pop("bbox"), DamagedDataError, "annotations[0]"),
        (lambda c: c["images"][0].update(id=101), DamagedDataError, "images have these ids more than once: 101"),
        (lambda c: c["categories"].append({"id": 5, "name": "no"}), ValueError, "1 of 3 categories have no training"),
        (
            lambda c: c["categories"][0].update(name="kind1"),
            DamagedDataError,
            "categories have 'kind1' as a name more than once",
        ),
        (lambda c: c["annotations"][0].update(category_id=4), DamagedDataError, "which is unknown; known are 3, 13"),
        (lambda c: c.pop("categories"), DamagedDataError, "no list categories; a COCO file of boxes has images"),
        (lambda c: c.update(images=[]), DamagedDataError, "images is empty"),
    ],
)
def test_wrong_annotations_are_refused_by_name(coco, edit, error, words):
    with pytest.raises(error, match=re.escape(words)):
        load(str(change(coco, edit)), test_fraction=0.34)


def test_bad_boxes_can_be_dropped(coco):
    def break_one(content):
        content["annotations"][0]["bbox"] = [3, 3, 0, 9]

    whole, less = (
        load(str(coco), test_fraction=0.34),
        load(str(change(coco, break_one)), test_fraction=0.34, bad_boxes="drop"),
    )
    totals = [sum(data.counts) + sum(data.test.class_counts(2)) for data in (whole, less)]
    assert totals[1] == totals[0] - 1


def test_a_box_that_ends_within_a_pixel_is_moved_into_the_image(coco):
    changed = change(coco, lambda c: c["annotations"][0].update(bbox=[20.4, 10, 20, 22.5]))
    data = load(str(changed), test_fraction=0.34)
    corners = np.concatenate([found.corners for split in (data.train, data.test) for found in split.boxes])
    assert [20.4, 10, 40, 32] in corners.tolist()


def test_what_is_no_coco_file_is_refused(tmp_path):
    path = tmp_path / "boxes.json"
    with pytest.raises(MissingDataError, match="no such file"):
        load(str(path), test_fraction=0.5)
    for text in ('{"images": [', "[1, 2]", "5"):
        path.write_text(text)
        with pytest.raises(DamagedDataError, match=re.escape(str(path))):
            load(str(path), test_fraction=0.5)


def test_voc_is_read_by_its_published_split(tmp_path):
    folder = write_voc(tmp_path / "voc", {"train": 4, "val": 2, "test": 2})
    data = load(f"voc:{folder}")
    assert data.classes == ("cat", "dog")
    assert [len(split) for split in data.splits.values()] == [4, 2, 2]
    assert data.train.boxes[0].corners.tolist() == [[4, 5, 20, 25]]
    assert data.train.boxes[2].ignored.tolist() == [True]  # difficult
    assert data.counts == (1, 2)
    (recipe,) = resolve_recipes(str(folder))
    assert recipe.data == BoxData(f"voc:{folder}")


@pytest.mark.parametrize(
    "head",
    [
        '<!DOCTYPE a [<!ENTITY lol "lol"><!ENTITY big "&lol;&lol;&lol;">]>',
        '<!DOCTYPE a [<!ENTITY file SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE annotation SYSTEM "http://localhost/annotation.dtd">',
    ],
)
def test_xml_with_entities_or_references_is_not_read(tmp_path, head):
    folder = write_voc(tmp_path / "voc", {"train": 2, "test": 2}, extra=head)
    with pytest.raises(DamagedDataError, match="a document type, an entity or an external reference"):
        load(f"voc:{folder}")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("<bndbox><xmin>4</xmin></bndbox>", "has no <bndbox><ymin>"),
        ("<bndbox><xmin>x</xmin></bndbox>", "<bndbox><xmin> is 'x'; it must be a number of pixels"),
        ("<bndbox>", "not XML"),
    ],
)
def test_wrong_xml_is_refused_by_file(tmp_path, body, words):
    folder = write_voc(tmp_path / "voc", {"train": 2, "test": 2}, body=body)
    with pytest.raises(DamagedDataError, match=re.escape(words)):
        load(f"voc:{folder}")


def test_results_are_those_that_were_found():
    found = [
        {
            "boxes": np.array([[1.0, 2, 5, 9]]),
            "labels": np.array([1]),
            "scores": np.array([0.75]),
        }
    ]
    results = coco_results([42], found, (3, 13))
    assert results == [{"image_id": 42, "category_id": 13, "bbox": [1, 2, 4, 7], "score": 0.75}]


def test_results_can_be_read_again(tmp_path):
    found = [{"boxes": np.array([[1.0, 2, 5, 9]]), "labels": np.array([1]), "scores": np.array([0.75])}]
    path = tmp_path / "detections.json"
    for ids in ((3, 13), ()):
        path.write_text(json.dumps(coco_results([42], found, ids)))
        (again,) = read_results(path, ids).values()
        assert all((again[name] == values).all() for name, values in found[0].items())
    path.write_text('[{"image_id": 1}]')
    with pytest.raises(DamagedDataError, match="no detections in the results format"):
        read_results(path, ())


def test_the_generated_scenes_are_the_same_every_time():
    scenes, again = (load("digit-scenes") for _ in range(2))
    assert scenes.digest_with_test == again.digest_with_test
    assert (scenes.train.inputs == again.train.inputs).all()
    assert max(scenes.counts) / min(scenes.counts) > 8
    for found in scenes.test.boxes:
        assert (found.corners >= 0).all()
        assert (found.corners <= 64).all()


def test_a_last_model_is_trained_on_the_test_boxes_too():
    both = load_config(data_config("digit-scenes"), test_too=True)
    plain = load_config(data_config("digit-scenes"))
    assert len(both.train.boxes) == len(both.train) == len(plain.train) + len(plain.test)
    assert sum(both.counts) == sum(plain.counts) + sum(plain.test.class_counts(10))
    assert join(plain.train, replace(plain.test, boxes=None)).boxes is None
