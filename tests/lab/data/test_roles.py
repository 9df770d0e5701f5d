"""Columns of groups, times and identifiers are no features; groups stay together, and the future stays untouched."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cyclofocal.lab.commands import app
from cyclofocal.lab.data.config import ROLES, TableData
from cyclofocal.lab.data.load import load, load_table
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.recipe import FLAT_DEFAULTS, Recipe
from cyclofocal.lab.recipes.settings import SettingError, with_settings
from cyclofocal.lab.recipes.tabular import table_recipe


def visits(rows=120, seed=0):
    """Visits of patients of one to six each, with codes, days out of order, and a column that is the answer."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(rows), rng.integers(1, 7, rows))[:rows]
    label = np.where((patient % 3 == 0) | (rng.random(rows) < 0.1), "ill", "well")
    day = pd.Timestamp("2025-01-01") + pd.to_timedelta(rng.permutation(rows) // 3, unit="D")
    frame = pd.DataFrame({"x": rng.normal(size=rows), "y": rng.normal(size=rows), "patient": patient})
    frame["patient"] = [f"P{number:03}" for number in frame["patient"]]
    return frame.assign(code=[f"{i * 7919 % 1000:04}" for i in range(rows)], day=day.strftime("%Y-%m-%d"), label=label)


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "visits.csv"
    visits().to_csv(path, index=False)
    return path


def config(csv, **fields):
    return TableData(str(csv), target="label", **fields)


def parts(data):
    return [part.positions for part in (data.train, data.validation, data.test) if part is not None]


FEW = settings(max_examples=6, deadline=None)


@FEW
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.4]), st.sampled_from([0.0, 0.3]))
def test_a_group_is_never_on_two_sides(csv, seed, test_fraction, validation_fraction):
    how = config(
        csv,
        group_column="patient",
        drop_columns=("code", "day"),
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
    )
    patients = visits()["patient"]
    data = load(how, seed=seed)
    sides = [set(patients[rows]) for rows in parts(data)]
    assert sum(map(len, sides)) == patients.nunique()
    assert set.union(*sides) == set(patients)
    assert list(data.columns) == ["x", "y", "code", "day", "patient"]
    assert data.train.n_features == 2


@FEW
@given(st.integers(0, 2**32 - 1))
def test_folds_of_groups_share_no_group_and_omit_no_row(csv, seed):
    patients, tested = visits()["patient"], []
    for fold in range(3):
        how = config(csv, group_column="patient", drop_columns=("code", "day"), folds=3, fold=fold)
        data = load(how, seed=seed)
        assert not set(patients[data.train.positions]) & set(patients[data.test.positions])
        tested.append(data.test.positions)
    assert sorted(np.concatenate(tested)) == list(range(120))


@FEW
@given(st.sampled_from([0.1, 0.25, 0.5]), st.sampled_from([0.0, 0.2]), st.booleans())
def test_training_never_sees_the_future(csv, test_fraction, validation_fraction, numbers):
    frame = visits()
    if numbers:
        csv = csv.with_name("numbers.csv")
        frame["day"] = [int(day.replace("-", "")) for day in frame["day"]]
        frame.to_csv(csv, index=False)
    how = config(csv, time_column="day", test_fraction=test_fraction, validation_fraction=validation_fraction)
    days = frame["day"]
    found = [parts(load(how, seed=seed)) for seed in (0, 1)]
    for earlier, later in zip(found[0], found[0][1:], strict=False):
        assert days[earlier].max() < days[later].min()
    assert sorted(np.concatenate(found[0])) == list(range(120))
    assert abs(len(found[0][-1]) - test_fraction * 120) <= 2  # three rows a day
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
    assert not how.draws_test_set


def test_columns_of_a_role_do_not_reach_the_model(csv):
    how = config(csv, time_column="day", id_column="code", drop_columns=("patient", "y"), test_fraction=0.3)
    data = load(how)
    assert data.columns == {
        "x": "number",
        "patient": "left out",
        "y": "left out",
        "day": "time",
        "code": "identifier",
    }
    assert data.train.n_features == 1
    codes = visits()["code"]
    assert [data.test.name(i) for i in (0, 5)] == [f"row {codes[p]} of {csv}" for p in data.test.positions[[0, 5]]]


def test_groups_are_told_apart_as_they_are_written(tmp_path):
    frame = visits().assign(patient=["7", "07", "007"] * 40)
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = load_table(config(tmp_path / "t.csv", group_column="patient"))
    assert len(set(table.apart["patient"].tolist())) == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"time_column": "day", "folds": 5}, "--time is 'day' and folds is 5"),
        ({"time_column": "day", "group_column": "patient"}, "rows are split by one of them"),
    ],
)
def test_roles_that_exclude_each_other_are_refused(csv, fields, words):
    with pytest.raises(ValueError, match=words):
        config(csv, **fields)


def test_tables_of_keel_and_images_have_no_roles():
    with pytest.raises(ValueError, match="--group is 'x', but keel:iris is split as published"):
        TableData("keel:iris", group_column="x")
    with pytest.raises(SettingError, match="'group_column' is not a field of a recipe"):
        with_settings(digits(), ["group_column=x"])


def test_a_split_without_a_class_says_why(tmp_path):
    frame = visits().sort_values("day", ignore_index=True)
    frame["label"] = np.where(frame.index < 40, "early", "late")
    frame.to_csv(tmp_path / "t.csv", index=False)
    words = "test_fraction 0.2 and validation_fraction 0.0 by --time 'day' leave no row to test of a class: 'early'"
    with pytest.raises(ValueError, match=re.escape(words)):
        load(config(tmp_path / "t.csv", time_column="day", test_fraction=0.2))
    frame["day"] = "soon"
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(
        ValueError, match=r"'day' is the time, but neither .* such as 'soon'; write dates as 2026-01-31"
    ):
        load(config(tmp_path / "t.csv", time_column="day", test_fraction=0.2))


@pytest.mark.filterwarnings("ignore:.*column:UserWarning")
def test_roles_are_stored_only_where_they_are_set(csv):
    plain = table_recipe(str(csv), "label")
    assert not set(plain.flat()) & set(ROLES)
    fields = {"drop_columns": ("code", "x"), "group_column": "patient", "id_column": "day"}
    recipe = table_recipe(str(csv), "label", fields)
    stored = json.loads(json.dumps(recipe.flat()))
    assert {name: stored[name] for name in ROLES if name in stored} == fields | {"drop_columns": ["code", "x"]}
    assert Recipe.from_flat(stored).data == recipe.data
    assert with_settings(recipe, ["drop_columns=code,y"]).flat()["drop_columns"] == ("code", "y")
    assert set(ROLES) <= set(FLAT_DEFAULTS)


def test_both_commands_take_the_roles(csv, tmp_path):
    common = ["--drop", "code, x", "--group", "patient", "--id", "day", "--epochs", "1", "--out", str(tmp_path)]
    common += ["--set", "warmup_epochs=0"]
    said = CliRunner().invoke(app, ["train", "--data", str(csv), "--set", "target=label", "--cpu", *common])
    assert said.exit_code == 0, said.output
    assert "y: number; code, x: left out; patient: group; day: identifier" in said.stderr
    (record,) = tmp_path.glob("*/*/record.jsonl")
    stored = json.loads(record.read_text())["recipe"]
    assert (stored["drop_columns"], stored["group_column"], stored["id_column"]) == (["code", "x"], "patient", "day")

    wrong = ["compare", str(csv), "--target", "label", "--group", "patiant", "--drop", "code,nothing"]
    said = CliRunner().invoke(app, wrong, env={"COLUMNS": "300"})
    assert said.exit_code == 2
    assert "--group is 'patiant'" in said.output
    assert "--drop has 'nothing'" in said.output
    for command in (["compare", "digits"], ["train", "digits"]):
        said = CliRunner().invoke(app, [*command, "--time", "day"], env={"COLUMNS": "300"})
        assert said.exit_code == 2
        assert "is no table" in said.output
