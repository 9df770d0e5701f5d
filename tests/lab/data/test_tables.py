"""A table is read whole, prepared by its training rows alone, split class by class; what it cannot be is refused."""

import re
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cyclofocal.lab.commands import app
from cyclofocal.lab.data.config import TableData
from cyclofocal.lab.data.load import load_table, table_digest
from cyclofocal.lab.data.preprocess import column_summary, encode, split_table
from cyclofocal.lab.data.tables import checked, read_table
from cyclofocal.lab.hashes import file_hash
from cyclofocal.lab.messages import DamagedDataError, MissingDataError
from cyclofocal.lab.recipes.loss import CYCLICAL
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.recipes.tabular import table_recipe
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.train import train
from formats import load


def frame(rows=60, seed=0):
    """Numbers and texts, some missing, and three classes of different size."""
    rng = np.random.default_rng(seed)
    age, town = rng.normal(40, 10, rows), rng.choice(["York", "Bath", "Ely"], rows).astype(object)
    age[rng.random(rows) < 0.1] = np.nan
    town[rng.random(rows) < 0.1] = None
    label = np.array(["no", "maybe", "yes"], dtype=object)[np.repeat([0, 1, 2], [rows // 2, rows // 3, rows // 6])]
    return pd.DataFrame({"age": age, "income": rng.integers(100, size=rows), "town": town, "label": label})


def small(**columns):
    """Twelve good rows of two classes, with columns replaced or added."""
    return pd.DataFrame({"x": np.arange(12) % 5, "label": ["a", "b"] * 6} | columns)


@pytest.fixture
def csv(tmp_path):
    frame().to_csv(tmp_path / "people.csv", index=False)
    return tmp_path / "people.csv"


def split(rows, seed=0, **how):
    return split_table(rows, TableData("t.csv", target="label", **how), seed)


def parts(data):
    return [part.positions.tolist() for part in (data.train, data.validation, data.test) if part is not None]


FEW = settings(max_examples=4)  # each fits a preprocessing


@FEW
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.25, 0.5]), st.sampled_from([0.0, 0.2, 0.5]))
def test_every_row_is_in_one_part_and_every_class_in_each(seed, test_fraction, validation_fraction):
    data = split(
        checked(frame(), "label", "t"), seed, test_fraction=test_fraction, validation_fraction=validation_fraction
    )
    assert sorted(np.concatenate(parts(data))) == list(range(60))
    assert (data.validation is None) == (validation_fraction == 0)
    for part in (data.train, data.validation, data.test):
        assert part is None or set(part.labels) == {0, 1, 2}
    assert np.bincount(data.test.labels).tolist() == [max(1, round(test_fraction * n)) for n in (20, 30, 10)]


@FEW
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_folds_of_a_seed_share_no_test_row_and_omit_none(seed, folds):
    rows = checked(frame(), "label", "t")
    tests = [split(rows, seed, folds=folds, fold=fold, validation_fraction=0.1).test for fold in range(folds)]
    assert sorted(np.concatenate([test.positions for test in tests])) == list(range(60))
    for c, count in enumerate(rows.counts):
        assert all(count // folds <= (test.labels == c).sum() <= -(-count // folds) for test in tests)


def test_splits_follow_the_seed(csv):
    found = [parts(load(str(csv), target="label", seed=s, test_fraction=0.3)) for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    found = [parts(load(str(csv), target="label", seed=s, folds=3)) for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


@FEW
@given(st.integers(0, 1000))
def test_other_rows_do_not_change_the_training_rows(seed):
    before, rng = frame(), np.random.default_rng(seed)
    train = split(checked(before, "label", "t"), seed, folds=5, validation_fraction=0.2).train.positions
    after, others = before.copy(), np.setdiff1d(np.arange(60), train)
    after.loc[others, "age"] = rng.choice([np.nan, -1e6, 3.0], len(others))
    after.loc[others, "income"] = rng.integers(-(10**6), 10**6, len(others))
    after.loc[others, "town"] = rng.choice([None, "Rome", "Bath"], len(others))
    prepared = [encode(checked(some, "label", "t"), train).inputs for some in (before, after)]
    assert torch.equal(prepared[0][train], prepared[1][train])
    assert not torch.equal(prepared[0][others], prepared[1][others])


def test_prepared_rows_are_those_of_a_plain_loop():
    rows = checked(frame(), "label", "t")
    train, features = np.arange(0, 60, 2), rows.features
    prepared = encode(rows, train).inputs.double().numpy()
    expected = []
    for name in ("age", "income"):
        known = features[name].iloc[train].to_numpy()
        filled = np.where(np.isnan(features[name]), np.median(known[~np.isnan(known)]), features[name])
        expected.append((filled - filled[train].mean()) / filled[train].std())
    absent = np.isnan(features["age"]).to_numpy().astype(float)
    expected.append((absent - absent[train].mean()) / absent[train].std())
    towns = [*sorted(set(features["town"].iloc[train].dropna())), None]
    expected += [[float((pd.isna(t) and town is None) or t == town) for t in features["town"]] for town in towns]
    np.testing.assert_allclose(prepared, np.array(expected).T, atol=1e-6)


def test_a_text_that_training_has_not_seen_is_all_zeros():
    rows = checked(small(town=["a"] * 6 + ["b"] * 5 + ["new"]), "label", "t")
    prepared = encode(rows, np.arange(11)).inputs
    assert prepared.shape == (12, 3)
    assert prepared[11, 1:].tolist() == [0, 0]


def test_a_column_that_training_has_no_value_of_is_no_fault():
    rows = checked(small(rare=[np.nan] * 11 + [3.0]), "label", "t")
    assert encode(rows, np.arange(11)).inputs.isfinite().all()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_is_read_as_it_was_written(tmp_path, separator):
    (tmp_path / "t.csv").write_text(
        "\ufeffx,n,yes,label\n1.5,?,True,b\n, 7,False,a\n3,,True,b\n".replace(",", separator), encoding="utf-8"
    )
    rows = read_table(tmp_path / "t.csv", "label")
    assert rows.classes == ("a", "b")
    assert rows.labels.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(rows.features[["x", "n"]], [[1.5, np.nan], [np.nan, 7], [3, np.nan]])
    assert rows.features["yes"].tolist() == [1, 0, 1]


def test_parquet_and_csv_of_the_same_rows_are_the_same(tmp_path, csv):
    pytest.importorskip("pyarrow")
    frame().to_parquet(tmp_path / "people.parquet")
    kinds = [load(str(path), target="label", folds=4) for path in (csv, tmp_path / "people.parquet")]
    assert kinds[0].classes == kinds[1].classes == ("maybe", "no", "yes")
    for a, b in zip((kinds[0].train, kinds[0].test), (kinds[1].train, kinds[1].test), strict=True):
        torch.testing.assert_close(a.inputs, b.inputs)
        assert a.labels.tolist() == b.labels.tolist()


def test_parquet_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").touch()
    monkeypatch.setattr("cyclofocal.lab.data.parquet.find_spec", lambda name: None)
    with pytest.raises(MissingDataError, match="pip install pyarrow"):
        read_table(tmp_path / "t.parquet", "label")


def test_numbers_as_classes_keep_their_order():
    rows = checked(small(label=[10, 2, -1] * 4), "label", "t")
    assert rows.classes == ("-1", "2", "10")
    assert rows.labels.tolist() == [2, 1, 0] * 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty; its first line must name the columns"),
        ("x,label\n", "it has no row"),
        ("x,label\n1,a,3\n2,b,3\n", "2 of its lines have more values than there are names"),
        ("x,label\n1,a\n2,b,3\n", "line 3 has 3 values for 2 names"),
    ],
)
def test_a_damaged_csv_is_named(tmp_path, text, words):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DamagedDataError, match=re.escape(words)) as raised:
        read_table(tmp_path / "t.csv", "label")
    assert str(raised.value).startswith(str(tmp_path / "t.csv"))


def test_another_encoding_and_a_broken_parquet_are_named(tmp_path):
    (tmp_path / "t.csv").write_bytes("x,label\né,a\n".encode("latin1"))
    with pytest.raises(DamagedDataError, match="not a CSV in UTF-8"):
        read_table(tmp_path / "t.csv", "label")
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DamagedDataError, match="not a readable Parquet file"):
        read_table(tmp_path / "t.parquet", "label")


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("x,y,x,label\n1,2,3,a\n4,5,6,b\n")
    with pytest.raises(ValueError, match="more than one column is called 'x'"):
        read_table(tmp_path / "t.csv", "label")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": ["a"] * 12}, "target 'label' has one class, a"),
        ({"label": ["a", None] * 6}, "target 'label' has no value in 6 of its rows (number 2, 4, 6, 8, 10 and 1 more)"),
        ({"x": np.full(12, np.nan)}, "column 'x' has no value at all; drop it"),
        ({"x": [1, np.inf] * 6}, "column 'x' is infinite in 6 of its rows (number 2, 4"),
        ({"x": [["a", "b"]] * 12}, "column 'x' holds values of several parts, such as ['a', 'b']; drop it"),
    ],
)
def test_impossible_columns_are_refused(columns, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        checked(small(**columns), "label", "t")


def test_an_unknown_target_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"target is 'lable'; it must be .* x, label\. Did you mean 'label'"):
        checked(small(), "lable", "t")
    with pytest.raises(ValueError, match="no column but 'label'"):
        checked(small()[["label"]], "label", "t")


def test_free_text_is_vectorized_and_many_categories_are_not():
    many = pd.DataFrame({"text": [f"comment {i}" for i in range(400)], "label": ["a", "b"] * 200})
    assert checked(many, "label", "t").vectorized == ("text",)
    assert checked(many.assign(text=[f"town {i % 40}" for i in range(400)]), "label", "t").vectorized == ()
    with pytest.raises(ValueError, match=re.escape("holds numbers, but not in 1 of its rows (number 8), such as 'no'")):
        checked(many.assign(text=["no" if i == 7 else str(i) for i in range(400)]), "label", "t")
    ages = ["fifty" if i == 7 else str(i % 35) for i in range(400)]  # few different ones, as categories have
    with pytest.raises(ValueError, match="column 'text' holds numbers, but not in 1 of its rows"):
        checked(many.assign(text=ages), "label", "t")
    doors = ["more" if i % 5 == 0 else str(i % 35) for i in range(400)]
    assert checked(many.assign(text=doors), "label", "t").features["text"].dtype == object


def test_numbers_in_text_are_counted_as_other_texts_are():
    numbers = pd.DataFrame({"n": [str(i % 40) for i in range(400)], "label": ["a", "b"] * 200})
    assert checked(numbers, "label", "t").features["n"].tolist()[:2] == ["0", "1"]
    assert checked(numbers, "label", "t").vectorized == ()
    assert checked(numbers[:200], "label", "t").vectorized == ("n",)
    for kind in (int, Decimal):
        objects = numbers.assign(n=pd.Series([kind(i) for i in range(400)], dtype=object))
        assert checked(objects, "label", "t").features["n"].tolist() == list(range(400))


def rich(rows=60):
    """Dates as text and as times, free text and durations beside the columns of :func:`frame`."""
    days = pd.date_range("1990-01-05", periods=rows, freq="9D")
    born = days.strftime("%Y-%m-%d").to_series(index=range(rows)).astype(object)
    said = pd.Series([f"{'good' if i % 3 else 'bad'} comment number {i}" for i in range(rows)], dtype=object)
    said[::7] = None
    stay = pd.to_timedelta(np.arange(rows) * 7 % 31, unit="h")
    return frame(rows).assign(born=born, seen=days + pd.Timedelta(days=400), said=said, stay=stay)


def test_dates_and_text_are_encoded_by_training_rows_alone():
    pytest.importorskip("skrub")
    before, others = rich(), np.arange(40, 60)
    after = before.copy()
    after.loc[others, "born"], after.loc[others, "said"] = "1066-10-14", "entirely other words"
    after.loc[others, "seen"] = pd.Timestamp("2030-01-01")
    found = [encode(checked(some, "label", "t"), np.arange(40)) for some in (before, after)]
    assert found[0].inputs.isfinite().all()
    assert torch.equal(found[0].inputs[:40], found[1].inputs[:40])
    assert not torch.equal(found[0].inputs[40:], found[1].inputs[40:])
    plain = encode(checked(frame(), "label", "t"), np.arange(40)).inputs
    assert torch.equal(found[0].inputs[:, : plain.shape[1]], plain)  # whose encoding they do not change
    added = found[0].inputs[:40, plain.shape[1] :]
    torch.testing.assert_close(added.mean(0), torch.zeros(added.shape[1]), atol=1e-3, rtol=0)


def test_the_encoding_of_every_column_is_described():
    pytest.importorskip("skrub")
    columns = encode(checked(rich(), "label", "t"), np.arange(0, 60, 2)).columns
    assert columns == {
        "age": "number, missing values marked",
        "income": "number",
        "town": "4 categories",
        "born": "date (%Y-%m-%d), as 4 numbers",
        "seen": "date, as 4 numbers",
        "said": "text, as 30 numbers",
        "stay": "number",
    }
    assert column_summary({"a": "number", "b": "2 categories", "c": "number"}) == "a, c: number; b: 2 categories"


def test_values_that_training_rows_do_not_have_are_no_fault():
    pytest.importorskip("skrub")
    odd = rich()
    odd.loc[50:, "born"], odd.loc[50:, "said"] = "no date", None
    odd.loc[:49, "seen"] = pd.NaT
    assert encode(checked(odd, "label", "t"), np.arange(50)).inputs.isfinite().all()


def test_dates_without_skrub_say_what_to_install(monkeypatch):
    monkeypatch.setattr("cyclofocal.lab.data.preprocess.find_spec", lambda name: None)
    with pytest.raises(MissingDataError, match=r"column 'born' holds dates or free text; .* pip install skrub"):
        encode(checked(rich(), "label", "t"), np.arange(50))


def test_a_record_holds_the_encoding_of_the_columns(tmp_path, capsys):
    pytest.importorskip("skrub")
    rich().drop(columns="stay").assign(id=range(60)).to_csv(tmp_path / "t.csv", index=False)
    with pytest.warns(UserWarning, match="column 'id' counts the rows"):
        recipe = replace(table_recipe(str(tmp_path / "t.csv"), "label"), epochs=1, warmup_epochs=0)
    assert (
        "born, seen: date (%Y-%m-%d), as 4 numbers; said: text, as 30 numbers; id: dropped" in capsys.readouterr().err
    )
    record = train(Job(recipe, CYCLICAL, 0, options=RunOptions(cpu=True)))
    assert record.columns["said"] == "text, as 30 numbers"
    assert record.columns["id"] == "dropped"
    assert train(Job(recipe, CYCLICAL, 0, options=RunOptions(cpu=True))).metrics == record.metrics


def test_a_continuous_target_is_refused_many_classes_are_not():
    x = np.arange(400)
    with pytest.raises(ValueError, match=r"400 different numbers in 400 rows, from 0\.5 to 399\.5: a regression"):
        checked(pd.DataFrame({"x": x, "y": x + 0.5}), "y", "t")
    with pytest.raises(ValueError, match="a regression"):
        checked(pd.DataFrame({"x": x, "y": x}), "y", "t")
    assert len(checked(pd.DataFrame({"x": x, "y": x % 30}), "y", "t").classes) == 30


def test_a_class_of_too_few_rows_is_named():
    rows = checked(small(label=["a"] * 9 + ["rare"] * 3), "label", "t")
    split(rows, folds=3, validation_fraction=0.2)
    with pytest.raises(ValueError, match="5 folds need 5 rows or more of every class, but 'rare' has 3"):
        split(rows, folds=5)
    with pytest.raises(ValueError, match="leave no row to train on of a class: 'rare' has 3"):
        split(rows, test_fraction=0.5, validation_fraction=0.5)
    lonely = checked(small(label=["a"] * 10 + ["rare"] * 2), "label", "t")
    with pytest.raises(ValueError, match="a test part and a validation part need 3 rows"):
        split(lonely, test_fraction=0.2, validation_fraction=0.2)


def test_numbers_too_large_for_a_model_are_named():
    with pytest.raises(ValueError, match=re.escape("column 'x' reaches 1e+300; rescale it")):
        encode(checked(small(x=[1e300] + [0] * 11), "label", "t"), np.arange(6, 12))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "must be between 0 and 1, or give folds"),
        ({"folds": 3, "fold": 3}, "fold is 3 and folds is 3; it must be 0, or smaller than folds"),
        (
            {"test_fraction": 0.2, "subset": "6_2"},
            "a table, and subset is '6_2'; subset is for a published data set or a folder",
        ),
        (
            {"test_fraction": 0.2, "validation_images": 5},
            "a table, and validation_images is 5; validation_images is for a published data set or a folder",
        ),
        ({"test_fraction": 0.2, "digest": "0" * 16}, "its content has changed"),
    ],
)
def test_arguments_that_do_not_fit_a_table(csv, arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        load(str(csv), target="label", **arguments)


def test_arguments_of_tables_are_refused_for_images(tmp_path):
    with pytest.raises(ValueError, match=r"source is 'digits', .* and folds is 5; folds is for a table, and must be 0"):
        load("digits", test_per_class=60, folds=5)
    with pytest.raises(ValueError, match="target is 'label', but digits is no table"):
        load("digits", target="label")
    with pytest.raises(MissingDataError, match="no such file"):
        load(str(tmp_path / "none.csv"), target="label", folds=3)


def test_a_changed_file_is_another_experiment(csv):
    before = table_recipe(str(csv), "label")
    assert before == table_recipe(str(csv), "label")
    assert before.data.digest == table_digest(str(csv))
    frame(seed=1).to_csv(csv, index=False)
    assert table_recipe(str(csv), "label").data.digest != before.data.digest
    with pytest.raises(DamagedDataError, match="counts as another experiment"):
        train(Job(before, CYCLICAL, 0, options=RunOptions(cpu=True)))


def test_other_data_of_the_same_file_are_another_experiment(csv):
    plain = read_table(csv, "label")
    assert (plain.notes, plain.changes, plain.features.shape) == ((), (), (60, 3))
    assert table_recipe(str(csv), "label").data.digest == file_hash(csv)  # by which earlier runs are recognised
    frame().to_csv(csv)
    with pytest.warns(UserWarning, match="people.csv: column '' was saved without a name"):
        recipe = table_recipe(str(csv), "label")
    assert recipe.data.digest not in ("", file_hash(csv))
    assert load_table(recipe.data).changes == ("dropped ",)
    with pytest.raises(DamagedDataError, match="counts as another experiment"):
        load_table(replace(recipe.data, digest=file_hash(csv)))


def test_the_command_says_once_what_it_drops_and_converts(tmp_path):
    rows = "".join(f"{i};{i * 7 % 11},5;{'ab'[i % 2]}\n" for i in range(40))
    (tmp_path / "t.csv").write_text("id;x;label\n" + rows)
    arguments = ["compare", str(tmp_path / "t.csv"), "--target", "label", "--set", "nothing=1"]  # ends before a run
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 2
    lines = [line for line in said.stderr.splitlines() if "column" in line]
    assert lines == [
        f"{tmp_path / 't.csv'}: column 'x': numbers, '0,5' as 0.5",
        f"{tmp_path / 't.csv'}: column 'id' counts the rows, from 0 to 39: dropped",
    ]


@given(st.integers(2, 60), st.integers(60, 5000))
def test_the_recipe_grows_with_the_rows(few, many):
    from cyclofocal.lab.recipes.tabular import _recipe

    small_one, large = (_recipe("t", "t", TableData("t.csv"), rows) for rows in (few, 20 * many))
    assert 16 <= small_one.batch_size <= large.batch_size <= 512


def test_a_resumed_run_on_a_table_equals_an_unbroken_one(csv, tmp_path):
    recipe: Recipe = replace(table_recipe(str(csv), "label"), epochs=4, ema_decay=0.9, mixup=0.2)
    whole = train(Job(recipe, CYCLICAL, 0, options=RunOptions(cpu=True)))
    folder = tmp_path / "run"
    first = train(Job(recipe, CYCLICAL, 0, folder, RunOptions(cpu=True)))
    (folder / "record.jsonl").unlink()
    sorted(folder.glob("checkpoint-*.pt"))[-1].unlink()
    again = train(Job(recipe, CYCLICAL, 0, folder, RunOptions(cpu=True)))
    assert whole.metrics == first.metrics == again.metrics
    assert whole.epochs == first.epochs == again.epochs
    assert whole.epochs[0]["eta"] == 1.0
    assert len(whole.per_class) == 3


def test_images_are_for_image_models_and_rows_for_the_mlp(csv):
    recipe = table_recipe(str(csv), "label")
    with pytest.raises(
        ValueError,
        match="model is 'small-resnet', which takes images; for rows of numbers",
    ):
        train(Job(replace(recipe, model="small-resnet"), CYCLICAL, 0, options=RunOptions(cpu=True)))
    with pytest.raises(ValueError, match="augment is 'crop-flip'"):
        train(Job(replace(recipe, augment="crop-flip"), CYCLICAL, 0, options=RunOptions(cpu=True)))
    rows = load(str(csv), target="label", test_fraction=0.2).train
    assert rows.name(0) == f"row {rows.positions[0]} of {csv}"
    with pytest.raises(ValueError, match="rows of a table are no images"):
        rows.image(0)
