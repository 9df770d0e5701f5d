"""A comparison on a table fits references too, unless it is asked not to; wrong ones are refused before any work."""

import re

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from cyclofocal.lab.commands import app
from cyclofocal.lab.recipes.loss import ESTIMATORS
from cyclofocal.lab.records import read_records
from cyclofocal.lab.training import reference
from formats import write_folder

LOSSES = ["ce", "focal"]


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    age = rng.normal(40, 12, 150).round(1)
    label = np.where(age + rng.normal(0, 8, 150) > 45, "yes", "no")
    path = tmp_path / "people.csv"
    pd.DataFrame({"age": age, "height": rng.normal(170, 9, 150).round(1), "label": label}).to_csv(path, index=False)
    return path


def invoke(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, re.sub(r"[\s│]+", " ", result.stderr)


def compare(table, *more, losses="ce,focal", seeds=2):
    out, picture = table.parent / "runs", ("--picture", table.parent / "picture.png")
    options = ("--epochs", 1, "--workers", 1, "--gpus-per-run", 0, "--seeds", seeds, "--losses", losses, *picture)
    return invoke("compare", table, "--target", "label", "--out", out, *options, *more)


def names(table):
    paths = sorted((table.parent / "runs").glob("*/*/record.jsonl"))
    return sorted(line.loss["name"] for path in paths for line in read_records(path) if line.seed == 0)


def test_references_are_fitted_by_default_and_reused(table):
    pytest.importorskip("lightgbm")
    code, out, err = compare(table)
    assert code == 0, err
    assert "2 losses (cross-entropy, focal), 5 references (majority class, logistic regression, " in err
    assert "14 runs, 0 of them finished before" in err
    assert names(table) == sorted([*LOSSES, *(loss.name for loss in ESTIMATORS)])
    assert out.index("focal") < out.index("references, not losses") < out.index("majority class")
    again = compare(table)
    assert "14 runs, 14 of them finished before" in again[2]
    assert again[1] == out
    pages = table.parent / "report.html"
    assert invoke("report", table.parent / "runs", "-o", pages)[0] == 0
    assert "references, not losses" in pages.read_text()


def test_without_lightgbm_one_line_says_that_it_is_left_out(table, monkeypatch):
    monkeypatch.setattr(reference, "find_spec", lambda name: None)
    code, _, err = compare(table, seeds=1)
    assert code == 0, err
    assert err.count("LightGBM") == 1
    assert "references: LightGBM is not installed, and left out; pip install lightgbm" in err
    known = [loss.name for loss in ESTIMATORS if loss.estimator != "lightgbm"]
    assert names(table) == sorted([*LOSSES, *known])
    code, _, err = compare(table, losses="ce,lightgbm")
    assert code == 2
    assert "lightgbm needs LightGBM: pip install lightgbm" in err


def test_models_are_kept_of_losses_alone(table):
    code, _, err = compare(table, "--keep-models", seeds=1)
    assert code == 0, err
    assert sorted(path.parent.name.partition("-seed")[0] for path in table.parent.rglob("model.json")) == sorted(LOSSES)
    assert len(names(table)) > len(LOSSES)


def test_references_can_be_left_out_or_named(table):
    assert compare(table, "--no-references", seeds=1)[0] == 0
    assert names(table) == LOSSES
    code, _, err = compare(table, losses="ce,logistic-regression:class_weight=balanced", seeds=1)
    assert code == 0, err
    assert "1 loss (cross-entropy), 1 reference (logistic regression (class_weight balanced)), 1 seed" in err
    assert names(table) == [*LOSSES, "logistic-regression:class_weight=balanced"]


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ("majority,logistic-regression", "are references alone; give a loss to compare them with, such as ce"),
        ("ce,logistic-regression:C=2", "'C' is not a setting of logistic-regression; allowed: class_weight."),
        ("ce,majority:class_weight=balanced", "majority has no settings"),
        ("ce,lightgm", "Did you mean 'lightgbm'?"),
    ],
)
def test_wrong_references_are_refused_before_any_run(table, losses, message):
    code, _, err = compare(table, losses=losses)
    assert code == 2
    assert message in err
    assert not (table.parent / "runs").exists()


def test_images_are_refused_rows_and_have_no_default(tmp_path):
    write_folder(tmp_path / "images" / "train", {"ant": 6, "bee": 4})
    write_folder(tmp_path / "images" / "test", {"ant": 6, "bee": 4}, seed=50)
    code, _, err = invoke("compare", tmp_path / "images", "--losses", "ce,logistic-regression", "--out", tmp_path / "x")
    assert code == 2
    assert "needs rows: compare it on a table, or on the features of a frozen network" in err


@pytest.mark.parametrize("command", ["train", "reproduce"])
def test_model_of_a_reference_is_not_trained_alone(table, command):
    what = (table, "--target", "label") if command == "train" else ("digits",)
    code, _, err = invoke(command, *what, "--loss", "logistic-regression", "--out", table.parent / "runs")
    assert code == 2
    assert "`cyclofocal compare DATA --losses ce,logistic-regression` shows its result" in err
    assert "fit it with scikit-learn itself" in err


def test_tuning_leaves_references_as_they_are(table):
    pytest.importorskip("optuna")
    code, _, err = compare(table, "--tune", 1, losses="ce,majority", seeds=1)
    assert code == 0, err
    assert names(table) == ["ce:tuned", "majority"]
