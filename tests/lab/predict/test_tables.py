"""A model of a table gives the same logits in a new process of any order, and refuses columns that do not fit."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import cyclofocal.lab as lab
from cyclofocal.lab.commands import app
from cyclofocal.lab.messages import DamagedDataError
from cyclofocal.lab.predict import stream
from cyclofocal.lab.predict.stream import Output, predict_file
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY
from cyclofocal.lab.recipes.tabular import table_recipe
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.saved_model import DamagedModelError
from cyclofocal.lab.training.train import train

pytestmark = pytest.mark.usefixtures("one_thread")
N = 120


def people(seed=0):
    """Rows with numbers, missing ones, a decimal comma, categories, codes, booleans and row numbers."""
    rng = np.random.default_rng(seed)
    age = rng.normal(40, 12, N).round(1)
    frame = pd.DataFrame(
        {
            "id": [f"C{i:04d}" for i in rng.permutation(N)],
            "age": np.where(rng.random(N) < 0.1, np.nan, age),
            "income": [f"{v:,.2f}".translate(str.maketrans(",.", ".,")) for v in rng.lognormal(8, 1, N)],
            "town": rng.choice(["york", "bath", "hull"], N),
            "code": rng.choice(["007", "042", "100"], N),
            "member": rng.random(N) < 0.5,
            "label": np.where(age > 40, "yes", "no"),
        }
    )
    frame.loc[3, "town"] = np.nan
    return frame


def write(frame, path, **how):
    frame.to_csv(path, index=False, sep=";", **how)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("table")
    with pytest.warns(UserWarning, match="id"):
        recipe = replace(table_recipe(str(write(people(), folder / "people.csv")), "label"), epochs=3)
    record = train(Job(recipe, CROSS_ENTROPY, 0, folder / "run", RunOptions(cpu=True, keep_models=True)))
    (folder / "people.csv").unlink()  # it need not be there any more
    return folder / "run", record


def predicted(run, frame, path, output=None, **how):
    summary = predict_file(lab.load(run), [write(frame, path / "new.csv", **how)], path / "out.csv", output)
    return summary, pd.read_csv(path / "out.csv")


def test_logits_are_those_of_the_run_to_the_bit(run, tmp_path):
    stored = np.load(run[0] / "predictions.npz")
    model, frame = lab.load(run[0]), people()
    assert np.array_equal(model.logits(frame.iloc[stored["ids"]]), stored["logits"])
    assert stored["classes"].tolist() == list(model.classes) == model.classes_.tolist() == ["no", "yes"]
    inputs = model.transform(frame)
    logits = torch.from_numpy(model.logits(inputs))  # in batches, whose products may round in another way
    torch.testing.assert_close(model.module(inputs), logits)


def test_a_csv_of_the_same_rows_gives_the_same_classes(run, tmp_path):
    model, frame = lab.load(run[0]), people()
    summary, found = predicted(run[0], frame, tmp_path)
    assert found["class"].tolist() == model.predict(frame).tolist()
    p = model.predict_proba(frame)
    np.testing.assert_allclose(found[["p(no)", "p(yes)"]], p, rtol=1e-5, atol=1e-6)
    assert (summary.samples, summary.labelled.sum()) == (N, N)
    assert summary.right.sum() == (found["class"] == frame["label"]).sum()


def test_the_order_of_columns_and_rows_does_not_matter(run, tmp_path):
    frame, order = people(), np.random.default_rng(1).permutation(N)
    _, found = predicted(run[0], frame, tmp_path)
    _, other = predicted(run[0], frame[frame.columns[::-1]].iloc[order], tmp_path)
    assert other["class"].tolist() == found["class"].iloc[order].tolist()


def test_a_row_alone_is_read_as_among_others(run, tmp_path):
    """Its number 1.234 has a decimal comma's notation, its code a leading zero, and no other row says so."""
    frame = people()
    frame.loc[[3, 17], "income"] = "1.234"
    _, whole = predicted(run[0], frame, tmp_path)
    for row in (3, 17):
        _, alone = predicted(run[0], frame.iloc[[row]], tmp_path)
        np.testing.assert_allclose(alone["p(no)"], whole["p(no)"].iloc[[row]], rtol=1e-4)


def test_a_file_larger_than_a_chunk(run, tmp_path, monkeypatch):
    frame = people()
    frame.loc[100:, "town"] = np.nan  # the last chunks are of other types than the whole
    frame.loc[100:, "age"] = np.nan
    _, whole = predicted(run[0], frame, tmp_path)
    monkeypatch.setattr(stream, "CHUNK_ROWS", 7)
    _, found = predicted(run[0], frame, tmp_path)
    pd.testing.assert_frame_equal(found, whole)
    assert found["row"].tolist() == list(range(N))


def test_parquet_equals_csv(run, tmp_path):
    pytest.importorskip("pyarrow")
    frame = people()
    _, expected = predicted(run[0], frame, tmp_path)
    amounts = frame["income"].str.replace(".", "").str.replace(",", ".").astype(float)
    frame.assign(income=amounts).to_parquet(tmp_path / "new.parquet")
    predict_file(lab.load(run[0]), [tmp_path / "new.parquet"], tmp_path / "out.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out.csv"), expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.drop(columns="age"), r"no column 'age', which the model was trained on"),
        (lambda f: f.rename(columns={"town": "towns"}), r"no column 'town'.*Did you mean 'towns'\?"),
        (
            lambda f: f.assign(age=["old" if i == 5 else "3" for i in range(N)]),
            "'age' must hold numbers.*row 5 has 'old'",
        ),
        (lambda f: f.assign(age=["inf" if i == 5 else "3" for i in range(N)]), r"'age' is infinite in row 5"),
        (lambda f: f.assign(age="1,234"), "'age' must hold numbers with a decimal point.*row 0 has '1,234'"),  # or 1234
        (lambda f: f.assign(income="0.016"), "numbers with a decimal comma, as in training; row 0 has '0.016'"),
        (lambda f: f.assign(age="1e300"), r"row 0 is too large"),
        (lambda f: f.assign(label="maybe"), r"column 'label' holds 'maybe', which the model does not know.*no, yes"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(run, tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        predicted(run[0], change(people()), tmp_path)
    assert not (tmp_path / "out.csv").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("place", ["early", "late"])
def test_a_file_that_is_not_utf8_is_refused_with_the_remedy(run, tmp_path, place):
    text = people().to_csv(index=False, sep=";")
    text = text.replace("york", "yörk") if place == "early" else text + 10_000 * "X;1;1;yörk;007;True;yes\n"
    (tmp_path / "new.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedDataError, match=r"new.csv: not a CSV in UTF-8 .* of its lines .*; save it as UTF-8"):
        predict_file(lab.load(run[0]), [tmp_path / "new.csv"], tmp_path / "out.csv")


def test_further_columns_and_unknown_categories_are_reported(run, tmp_path):
    frame = people()
    _, expected = predicted(run[0], frame, tmp_path)
    summary, found = predicted(run[0], frame.assign(extra=1), tmp_path)
    assert summary.unused == ["extra"]
    pd.testing.assert_frame_equal(found, expected)
    summary, _ = predicted(run[0], frame.drop(columns=["label", "id"]).assign(town="rome"), tmp_path)
    assert (summary.unknown, summary.labelled.sum()) == ({"town": {"rome"}}, 0)


def test_values_missing_for_the_first_time_are_reported(run, tmp_path):
    frame = people().drop(columns="label")
    encoder = lab.load(run[0]).encoder
    complete = {name for place, name in enumerate(encoder.numbers) if place not in encoder.scaling.marked}
    complete |= {name for name, texts in encoder.categories.items() if None not in texts}
    assert complete
    assert complete < {*encoder.numbers, *encoder.categories}
    summary, _ = predicted(run[0], frame, tmp_path)
    assert summary.missing == {}
    summary, _ = predicted(run[0], frame.assign(**dict.fromkeys(encoder.columns, np.nan)), tmp_path)
    assert summary.missing == dict.fromkeys(complete, len(frame))


def test_an_identifier_is_copied_and_top_leaves_one_probability(run, tmp_path):
    frame = people()
    _, found = predicted(run[0], frame, tmp_path, Output(top=True, id_column="id"))
    assert list(found) == ["row", "id", "class", "probability"]
    assert found["id"].tolist() == frame["id"].tolist()
    assert found["probability"].min() >= 0.5


def test_a_new_table_need_not_have_columns_left_out(tmp_path):
    """Columns named by --drop and --id do not change a prediction, whether the new table has them or not."""
    frame = people().assign(extra=people(1)["age"].fillna(0))
    arguments = ["train", str(write(frame, tmp_path / "people.csv")), "--target", "label", "--drop", "income, extra"]
    arguments += ["--id", "id", "--epochs", "4", "--cpu", "--out", str(tmp_path / "runs")]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0, said.output
    (folder,) = (path.parent for path in tmp_path.glob("runs/*/*/model.json"))
    assert sorted(lab.load(folder).encoder.columns) == ["age", "code", "member", "town"]

    summary, without = predicted(folder, frame.drop(columns=["income", "extra", "id"]), tmp_path)
    assert (summary.samples, summary.right.sum(), summary.unused) == (N, (without["class"] == frame["label"]).sum(), [])
    changed = frame.assign(income="unknown", extra=np.nan)
    summary, found = predicted(folder, changed, tmp_path, Output(id_column="id"))
    assert (found.pop("id").tolist(), summary.unused) == (frame["id"].tolist(), [])
    pd.testing.assert_frame_equal(found, without)


def test_stored_choices_are_applied(run):
    """Temperature, prior and threshold, by formulas of their own."""
    model, record, frame = lab.load(run[0]), run[1], people()
    z = model.logits(frame).astype(np.float64)

    def softmax(z):
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    np.testing.assert_allclose(model.predict_proba(frame, calibrated=True), softmax(z / record.temperature), rtol=1e-9)
    balanced = softmax(z - record.tau * np.log(np.array(record.train_counts) / sum(record.train_counts)))
    np.testing.assert_allclose(model.predict_proba(frame, balanced=True), balanced, rtol=1e-6)
    rarer = int(record.train_counts[1] <= record.train_counts[0])
    at_threshold = np.where(softmax(z)[:, rarer] >= record.threshold, rarer, 1 - rarer)
    assert model.at_threshold(z).tolist() == at_threshold.tolist()
    assert model.at_threshold(z, 0.2).tolist() == np.where(softmax(z)[:, rarer] >= 0.2, rarer, 1 - rarer).tolist()
    with pytest.raises(ValueError, match="exclude each other"):
        model.predict_proba(frame, calibrated=True, balanced=True)


def test_a_moved_run_is_loaded_and_a_changed_file_is_refused(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "moved")
    assert lab.load(tmp_path / "moved").classes == ("no", "yes")
    weights = tmp_path / "moved" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DamagedModelError, match=r"its SHA-256 is not the one in model\.json"):
        lab.load(tmp_path / "moved")
    weights.unlink()
    with pytest.raises(DamagedModelError, match=r"model\.safetensors: no such file"):
        lab.load(tmp_path / "moved")
    path = tmp_path / "moved" / "model.json"
    for content in ("", "[]", "{}", json.dumps({"format": 2}), json.dumps({"format": 1, "recipe": 3})):
        path.write_text(content)
        with pytest.raises(DamagedModelError, match=r"model\.json: "):
            lab.load(tmp_path / "moved")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.json, and so no model"):
        lab.load(tmp_path / "moved")


def test_dates_and_text_come_back_to_the_bit(tmp_path):
    pytest.importorskip("skrub")
    pytest.importorskip("skops")
    rng = np.random.default_rng(0)
    words = [" ".join(rng.choice(list("abcdefghij"), 6)) for _ in range(N)]
    days = pd.Timestamp("2024-01-31") + pd.to_timedelta(rng.permutation(N), unit="D")
    frame = people().assign(day=days.strftime("%Y-%m-%d"), note=words)
    frame.loc[5, "day"] = np.nan
    with pytest.warns(UserWarning, match="id"):
        recipe = replace(table_recipe(str(write(frame, tmp_path / "t.csv")), "label"), epochs=1)
    folder = tmp_path / "run"
    train(Job(recipe, CROSS_ENTROPY, 0, folder, RunOptions(cpu=True, keep_models=True)))
    stored, model = np.load(folder / "predictions.npz"), lab.load(folder)
    assert np.array_equal(model.logits(frame.iloc[stored["ids"]]), stored["logits"])
    _, found = predicted(folder, frame, tmp_path)
    assert found["class"].tolist() == model.predict(frame).tolist()
    _, alone = predicted(folder, frame.iloc[[5]], tmp_path)
    assert alone["class"].tolist() == found["class"].iloc[[5]].tolist()


def test_foreign_types_in_an_encoder_are_refused(tmp_path):
    skops = pytest.importorskip("skops.io")
    from cyclofocal.lab.predict.model import ImageTransform
    from cyclofocal.lab.training.saved_model import _load

    with pytest.raises(DamagedModelError, match=r"it holds .*ImageTransform"):
        _load(skops.dumps(ImageTransform), tmp_path / "v.skops")


def test_a_table_without_rows_is_refused(run, tmp_path):
    empty = write(people().drop(columns="label")[:0], tmp_path / "empty.csv")
    result = CliRunner().invoke(app, ["predict", str(run[0]), str(empty), "-o", str(tmp_path / "out.csv")])
    assert result.exit_code == 1
    assert "it has no row to predict" in " ".join(result.output.split())
    with pytest.raises(ValueError, match="it has no row to predict"):
        lab.load(run[0]).predict(people()[:0])


def test_the_folder_of_a_second_run_is_no_data(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "other")
    new = write(people(1), tmp_path / "new.csv")
    result = CliRunner().invoke(
        app, ["predict", str(run[0]), str(tmp_path / "other"), str(new)], env={"COLUMNS": "300"}
    )
    assert result.exit_code == 2
    assert "is the folder of another run; give one RUN" in result.output


def test_a_text_that_is_no_date_is_refused(tmp_path):
    pytest.importorskip("skrub")
    pytest.importorskip("skops")
    frame = people().drop(columns="id")
    frame["visited"] = pd.date_range("2026-01-01", periods=N).strftime("%Y-%m-%d")
    recipe = replace(table_recipe(str(write(frame, tmp_path / "visits.csv")), "label"), epochs=1)
    train(Job(recipe, CROSS_ENTROPY, 0, tmp_path / "run", RunOptions(cpu=True, keep_models=True)))
    model = lab.load(tmp_path / "run")
    new = pd.read_csv(tmp_path / "visits.csv", sep=";")
    assert len(model.predict(new)) == N
    new.loc[5, "visited"] = np.nan
    assert len(model.predict(new)) == N
    new.loc[7, "visited"] = "yesterday"
    with pytest.raises(
        ValueError, match=r"column 'visited' holds 'yesterday' in row 7, which is no date as in training"
    ):
        model.predict(new)
