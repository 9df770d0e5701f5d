"""A small tree in the layout of Places-LT is checked, and goes through both stages by one command."""

import hashlib

import pytest
from typer.testing import CliRunner

from cyclofocal.lab.commands import app
from cyclofocal.lab.oltr import check
from cyclofocal.lab.oltr.evaluation import evaluate_file
from cyclofocal.lab.records import read_records
from formats import picture, write_list

CLASSES = {"airfield": 9, "attic": 4, "zen_garden": 2}
SMALL = ("model=resnet-10", "width=2", "image_size=32", "batch_size=6", "1:pretrained=false", "2:pretrained=false")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Lists and images of three classes, and an open set."""
    root = tmp_path_factory.mktemp("places")
    for split, part, counts in (
        ("train", "train", CLASSES),
        ("val", "train", dict.fromkeys(CLASSES, 1)),
        ("test", "val", dict.fromkeys(CLASSES, 3)),
    ):
        lines = []
        for label, (name, count) in enumerate(counts.items()):
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                path = f"{part}/{name}/{split}_{i:08d}.jpg"
                picture(100 * label + i, (40, 36)).save(root / path)
                lines.append((path, label))
        write_list(root / f"Places_LT_{split}.txt", lines)
    (root / "open").mkdir()
    for i in range(4):
        picture(900 + i, (40, 36)).save(root / "open" / f"{i}.jpg")
    return root


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "300"})


def reproduce(tree, out, *more):
    settings = [word for setting in (*SMALL, f"open_source={tree / 'open'}", "epochs=1") for word in ("--set", setting)]
    where = ("--lists", tree, "--images", tree, "--out", out)
    return run("reproduce", "places-lt", "--loss", "cyclical", "--cpu", *where, *settings, *more)


def test_both_stages_from_one_command(tree, tmp_path):
    result = reproduce(tree, tmp_path)
    assert result.exit_code == 0, result.output
    for stage in (1, 2):
        (folder,) = (tmp_path / f"places-lt-{stage}").iterdir()
        (record,) = read_records(folder / "record.jsonl")
        assert record.train_counts == list(CLASSES.values())
        assert record.loss["gamma_pos"] == 2 - stage  # as published, stage by stage
        found = evaluate_file(folder / "predictions.npz")
        assert (found.images, found.unknown) == (9, 4)


def test_lists_and_images_that_do_not_fit_are_refused_before_training(tree, tmp_path):
    elsewhere = reproduce(tree, tmp_path, "--images", tree / "train")
    assert elsewhere.exit_code == 1
    no_image = reproduce(tree, tmp_path, "--set", f"test_list={write_list(tmp_path / 'a.txt', [('no.jpg', 0)])}")
    assert no_image.exit_code == 1
    beyond = [("val/airfield/test_00000000.jpg", 3)]
    label = reproduce(tree, tmp_path, "--set", f"test_list={write_list(tmp_path / 'b.txt', beyond)}")
    assert label.exit_code == 1
    for result, message in ((elsewhere, "another layout"), (no_image, "no.jpg"), (label, "label 3")):
        assert message in result.stderr
    assert not list(tmp_path.rglob("checkpoint*"))


def test_check_counts_and_compares(tree, monkeypatch, tmp_path):
    published = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tree.glob("Places*.txt")}
    monkeypatch.setitem(check.PUBLISHED, "places-lt", published)
    other = tmp_path / "v2"
    other.mkdir()
    for name in published:  # another layout of the same images
        text = (tree / name).read_text().replace("train/", "data_256/a/").replace("val/", "val_256/")
        (other / name).write_text(text)
    sound = run("data", "check", "places-lt", "--lists", tree, "--images", tree, "--against", other)
    assert sound.exit_code == 0, sound.output
    assert "15 images of 3 classes, 2 to 9 each; 0 missing, 0 unreadable" in sound.output
    assert sound.output.count("the list is the published one (SHA-256)") == 3
    assert "the same 15 images and labels as" in sound.output
    wrong = run("data", "check", "places-lt", "--lists", other, "--images", tree)
    assert wrong.exit_code == 1
    assert "15 missing" in wrong.output
    assert "another SHA-256" in wrong.output
    write_list(other / "Places_LT_val.txt", [("a/val_00000000.jpg", 0), ("a/val_00000000.jpg", 2)])
    said = check.differences(tree / "Places_LT_val.txt", other / "Places_LT_val.txt")
    assert said == f"1 only in {tree / 'Places_LT_val.txt'} (('val_00000000.jpg', 1))"


def test_a_folder_without_lists_is_named(tmp_path):
    result = run("data", "check", "places-lt", "--lists", tmp_path, "--images", tmp_path)
    assert result.exit_code == 2
    assert "no such list file" in result.output
