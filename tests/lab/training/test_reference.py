"""A reference is the model that its library fits to the encoded rows, evaluated and stored as a network's run."""

import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cyclofocal.lab.compare.grid import run_job
from cyclofocal.lab.data.load import load
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY, ESTIMATORS, LIGHTGBM, LOGISTIC_REGRESSION, MAJORITY
from cyclofocal.lab.recipes.tabular import table_recipe
from cyclofocal.lab.records import read_records
from cyclofocal.lab.training import reference
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.reference import check_reference, default_references
from cyclofocal.lab.training.run_folder import run_folder

pytestmark = pytest.mark.usefixtures("one_thread")
SEED, N = 3, 240
CLASSES = ("no", "perhaps", "yes")
BALANCED = {entry.estimator: entry for entry in ESTIMATORS if entry.class_weight}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, one_thread):
    """A table of three classes, of which one is rare, with missing numbers and categories."""
    rng = np.random.default_rng(0)
    age, town = rng.normal(40, 12, N), rng.choice(["york", "bath", "hull"], N)
    score = (age - 40) / 6 + 2 * (town == "bath") + rng.normal(0, 1.5, N)
    label = np.select([score < 0.5, score < 3], CLASSES[:2], CLASSES[2])
    frame = pd.DataFrame({"age": np.where(rng.random(N) < 0.1, np.nan, age.round(1)), "town": town, "label": label})
    path = tmp_path_factory.mktemp("table") / "people.csv"
    frame.to_csv(path, index=False)
    return replace(table_recipe(str(path), "label"), epochs=2)


def rows(samples):
    return samples.inputs.double().numpy()


def run(recipe, loss, out, seed=SEED):
    job = Job(recipe, loss, seed, run_folder(out, recipe, loss, seed), RunOptions(cpu=True))
    return job, run_job(job)


def probabilities(job):
    logits = np.load(job.folder / "predictions.npz")["logits"].astype(np.float64)
    assert logsumexp(logits, axis=1) == pytest.approx(0, abs=1e-5)  # they are logarithms of probabilities
    return np.exp(logits)


def fitted_logistic_regression(data, class_weight):
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight=class_weight, max_iter=1000))
    return model.fit(rows(data.train), data.train.labels)


def fitted_lightgbm(data, class_weight):
    lightgbm = pytest.importorskip("lightgbm")
    weight = np.ones(len(data.validation))
    if class_weight:
        counts = np.bincount(data.validation.labels, minlength=3)
        weight = (len(weight) / 3 / counts)[data.validation.labels]
    model = lightgbm.LGBMClassifier(
        n_estimators=1000,
        class_weight=class_weight,
        random_state=SEED,
        n_jobs=1,
        verbosity=-1,
        deterministic=True,
        force_row_wise=True,
    )
    model.fit(
        rows(data.train),
        data.train.labels,
        eval_set=[(rows(data.validation), data.validation.labels)],
        eval_sample_weight=[weight],
        callbacks=[lightgbm.early_stopping(50, verbose=False)],
    )
    assert 0 < model.best_iteration_ < 900
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of eval_set
@pytest.mark.parametrize("estimator", ["logistic-regression", "lightgbm"])
@pytest.mark.parametrize("class_weight", ["", "balanced"])
def test_probabilities_are_those_of_the_library(recipe, tmp_path, estimator, class_weight):
    make, plain = {
        "logistic-regression": (fitted_logistic_regression, LOGISTIC_REGRESSION),
        "lightgbm": (fitted_lightgbm, LIGHTGBM),
    }[estimator]
    data = load(recipe.data, tmp_path, SEED)
    expected = make(data, class_weight or None).predict_proba(rows(data.test))
    job, record = run(recipe, BALANCED[estimator] if class_weight else plain, tmp_path)
    np.testing.assert_allclose(probabilities(job), expected, rtol=2e-5, atol=1e-7)
    right = balanced_accuracy_score(data.test.labels, expected.argmax(1))
    assert record.metrics["balanced_accuracy"] == pytest.approx(right)
    assert record.metrics["nll"] == pytest.approx(log_loss(data.test.labels, expected), rel=1e-4)


def test_majority_has_the_class_shares_of_training(recipe, tmp_path):
    job, record = run(recipe, MAJORITY, tmp_path)
    data = load(recipe.data, tmp_path, SEED)
    shares = np.bincount(data.train.labels) / len(data.train)
    np.testing.assert_allclose(probabilities(job), np.tile(shares, (len(data.test), 1)), rtol=1e-5)
    assert record.metrics["accuracy"] == pytest.approx((data.test.labels == shares.argmax()).mean())
    assert record.metrics["balanced_accuracy"] == pytest.approx(1 / 3)


def test_record_has_all_that_a_network_has_but_epochs(recipe, tmp_path):
    _, network = run(recipe, CROSS_ENTROPY, tmp_path)
    job, record = run(recipe, LOGISTIC_REGRESSION, tmp_path)
    assert list(read_records(job.record_path)) == [record]
    assert (record.epochs, record.epoch_seconds, record.weights) == ([], [], "")
    assert record.is_reference
    assert not network.is_reference
    for name in ("recipe", "seed", "train_counts", "test_counts", "classes", "columns", "versions"):
        assert getattr(record, name) == getattr(network, name), name
    assert record.metrics.keys() == network.metrics.keys()
    assert record.adjusted.keys() == network.adjusted.keys()
    for name in ("per_class", "confusion", "reliability", "temperature"):
        assert len(np.ravel(getattr(record, name))) == len(np.ravel(getattr(network, name))) > 0, name
    assert 0 <= record.tau <= 2
    ids = [np.load(run(recipe, loss, tmp_path)[0].folder / "predictions.npz")["ids"] for loss in ESTIMATORS[:2]]
    assert np.array_equal(*ids)


def test_version_of_lightgbm_is_recorded_where_it_is_used(recipe, tmp_path):
    lightgbm = pytest.importorskip("lightgbm")
    _, record = run(recipe, LIGHTGBM, tmp_path)
    assert record.versions["lightgbm"] == lightgbm.__version__
    assert "lightgbm" not in run(recipe, MAJORITY, tmp_path)[1].versions


def test_finished_run_is_not_fitted_again(recipe, tmp_path, monkeypatch):
    _, record = run(recipe, LOGISTIC_REGRESSION, tmp_path)
    monkeypatch.setattr(reference, "_logistic_regression", lambda *_: pytest.fail("fitted again"))
    assert run(recipe, LOGISTIC_REGRESSION, tmp_path)[1] == record


@pytest.mark.skipif(os.name != "posix", reason="forks a process that ends in the middle of a run")
def test_killed_run_gives_the_result_of_an_uninterrupted_one(recipe, tmp_path, monkeypatch):
    _, whole = run(recipe, LOGISTIC_REGRESSION, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(reference, "_logistic_regression", lambda *_: os._exit(9))
        if not (child := os.fork()):
            run(recipe, LOGISTIC_REGRESSION, tmp_path / "killed")
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    folder = run_folder(tmp_path / "killed", recipe, LOGISTIC_REGRESSION, SEED)
    assert (folder / "run.json").exists()
    assert not (folder / "record.jsonl").exists()
    _, resumed = run(recipe, LOGISTIC_REGRESSION, tmp_path / "killed")
    assert replace(resumed, seconds=0) == replace(whole, seconds=0)


def test_class_without_training_rows_has_no_probability(recipe, tmp_path):
    data = load(recipe.data, tmp_path, SEED)
    kept = np.flatnonzero(data.train.labels != 1)
    model = reference.ReferenceModel(LOGISTIC_REGRESSION, 3, SEED)
    model.fit(replace(data, train=data.train.select(kept)))
    p = model(data.test.inputs).exp()
    assert p.isfinite().all()
    assert p[:, 1].max() < 1e-30
    torch.testing.assert_close(p.sum(1), torch.ones(len(p)))


def test_references_follow_the_kind_of_data(recipe, monkeypatch):
    monkeypatch.setattr(reference, "find_spec", lambda name: object())
    assert default_references(recipe) == ESTIMATORS
    assert default_references(digits()) == ()
    monkeypatch.setattr(reference, "find_spec", lambda name: None)
    assert [loss.estimator for loss in default_references(recipe)] == ["majority", *["logistic-regression"] * 2]
    with pytest.raises(ModuleNotFoundError, match="pip install lightgbm"):
        check_reference(recipe, LIGHTGBM)


def test_images_have_the_majority_class_alone(tmp_path):
    check_reference(digits(), MAJORITY)
    with pytest.raises(ValueError, match="needs rows: compare it on a table, or on the features"):
        run(digits(), LOGISTIC_REGRESSION, tmp_path)


def test_model_of_a_reference_is_not_stored(recipe, tmp_path):
    record = run_job(Job(recipe, MAJORITY, 0, tmp_path / "run", RunOptions(cpu=True, keep_models=True)))
    assert record.metrics["macro_auroc"] == 0.5
    assert not list((tmp_path / "run").glob("model.*"))
