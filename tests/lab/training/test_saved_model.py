"""A model is stored whole or not at all, next to the logits of every run; a comparison's runs have none."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

import cyclofocal.lab as lab
from cyclofocal.lab import records
from cyclofocal.lab.compare.grid import finished, run_job
from cyclofocal.lab.oltr.evaluation import evaluate_file
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY
from cyclofocal.lab.records import read_records
from cyclofocal.lab.training import train as training
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.saved_model import DESCRIPTION, MODEL_FILES, has_model, read_model
from cyclofocal.lab.training.train import train
from evidence import untimed

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = replace(digits(), epochs=2, warmup_epochs=0)
COMPARED = RunOptions(cpu=True, checkpoint_seconds=1e9, command="compare", margin=0.7)


def job(folder, keep_models=True, **changes):
    options = RunOptions(cpu=True, keep_models=keep_models, command="train")
    return Job(RECIPE, CROSS_ENTROPY, 0, folder, replace(options, **changes))


def test_logits_of_every_run_give_its_metrics_again(tmp_path):
    record = train(Job(RECIPE, CROSS_ENTROPY, 0, tmp_path, COMPARED))
    again = evaluate_file(tmp_path / "predictions.npz").numbers
    assert again["accuracy"] == record.metrics["accuracy"]
    assert again["nll"] == record.metrics["nll"]
    assert not has_model(tmp_path)
    assert not set(MODEL_FILES) & {path.name for path in tmp_path.iterdir()}


def test_a_compared_run_is_repeated_for_its_model_alone(tmp_path):
    compared = train(Job(RECIPE, CROSS_ENTROPY, 0, tmp_path, COMPARED))
    logits = np.load(tmp_path / "predictions.npz")["logits"]
    assert not finished([job(tmp_path)])[0]
    run_job(job(tmp_path))
    assert finished([job(tmp_path)])[0]
    (record,) = read_records(tmp_path / "record.jsonl")
    assert untimed(record) == untimed(compared)  # its command and margin too
    assert np.array_equal(np.load(tmp_path / "predictions.npz")["logits"], logits)
    assert lab.load(tmp_path).classes == tuple(compared.classes)


def test_a_trained_run_without_model_gets_one_from_its_weights(tmp_path, monkeypatch):
    train(job(tmp_path, keep_models=False))
    monkeypatch.setattr("cyclofocal.lab.training.loop.run_epoch", None)  # no epoch is trained again
    train(job(tmp_path))
    assert has_model(tmp_path)


@pytest.mark.parametrize("fsyncs", range(1, 6))
def test_killed_while_files_are_written(tmp_path, monkeypatch, fsyncs):
    """A kill leaves model, logits and record either complete or absent, and the same call completes them."""
    train(job(tmp_path, keep_models=False))
    if not (child := os.fork()):
        left, real = [fsyncs], os.fsync

        def counted(file):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            real(file)

        monkeypatch.setattr(records.os, "fsync", counted)
        train(job(tmp_path))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    if has_model(tmp_path):
        read_model(tmp_path)
    train(job(tmp_path))
    assert np.array_equal(lab.load(tmp_path).logits(_inputs()), np.load(tmp_path / "predictions.npz")["logits"])
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert all(name.startswith(".record") for name in left)  # of a run that had ended before, and is not opened again


def _inputs():
    test = training.load_data(RECIPE, None, 0).test
    return (test.inputs - 16 * RECIPE.mean[0]) * (1 / (16 * RECIPE.std[0]))


def test_the_description_is_written_last(tmp_path, monkeypatch):
    from cyclofocal.lab.training import saved_model

    written, real = [], records.write_atomically

    def noted(path, *parts):
        written.append(path.name)
        real(path, *parts)

    monkeypatch.setattr(saved_model, "write_atomically", noted)
    train(job(tmp_path))
    assert written == ["model.safetensors", DESCRIPTION]


def test_all_data_trains_on_the_test_samples_too(tmp_path):
    usual = train(job(tmp_path / "usual"))
    last = replace(job(tmp_path / "all"), recipe=RECIPE.with_data(validation_images=20), all_data=True)
    record = train(last)
    assert record.train_counts == [n + 60 for n in training.load_data(last.recipe, None, 0).counts]
    assert (record.metrics, record.per_class, usual.temperature) == ({}, [], None)
    assert record.temperature == read_model(tmp_path / "all").description.temperature > 0
    assert train(last) == record  # it is not run again
    assert not (tmp_path / "all" / "predictions.npz").exists()
