"""Promise: every command takes boxes as it takes images, and refuses what boxes do not have before any work."""

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

pytest.importorskip("torchmetrics")
pytest.importorskip("faster_coco_eval")

from cyclofocal.lab.commands import app
from cyclofocal.lab.recipes.detection import digit_scenes
from cyclofocal.lab.recipes.head import head_recipe
from cyclofocal.lab.records import read_records
from formats import write_coco, write_voc

SETTINGS = ["image_size=64", "width=8", "epochs=1", "batch_size=4", "warmup_epochs=0"]
SMALL = ["--small", *(word for text in SETTINGS for word in ("--set", text))]


def run(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco"), images=9)


def test_a_comparison_of_boxes_ends_with_a_page_and_a_model(boxes, tmp_path):
    data = [boxes, "--images", boxes.parent, *SMALL, "--set", "test_fraction=0.34"]
    code, said = run("compare", *data, "--losses", "focal,cyclical", "--seeds", 1, "--out", tmp_path, "--workers", 1)
    assert code == 0, said
    for words in ("retinanet on small, 64 pixels on the longer side, 1 epoch", "AP, % (higher is better", "focal"):
        assert words in said
    assert f"Train the model: cyclofocal train {boxes} --images {boxes.parent} --small" in said
    records = [line for path in tmp_path.glob("*/*/record.jsonl") for line in read_records(path)]
    assert {(found.loss["name"], found.primary_metric) for found in records} == {("focal", "ap"), ("cyclical", "ap")}
    code, said = run("report", tmp_path, "-o", tmp_path / "page.html")
    assert code == 0, said
    assert "Boxes of two losses" in (tmp_path / "page.html").read_text()

    code, said = run("train", *data, "--loss", "focal", "--out", tmp_path)
    assert code == 0, said
    assert re.search(r"focal, seed 0: AP [\d.]+ %, AP50 [\d.]+ %, AP of the rarest class [\d.]+ %", said)
    (model,) = (path.parent for path in tmp_path.glob("*/*/model.json"))
    output = tmp_path / "found.json"
    code, said = run("predict", model, boxes.parent, "-o", output, "--pictures", tmp_path / "pictures", "--score", 0.01)
    assert code == 0, said
    assert f"boxes in 9 images: {output}" in said
    assert len(list((tmp_path / "pictures").iterdir())) == 9
    assert isinstance(json.loads(output.read_text()), list)
    code, said = run("predict", model, boxes.parent, "-o", tmp_path / "found.csv")
    assert (code, "must end in .json" in said) == (2, True)
    code, said = run("predict", model, boxes.parent, "-o", output, "--top")
    assert (code, "only for a classifier, and this is a detector; omit it" in said) == (2, True)
    code, said = run("export", model)
    assert (code, "a detector, and not a classifier" in said) == (1, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--losses", "ce,focal"], "'ce' is not a loss of detectors; allowed: bce, focal"),
        (["--losses", "focal"], "'focal' is one loss; a comparison needs two or more"),
        (["--metric", "accuracy"], "accuracy is no metric of boxes; allowed: ap, ap50"),
        (["--tune", "4"], "boxes has no validation data to choose settings by: validation_list is ''; set it"),
        (["--folds", "3"], "folds is for a table"),
        (["--set", "image_size=3"], "image_size is 3; of a detector it must be at least 32"),
        (["--set", "bad_boxes=keep"], "bad_boxes is 'keep'; it must be one of refuse, drop"),
        (["--set", "mixup=0.2"], "mixup is 0.2; it must be 0.0, for detectors have none"),
        (["--set", "backbone=resnet5", "--set", "width=0"], "Did you mean 'resnet50'"),
    ],
)
def test_options_that_boxes_lack_are_refused(boxes, tmp_path, options, words):
    code, said = run("compare", boxes, *SMALL, "--set", "test_fraction=0.34", *options, "--out", tmp_path / "runs")
    assert code == 2, said
    assert words in said
    assert not list(tmp_path.rglob("run.json"))


def test_bad_boxes_are_dropped_by_a_setting(tmp_path):
    path = write_coco(tmp_path / "coco", images=9)
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [3, 3, 0, 9]
    path.write_text(json.dumps(content))
    command = ["train", path, *SMALL, "--loss", "focal", "--no-keep-models", "--out", tmp_path / "runs"]
    code, said = run(*command)
    assert code != 0
    assert "leave such boxes out with --set bad_boxes=drop" in said
    code, said = run(*command, "--set", "bad_boxes=drop")
    assert code == 0, said
    code, said = run(*command, "--set", "fields=")
    assert "bad_boxes=refuse" in said


def test_a_detector_is_evaluated_on_images_elsewhere(boxes, tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(boxes.read_text())
    code, said = run("train", path, *SMALL, "--loss", "focal", "--out", tmp_path / "runs")
    assert "give the folder of the images with --images" in said
    code, said = run("train", path, "--images", boxes.parent, *SMALL, "--loss", "focal", "--out", tmp_path / "runs")
    assert code == 0, said
    (model,) = (found.parent for found in tmp_path.rglob("model.json"))
    output = ["-o", tmp_path / "found.json"]
    code, said = run("predict", model, path, "--images", boxes.parent, *output)
    assert code == 0, said
    assert "AP50" in said
    code, said = run("predict", model, path, boxes.parent, *output)
    assert (code, "a COCO file is given alone" in said) == (1, True)
    code, said = run("report", tmp_path / "runs", "--metric", "accuracy")
    assert (code, "accuracy is no metric of boxes; allowed: ap" in said) == (2, True)


def test_boxes_and_classes_are_not_mixed(tmp_path):
    code, said = run("compare", "digit-scenes", "digits", "--out", tmp_path)
    assert (code, "boxes and classes have no metric in common" in said) == (2, True)
    with pytest.raises(ValueError, match="give it without --features"):
        head_recipe(digit_scenes())


def test_tuning_goes_by_the_average_precision(boxes, tmp_path):
    pytest.importorskip("optuna")
    validation = write_coco(tmp_path / "val", images=3)
    settings = ["--set", f"validation_list={validation}", "--set", f"test_list={boxes}"]
    code, said = run(
        "compare", write_coco(tmp_path / "train", images=4), *SMALL, *settings, "--losses", "bce,focal", "--tune", 2,
        "--seeds", 1, "--workers", 1, "--out", tmp_path / "runs",
    )  # fmt: skip
    assert code == 0, said
    trials = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("tuning/*/*/run.json")]
    assert len(trials) == 4
    assert {found["loss"].get("alpha") for found in trials if found["loss"]["name"] == "focal:tuned"} > {0.25}


def test_metrics_of_boxes_are_no_metrics_of_classes(tmp_path):
    code, said = run("compare", "digits", "--metric", "ap", "--out", tmp_path)
    assert (code, "ap is no metric of classes" in said) == (2, True)


def test_a_missing_published_set_says_how_to_get_it(tmp_path):
    code, said = run("reproduce", "bccd-retinanet", "--root", tmp_path, "--out", tmp_path / "runs")
    assert code == 1
    assert "bccd not found" in said
    assert "docs/data.md" in said


def test_boxes_are_counted_and_checked(boxes, tmp_path):
    code, said = run("data", "check", boxes)
    assert code == 0, said
    assert re.search(r"9 images, 13 boxes \(kind0 7, kind1 6\)", said)
    folder = write_voc(tmp_path / "voc", {"train": 4, "test": 2})
    (folder / "JPEGImages" / "img1.jpg").write_bytes(b"no image")
    code, said = run("data", "check", folder)
    assert (code, "img1.jpg: not a readable image" in said) == (2, True)
    shutil.copy(folder / "JPEGImages" / "img0.jpg", folder / "JPEGImages" / "img1.jpg")
    code, said = run("data", "check", folder)
    assert code == 0
    assert "img0.jpg" in said  # equal byte for byte
    shutil.copy(folder / "JPEGImages" / "img0.jpg", folder / "JPEGImages" / "img5.jpg")
    code, said = run("data", "check", folder)
    assert (code, "images too, byte for byte" in said) == (1, True)
    code, said = run("data", "check", "bccd", "--root", tmp_path)
    assert (code, "bccd not found" in said) == (2, True)
