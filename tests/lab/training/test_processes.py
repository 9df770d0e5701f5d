"""Two processes give the numbers of one, to rounding, also where the data does not divide."""

import shutil
import subprocess
import sys

import pytest
import torch

from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import CYCLICAL
from cyclofocal.lab.recipes.settings import with_settings
from cyclofocal.lab.records import read_records
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.train import train

SETTINGS = [  # 276 images in batches of 35: the last has 31; 101 validation images
    "epochs=2",
    "batch_size=35",
    "validation_images=101",
    "augment=crop-flip",
    "crop_padding=1",
    "mixup=0.3",
    "ema_decay=0.9",
    "early_stopping=1",
    "clip_norm=1",
    "weight_decay_range=1e-5,8e-5",
]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
LAB = ["-m", "cyclofocal.lab.cli", "train", "digits", "--cpu"]


def launch(*arguments):
    return subprocess.run([*LAUNCH, *LAB, *map(str, arguments)], capture_output=True, text=True, timeout=180)


def flags(settings):
    return [word for setting in settings for word in ("--set", setting)]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_equal_one(tmp_path):
    process = launch(*flags(SETTINGS), "--out", tmp_path)
    assert process.returncode == 0, process.stderr
    assert "deprecated" not in process.stderr
    (folder,) = (tmp_path / "digits").iterdir()
    (two,) = read_records(folder / "record.jsonl")
    one = train(Job(with_settings(digits(), SETTINGS), CYCLICAL, 0, tmp_path / "alone", RunOptions(cpu=True)))

    assert (two.processes, one.processes) == (2, 1)
    assert two.train_counts == one.train_counts == [100, 64, 41, 27, 17, 11, 7, 4, 3, 2]
    for ours, theirs in zip(two.epochs, one.epochs, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for name, value in one.metrics.items():
        assert two.metrics[name] == (None if value is None else pytest.approx(value, rel=1e-3)), name
    assert process.stdout.count("cyclical focal, seed 0: balanced accuracy") == 1

    (begun := tmp_path / "begun" / "digits").mkdir(parents=True)
    only_begun(tmp_path / "alone", begun / folder.name)
    again = launch(*flags(SETTINGS), "--out", begun.parent)  # goes on from what one process has stored
    assert again.returncode == 0, again.stderr
    assert "epoch 1/2" not in again.stderr
    (third,) = read_records(begun / folder.name / "record.jsonl")
    assert third.epochs[0] == one.epochs[0]
    assert third.epochs[1] == pytest.approx(one.epochs[1], rel=1e-4)


def only_begun(whole, copy):
    """A run as it was after its first epoch."""
    shutil.copytree(whole, copy)
    (copy / "record.jsonl").unlink()
    (copy / "checkpoint-00001.pt").unlink()
