"""Promise: a detector is trained, resumed, evaluated and used like any other model, with the loss asked for."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics")
pytest.importorskip("faster_coco_eval")

from cyclofocal.lab.data.config import data_config
from cyclofocal.lab.data.load import load
from cyclofocal.lab.detection.batches import BoxLoader
from cyclofocal.lab.detection.network import build_detector, check_detector
from cyclofocal.lab.detection.task import DETECTION
from cyclofocal.lab.messages import DamagedDataError, MissingDataError
from cyclofocal.lab.predict.detector import detect_files
from cyclofocal.lab.predict.load import load_any, load_model
from cyclofocal.lab.recipes.detection import SMALL_DETECTOR, box_recipe, digit_scenes
from cyclofocal.lab.recipes.loss import DETECTION_LOSSES
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.recipes.settings import with_settings
from cyclofocal.lab.records import read_records
from cyclofocal.lab.training.batches import Shard
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.loop import run_task
from formats import write_coco

BCE, FOCAL, ASYMMETRIC, CYCLICAL, BALANCED = DETECTION_LOSSES
SMALL = ["image_size=64", "width=8", "epochs=3", "batch_size=3", "test_fraction=0.34", "warmup_epochs=0"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco"), images=9)


@pytest.fixture(scope="module")
def recipe(boxes):
    return with_settings(box_recipe(str(boxes)), [*SMALL_DETECTOR, *SMALL])


def run(recipe, loss=FOCAL, folder=None, **options):
    return run_task(Job(recipe, loss, 0, folder, RunOptions(cpu=True, **options)), DETECTION)


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run(recipe, FOCAL, folder, keep_models=True)


def test_the_record_is_of_boxes(finished, recipe):
    folder, record = finished
    data = load(recipe.data)
    assert record.is_detection
    assert tuple(record.train_counts) == data.counts
    assert record.primary_metric == "ap"
    assert len(record.precision_recall) == 101
    assert len(record.epochs) == 3
    assert "train_accuracy" not in record.epochs[0]
    assert next(iter(read_records(folder / "record.jsonl"))) == record


@pytest.mark.parametrize("model", ["retinanet", "fcos"])
@pytest.mark.parametrize("loss", DETECTION_LOSSES, ids=lambda loss: loss.name)
def test_every_loss_trains_both_detectors(recipe, model, loss):
    record = run(replace(recipe, model=model, epochs=1), loss)
    assert np.isfinite(record.epochs[0]["train_loss"])


def test_losses_at_one_seed_begin_with_equal_weights_and_batches(recipe):
    rates = replace(recipe, epochs=1, learning_rate=1e-12, warmup_epochs=0)
    focal, again = run(rates, FOCAL), run(rates, replace(FOCAL, name="again"))
    assert focal.epochs[0]["train_loss"] == again.epochs[0]["train_loss"]
    assert focal.epochs[0]["train_loss"] != run(rates, BCE).epochs[0]["train_loss"]


def test_a_detector_learns_to_find_boxes(tmp_path):
    boxes = write_coco(tmp_path, images=24)
    recipe = with_settings(box_recipe(str(boxes)), [*SMALL_DETECTOR, *SMALL, "batch_size=4", "learning_rate=0.003"])
    assert run(replace(recipe, epochs=30)).metrics["ap50"] > 0.2 > run(replace(recipe, epochs=1)).metrics["ap50"]


def test_a_killed_run_ends_as_a_whole_one(recipe, boxes, tmp_path):
    script = f"""
import os, signal, torch
torch.set_num_threads(1)
from pathlib import Path
from cyclofocal.lab.detection import task
from cyclofocal.lab.recipes.detection import SMALL_DETECTOR, box_recipe
from cyclofocal.lab.recipes.loss import DETECTION_LOSSES
from cyclofocal.lab.recipes.settings import with_settings
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.loop import run_task
calls, real = [], task.DetectionState.loss
def loss(*given):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*given)
task.DetectionState.loss = loss
recipe = with_settings(box_recipe({str(boxes)!r}), [*SMALL_DETECTOR, *{SMALL!r}])
run_task(Job(recipe, DETECTION_LOSSES[3], 0, Path({str(tmp_path / "killed")!r}), RunOptions(cpu=True)), task.DETECTION)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    rows = (tmp_path / "killed" / "epochs.jsonl").read_text().splitlines()
    assert 0 < len(rows) < 3
    resumed, whole = run(recipe, CYCLICAL, tmp_path / "killed"), run(recipe, CYCLICAL, tmp_path / "whole")
    same = ("metrics", "per_class", "precision_recall", "train_counts")
    assert {name: getattr(resumed, name) for name in same} == {name: getattr(whole, name) for name in same}
    numbers = [[{k: v for k, v in row.items() if k != "seconds"} for row in r.epochs] for r in (resumed, whole)]
    assert numbers[0] == numbers[1]
    stored = [(tmp_path / name / "detections.json").read_bytes() for name in ("killed", "whole")]
    assert stored[0] == stored[1]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_find_what_one_finds(boxes, recipe, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "cyclofocal.lab.cli", "train", str(boxes), "--small", "--loss", "focal", "--cpu"]
    command += ["--no-keep-models", "--out", str(tmp_path)]
    settings = [word for text in (*SMALL, "epochs=1") for word in ("--set", text)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *settings], capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode == 0, done.stderr
    two, one = next(iter(read_records(next(tmp_path.rglob("record.jsonl"))))), run(replace(recipe, epochs=1))
    assert (one.processes, two.processes) == (1, 2)
    assert two.epochs[0]["train_loss"] == pytest.approx(one.epochs[0]["train_loss"], rel=1e-4)
    assert two.metrics["ap"] == pytest.approx(one.metrics["ap"], abs=0.02)


def test_a_stored_detector_finds_the_boxes_of_its_run(finished, boxes, tmp_path):
    folder, _ = finished
    model = load_any(folder)
    assert model.classes == ("kind0", "kind1")
    found = detect_files(model, [boxes], tmp_path / "found.json")
    assert found.images == 9
    assert found.metrics["ap"] is not None
    results = json.loads((tmp_path / "found.json").read_text())
    assert {entry["category_id"] for entry in results} <= {3, 13}
    of_test = json.loads((folder / "detections.json").read_text())
    by_image = {entry["image_id"] for entry in of_test}
    assert [entry for entry in results if entry["image_id"] in by_image] == of_test
    plain = detect_files(model, [boxes.parent], tmp_path / "plain.json", tmp_path / "pictures", least_score=0.0)
    assert plain.boxes == found.boxes
    assert plain.metrics == {}
    assert all("file_name" in entry for entry in json.loads((tmp_path / "plain.json").read_text()))
    assert len(list((tmp_path / "pictures").iterdir())) == 9


def test_a_detector_is_no_classifier(finished):
    with pytest.raises(ValueError, match="a detector, and not a classifier"):
        load_model(finished[0])


def test_flips_move_pixels_and_boxes_alike(recipe):
    data = load(recipe.data)
    found = {}
    for augment in ("none", "flip"):
        loader = BoxLoader(data.train, replace(recipe, augment=augment), torch.device("cpu"))
        (batch,) = loader.train([torch.arange(len(data.train))], Shard(), 0, 0)
        found[augment] = batch
    flipped = [
        not torch.equal(one, other) for one, other in zip(found["none"].images, found["flip"].images, strict=True)
    ]
    assert 0 < sum(flipped) < len(flipped)
    for plain, other, target, moved, is_flipped in zip(
        found["none"].images, found["flip"].images, found["none"].labels, found["flip"].labels, flipped, strict=True
    ):
        if is_flipped:
            assert torch.equal(plain.flip(-1), other)
            expected = target["boxes"].clone()
            expected[:, [0, 2]] = plain.shape[-1] - target["boxes"][:, [2, 0]]
            torch.testing.assert_close(moved["boxes"], expected)


def test_images_read_on_demand_give_the_same_batches(recipe, monkeypatch):
    data = load(recipe.data)
    batches = [torch.arange(len(data.train))]
    known = BoxLoader(data.train, recipe, torch.device("cpu")).train(batches, Shard(), 0, 0)
    monkeypatch.setattr("cyclofocal.lab.detection.batches.MOST_BYTES", 0)
    read = BoxLoader(data.train, recipe, torch.device("cpu")).train(batches, Shard(), 0, 0)
    for one, other in zip(known, read, strict=True):
        assert all(map(torch.equal, one.images, other.images))


def test_an_image_of_another_size_than_annotated_is_refused(boxes, recipe, tmp_path):
    content = json.loads(boxes.read_text())
    content["images"][0]["width"] += 20
    shutil.copytree(boxes.parent, tmp_path / "images")
    (tmp_path / "images" / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(
        DamagedDataError, match=r"1 image is of another size than annotated: .*0.png \(40 x 32, annotated 60 x 32\)"
    ):
        run(recipe.with_data(source=str(tmp_path / "images" / "boxes.json")))


def test_settings_that_detectors_lack_are_refused():
    with pytest.raises(ValueError, match=r"mixup is 0.2; it must be 0.0, for detectors have none"):
        replace(digit_scenes(), mixup=0.2)
    with pytest.raises(ValueError, match="a detector needs images with boxes"):
        replace(digit_scenes(), data=data_config("digits", test_per_class=5))
    with pytest.raises(ValueError, match="width is 12; for fcos it must be a multiple of 8"):
        replace(digit_scenes(), model="fcos", width=12)
    with pytest.raises(ValueError, match="Did you mean 'resnet50'"):
        check_detector(replace(digit_scenes(), backbone="resnet5", width=0))
    with pytest.raises(MissingDataError, match="no such file"):
        check_detector(replace(digit_scenes(), backbone="resnet18", width=0, backbone_weights="none.pt"))


def test_weights_of_a_file_are_those_of_the_backbone(tmp_path):
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), tmp_path / "weights.pt")
    recipe = replace(digit_scenes(), channels=3, mean=(0.3,), std=(0.3,), backbone="resnet18", width=0)
    recipe = replace(recipe, backbone_weights=str(tmp_path / "weights.pt"))
    weights = torch.load(tmp_path / "weights.pt")
    detector = build_detector(recipe, 3)
    assert torch.equal(detector.backbone.body.conv1.weight, weights["conv1.weight"])
    torch.save({"conv1.weight": weights["conv1.weight"]}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="no weights of resnet18 named"):
        build_detector(recipe, 3)


def test_a_recipe_of_boxes_survives_its_record(recipe):
    stored = json.loads(json.dumps(recipe.flat()))
    assert stored["task"] == "detection"
    assert type(recipe).from_flat(stored) == recipe
    assert "task" not in Recipe("r", "t", data_config("digits", test_per_class=5), epochs=1, learning_rate=1.0).flat()
