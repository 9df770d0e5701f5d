"""A comparison with --features trains heads alone, says so, and refuses what has no features before any work."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn
from typer.testing import CliRunner

from cyclofocal.lab.commands import app
from cyclofocal.lab.oltr import frozen
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY
from cyclofocal.lab.records import read_records
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.run_folder import RunFolder, identity
from cyclofocal.lab.training.train import train
from formats import picture, write_folder

LOSSES = ("ce", "focal", "ldam-drw")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A run that has ended, of grey images of 8 pixels."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(Job(replace(digits(), epochs=1, width=4), CROSS_ENTROPY, 0, folder, RunOptions(cpu=True)))
    return folder


@pytest.fixture
def images(tmp_path):
    """Coloured pictures of two classes in two splits."""
    for seed, split in enumerate(("train", "test")):
        write_folder(tmp_path / "images" / split, {"ant": 6, "bee": 4}, seed=50 * seed)
    return tmp_path / "images"


def compare(what, features, out, *more):
    arguments = ["compare", str(what), "--features", str(features), "--out", str(out), "--losses", ",".join(LOSSES)]
    arguments += ["--seeds", "2", "--epochs", "2", "--workers", "1", "--gpus-per-run", "0", "--no-references", *more]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, re.sub(r"[\s│]+", " ", result.stderr)


def records_in(out):
    return [line for path in sorted(out.glob("*/*/record.jsonl")) for line in read_records(path)]


def forbid_forward_passes(monkeypatch):
    """Let networks of images fail."""

    def fail(self, images):
        raise AssertionError("a forward pass of a network of images")

    monkeypatch.setattr(nn.Conv2d, "forward", fail)


def test_heads_are_compared_and_the_report_says_so(backbone, images, tmp_path, monkeypatch):
    out = tmp_path / "runs"
    code, said, err = compare(images, backbone, out)
    assert code == 0, err
    frozen_line = "Only the head was trained (linear), on frozen features of small-convnet trained on digits"
    assert "head on frozen" in said
    assert "features of 20 images to compute" in err
    assert "6 runs, 0 of them finished before" in err
    records = records_in(out)
    assert {(r.loss["name"], r.seed) for r in records} == {(loss, seed) for loss in LOSSES for seed in (0, 1)}
    assert {r.recipe["backbone"] for r in records} == {"small-convnet trained on digits (cross-entropy, seed 0)"}
    (folder,) = (out / "features").iterdir()
    assert {r.recipe["features_digest"] for r in records} == {folder.name}
    assert {(tuple(r.train_counts), r.recipe["model"], r.recipe["image_size"]) for r in records} == {
        ((6, 4), "linear", 8)
    }
    for name in ("report.html", "report.md"):
        report = CliRunner().invoke(app, ["report", str(out), "-o", str(tmp_path / name)])
        assert report.exit_code == 0, report.output
        assert frozen_line in (tmp_path / name).read_text()

    forbid_forward_passes(monkeypatch)
    code, again, err = compare(images, backbone, out)
    assert (code, again) == (0, said)
    assert "6 runs, 6 of them finished before" in err
    code, said, err = compare(images, backbone, out, "--set", "model=mlp", "--set", "width=5", "--all")
    assert code == 0, err
    assert "features stored before are used" in err
    assert "Only the head was trained (mlp)" in said
    assert len(records_in(out)) == 12


def test_references_are_fitted_to_the_features(backbone, images, tmp_path):
    out = tmp_path / "runs"
    code, said, err = compare(images, backbone, out, "--references")
    assert code == 0, err
    assert "references, not losses" in said
    of = {(r.loss["name"], r.seed): r for r in records_in(out)}
    weighted = "logistic-regression:class_weight=balanced"
    assert {name for name, _ in of} == {*LOSSES, "majority", "logistic-regression", weighted}
    assert of["majority", 0].confusion == [[6, 0], [4, 0]]
    assert of["logistic-regression", 0].recipe == of["ce", 0].recipe


def test_changed_images_are_computed_again(backbone, images, tmp_path):
    assert compare(images, backbone, tmp_path / "runs")[0] == 0
    picture(999).save(images / "train" / "ant" / "3.png")
    code, _, err = compare(images, backbone, tmp_path / "runs")
    assert code == 0, err
    assert "features of 20 images to compute" in err
    assert "6 runs, 0 of them finished before" in err
    assert len(list((tmp_path / "runs" / "features").iterdir())) == 2


def test_features_that_were_removed_are_not_missed_by_ended_runs(backbone, images, tmp_path):
    out = tmp_path / "runs"
    assert compare(images, backbone, out)[0] == 0
    (folder,) = (out / "features").iterdir()
    for path in folder.iterdir():
        path.unlink()
    code, _, err = compare(images, backbone, out)
    assert code == 0, err
    assert "to compute" not in err


def test_an_unreadable_image_is_named_and_nothing_is_trained(backbone, images, tmp_path):
    path = images / "train" / "ant" / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    code, _, err = compare(images, backbone, tmp_path / "runs")
    assert code == 1
    assert f"stopped: {path}: not a readable image" in err
    assert not records_in(tmp_path / "runs")


@pytest.mark.parametrize(
    ("what", "features", "more", "words"),
    [
        ("TABLE", "RUN", ("--target", "y"), "people is a table; a network gives features of images"),
        ("fashion-mnist-open", "RUN", (), "fashion-mnist-open has two stages"),
        ("digits", "RUN", (), "digits draws another test set for every seed"),
        ("IMAGES", "resnet81", (), "'resnet81' is neither the folder of a run nor a network that timm knows"),
        ("IMAGES", "resnet81", (), "Did you mean 'resnet18'?"),
        ("IMAGES", "resnet18=no.pth", (), "no.pth: no such file"),
        ("IMAGES", "UNENDED", (), "this run has not ended; let it end first"),
        ("IMAGES", "RUN", ("--set", "channels=3"), "channels is 3, but small-convnet trained on digits"),
        ("IMAGES", "RUN", ("--set", "image_size=1"), "image_size is 1; small-convnet trained on digits"),
        ("IMAGES", "RUN", ("--set", "model=resnet18"), "model is 'resnet18'; on features it must be linear or mlp"),
        ("IMAGES", "RUN", ("--set", "mixup=-1"), "mixup is -1.0; it must be at least 0"),
    ],
)
def test_what_has_no_features_is_refused(what, features, more, words, backbone, images, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "_pretrained", None)  # the network is not asked
    RunFolder(tmp_path / "unended", identity(digits(), CROSS_ENTROPY, 0))
    table = tmp_path / "people.csv"
    table.write_text("x,y\n" + "".join(f"{0.5 + n},{n % 2}\n" for n in range(40)))
    named = {"TABLE": table, "RUN": backbone, "UNENDED": tmp_path / "unended", "IMAGES": images}
    code, _, err = compare(named.get(what, what), named.get(features, features), tmp_path / "runs", *more)
    assert code == 2
    assert words in err
    assert not (tmp_path / "runs").exists()


def test_a_run_named_like_a_network_is_a_run(backbone, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("resnet18").symlink_to(backbone)
    assert "trained on digits" in frozen.find_backbone("resnet18").title
