"""Promise: predictions are found by their record, and those that cannot be used are left out with the reason."""

import numpy as np
import pytest

from cyclofocal.lab.report import run_predictions
from cyclofocal.lab.report.experiment import group_experiments
from cyclofocal.lab.report.load import StoredRuns, read_stored_runs
from cyclofocal.lab.report.run_predictions import PredictionFiles, read_predictions
from cyclofocal.lab.training.predictions import Predictions, write
from evidence import grid, store_runs

TARGET = np.arange(30) % 3


def found(folder):
    stored = read_stored_runs([folder])
    (experiment,) = group_experiments(stored.records)
    return read_predictions(experiment, PredictionFiles(stored))


@pytest.fixture
def logits(tmp_path):
    return store_runs(tmp_path, TARGET, np.arange(30), seeds=3)


def test_each_record_has_its_own_predictions(logits, tmp_path):
    read = found(tmp_path)
    assert read.cells == ((0, 0), (1, 0), (2, 0))
    for name in ("ce", "focal"):
        for seed in range(3):
            assert (read.runs[name][seed].logits == logits[name, seed]).all()
    assert not read.missing
    assert not read.notes


def test_records_alone_have_no_predictions(tmp_path):
    records = list(grid(2))
    (experiment,) = group_experiments(records)
    files = PredictionFiles(StoredRuns(records, [tmp_path / "a.jsonl"] * len(records), []))
    for given in (files, None):
        read = read_predictions(experiment, given)
        assert not read.runs
        assert "predictions.npz" in read.missing


def test_seeds_without_all_predictions_are_left_out(logits, tmp_path):
    (tmp_path / "focal-1-0" / "predictions.npz").unlink()
    read = found(tmp_path)
    assert read.cells == ((0, 0), (2, 0))
    assert (read.runs["ce"][1].logits == logits["ce", 2]).all()
    assert read.notes == ("Predictions of 2 of 3 seeds are used.",)


def test_a_loss_without_predictions_is_named(logits, tmp_path):
    for seed in range(3):
        (tmp_path / f"focal-{seed}-0" / "predictions.npz").unlink()
    read = found(tmp_path)
    assert list(read.runs) == ["ce"]
    assert read.notes == ("No predictions of focal.",)


def test_damaged_and_foreign_predictions_are_left_out(logits, tmp_path):
    (tmp_path / "focal-1-0" / "predictions.npz").write_bytes(b"PK not a zip")
    read = found(tmp_path)
    assert list(read.runs) == ["ce"]
    assert "focal is left out" in read.notes[0]
    other = Predictions(-logits["ce", 0], TARGET, np.array([9, 9, 9]))
    write(other, tmp_path / "ce-0-0" / "predictions.npz")
    read = found(tmp_path)
    assert not read.runs
    assert any("has an accuracy of" in note for note in read.notes)


def test_large_predictions_are_read_up_to_a_limit(logits, tmp_path, monkeypatch):
    one_seed = sum((tmp_path / f"{name}-0-0" / "predictions.npz").stat().st_size for name in ("ce", "focal"))
    monkeypatch.setattr(run_predictions, "MAX_BYTES", int(1.5 * one_seed))
    assert found(tmp_path).notes == ("Predictions of 1 of 3 seeds are used.",)
    monkeypatch.setattr(run_predictions, "MAX_BYTES", one_seed // 2)
    assert not found(tmp_path).runs
    assert "MB" in found(tmp_path).missing


def test_images_of_no_known_class_do_not_count(tmp_path):
    logits = store_runs(tmp_path, TARGET, np.arange(30), seeds=1)["ce", 0]
    both = np.concatenate([logits, logits[:5]]), np.append(TARGET, [-1] * 5)
    write(Predictions(*both, np.array([9, 9, 9]), ids=np.arange(35)), tmp_path / "ce-0-0" / "predictions.npz")
    (run,) = found(tmp_path).runs["ce"]
    assert (run.logits == logits).all()
    assert (run.ids == np.arange(30)).all()
