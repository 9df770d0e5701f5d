"""Promise: a report of detectors speaks of boxes and average precision, and shows what two losses found."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from cyclofocal.lab.commands.output import print_comparison
from cyclofocal.lab.data.config import data_config
from cyclofocal.lab.data.load import load
from cyclofocal.lab.recipes.detection import digit_scenes
from cyclofocal.lab.recipes.loss import DETECTION_LOSSES
from cyclofocal.lab.records import RunRecord, read_records, write_record
from cyclofocal.lab.report.experiment import group_experiments
from cyclofocal.lab.report.export import markdown_report
from cyclofocal.lab.report.html import SampleSource, page
from cyclofocal.lab.report.load import read_stored_runs
from cyclofocal.lab.report.run_predictions import PredictionFiles
from cyclofocal.lab.report.summary import summaries, summarise

BCE, FOCAL, _, CYCLICAL, _ = DETECTION_LOSSES
DIGITS = load(data_config("digit-scenes"))


def detection(loss, seed, ap):
    """Record of a detector, made without a run."""
    keys = ("ap", "ap50", "ap75", "rarest_ap", "ap_small")
    return RunRecord(
        recipe=json.loads(json.dumps(digit_scenes().flat())),
        loss=asdict(loss),
        seed=seed,
        versions={"torch": "2.14"},
        device="cpu",
        train_counts=list(DIGITS.counts),
        epochs=[{"epoch": e, "train_loss": 1.0, "validation_ap": ap, "validation_ap50": ap} for e in range(20)],
        metrics=dict.fromkeys(keys, ap) | {"ap_medium": None, "ap_large": None},
        seconds=2.0,
        epoch_seconds=[0.5] * 20,
        per_class=[ap] * 10,
        classes=list(DIGITS.classes),
        test_counts=list(DIGITS.test.class_counts(10)),
        validation_samples=200,
        primary_metric="ap",
        margin=0.5,
        precision_recall=np.linspace(1, 0, 101).round(4).tolist(),
    )


@pytest.fixture
def records():
    return [
        detection(loss, seed, base + seed / 100)
        for loss, base in ((BCE, 0.5), (FOCAL, 0.6), (CYCLICAL, 0.65))
        for seed in range(3)
    ]


def test_focal_is_the_reference_and_ap_the_metric(records):
    summary = summarise(records)
    assert (summary.reference, summary.primary.key, summary.margin) == ("focal", "ap", 0.5)
    compared = {found.name: round(found.estimate.mean, 6) for found in summary.compared(summary.primary)}
    assert compared == {"bce": -10, "cyclical": 5}
    assert [metric.key for metric in summary.experiment.metrics][:4] == ["ap", "ap50", "ap75", "rarest_ap"]
    assert summarise([replace(found, primary_metric="") for found in records]).primary.key == "ap"


def test_the_words_are_those_of_boxes(records, capsys):
    print_comparison(records, everything=True)
    printed = capsys.readouterr().out
    for words in ("AP, %", "AP50, %", "AP of the rarest class", "Training boxes per class", "intersection over union"):
        assert words in printed
    for words in ("accuracy", "ECE", "Shot groups", "negative log-likelihood"):
        assert words not in printed
    assert "Average precision of each class" in markdown_report([summarise(records)])


def test_records_of_boxes_are_read_as_they_were_written(records, tmp_path):
    write_record(records[0], tmp_path / "record.jsonl")
    assert next(iter(read_records(tmp_path / "record.jsonl"))) == records[0]
    write_record(replace(records[0], precision_recall=[0.5] * 7), tmp_path / "record.jsonl")
    assert "precision_recall has 7 entries; it must have 101" in str(
        next(iter(read_records(tmp_path / "record.jsonl")))
    )


def test_a_page_shows_curves_and_the_boxes_of_two_losses(records, tmp_path):
    for record in records:
        folder = tmp_path / f"{record.loss['name']}-seed{record.seed}"
        write_record(record, folder / "record.jsonl")
        found = [
            {"image_id": boxes.image_id, "category_id": int(c) + 1, "score": 0.9, "bbox": [*corners[:2], 16.0, 16.0]}
            for boxes in DIGITS.test.boxes
            for corners, c in zip(boxes.corners.tolist(), boxes.classes, strict=True)
            if record.loss["name"] != "bce" or boxes.image_id % 2
        ]
        (folder / "detections.json").write_text(json.dumps(found))
    stored = read_stored_runs([tmp_path])
    summary = summaries(group_experiments(stored.records))
    shown = page(summary, samples=SampleSource(PredictionFiles(stored)))
    for words in ("Precision and recall", "Average precision by class frequency", "Boxes of two losses"):
        assert words in shown
    for words in ("Reliability", "Confusion", "ROC", "Most confident mistakes"):
        assert words not in shown
    assert shown.count('<figure class="pair">') == 4
    assert "with the boxes of focal: 4 of 4 boxes right" in shown
    assert "with the boxes of binary cross-entropy: 0 of 4 boxes right" in shown
    hidden = page(summary, samples=SampleSource(PredictionFiles(stored), show_samples=False))
    assert "the images are not shown, as asked for" in hidden
    assert "report the folder of the runs" in page(summary)
