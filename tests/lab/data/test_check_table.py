"""A column that holds the answer, and rows on both sides of a split, are named; so is all else, on one page."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cyclofocal.lab.commands import app
from cyclofocal.lab.data.check_table import LEAK, LeakWarning, find_leaks, repeated_rows, shared_rows
from cyclofocal.lab.data.config import TableData
from cyclofocal.lab.data.preprocess import split_table
from cyclofocal.lab.data.tables import checked
from cyclofocal.lab.recipes.tabular import table_recipe


def noise(rows=200, seed=0, rare=0.2):
    """Columns that tell nothing about the label."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"x": rng.normal(size=rows), "town": rng.choice(["York", "Bath", "Ely"], rows)})
    label = np.where(np.arange(rows) < rare * rows, "ill", "well")
    return frame.assign(label=rng.permutation(label))


def ill(frame):
    return (frame["label"] == "ill").to_numpy()


LEAKS = {
    "category": lambda frame, rng: np.where(ill(frame), "ward", rng.choice(["home", "hotel"], len(frame))),
    "number": lambda frame, rng: np.where(ill(frame), 7, rng.choice([3, 12], len(frame))) + rng.random(len(frame)),
    "missing": lambda frame, rng: np.where(ill(frame), np.nan, rng.normal(size=len(frame))),
    "large": lambda frame, rng: np.where(ill(frame), 1e300, -1e300),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_a_column_that_holds_the_answer_is_found(kind):
    frame = noise()
    column = LEAKS[kind](frame, np.random.default_rng(1))
    found = find_leaks(checked(frame.assign(answer=column), "label", "t"))
    assert list(found) == ["answer"]
    assert found["answer"] == pytest.approx(1, abs=1e-3)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.2, 0.5]), st.sampled_from([100, 300]))
def test_noise_and_good_columns_are_no_leaks(seed, rare, rows):
    frame = noise(rows, seed, rare)
    rng = np.random.default_rng(seed)
    good = np.where(rng.random(rows) < 0.15, ~ill(frame), ill(frame)).astype(float)
    assert not find_leaks(checked(frame.assign(good=good), "label", "t"))


def test_one_wrong_row_of_thousands_is_a_leak_still():
    frame = noise(3000, rare=0.5)
    answer = ill(frame).astype(float)
    answer[17] = 1 - answer[17]
    found = find_leaks(checked(frame.assign(answer=answer), "label", "t"))
    assert LEAK <= found["answer"] <= 1


def test_leaks_of_several_classes_and_of_very_few_rows():
    frame = noise(90).assign(label=np.tile(["a", "b", "c"], 30))
    table = checked(frame.assign(answer=np.tile([1.0, 2.0, 3.0], 30)), "label", "t")
    assert list(find_leaks(table)) == ["answer"]
    few = frame[:12].assign(answer=np.tile([1.0, 2.0, 3.0], 4))
    assert not find_leaks(checked(few, "label", "t"))


def counted(lines):
    return [int(number) for line in lines for number in re.findall(r": (\d+) of", line)]


def test_repeated_rows_are_counted():
    frame = noise(50)
    again = pd.concat([frame, frame[:7], frame[:3].assign(label="other")], ignore_index=True)
    table = checked(again, "label", "t")
    assert counted(repeated_rows(table)) == [7, 3]
    assert not repeated_rows(checked(frame, "label", "t"))


@pytest.mark.parametrize("folds", [0, 4])
def test_rows_on_both_sides_of_a_split_are_counted(folds):
    frame = noise(60)
    again = pd.concat([frame, frame[:25]], ignore_index=True)
    split = {"folds": folds} if folds else {"test_fraction": 0.3}
    data = split_table(checked(again, "label", "t"), TableData("t", target="label", validation_fraction=0.2, **split))
    rows = [tuple(row) for row in again.itertuples(index=False)]
    train = {rows[i] for i in data.train.positions}
    expected = [sum(rows[i] in train for i in part.positions) for part in (data.validation, data.test)]
    assert counted(shared_rows(data)) == expected
    assert min(expected) > 0
    alone = split_table(checked(frame, "label", "t"), TableData("t", target="label", test_fraction=0.3))
    assert not shared_rows(alone)


@pytest.fixture
def csv(tmp_path):
    frame = noise().assign(answer=lambda frame: ill(frame).astype(int), country="UK", number=range(200), empty=None)
    frame.loc[:19, "x"] = np.nan
    again = pd.concat([frame, frame[:60]], ignore_index=True).assign(number=range(260))
    again.to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def check(csv, *more):
    result = CliRunner().invoke(app, ["data", "check", str(csv), *more], env={"COLUMNS": "300"})
    return result.exit_code, result.output


def test_a_page_describes_a_table(csv):
    code, said = check(csv, "--target", "label")
    assert code == 1
    for words in (
        "260 rows, 6 columns and the target label",
        r"2 classes, the largest \d\.\d times the smallest: well \d+, ill \d+",
        r"x        number, missing values marked; 40 missing \(15.4 %\)",
        "town     3 categories",
        "number   dropped\n",
        r"empty    dropped; 260 missing \(100.0 %\)",
        "column 'number' counts the rows, from 0 to 259: dropped",
        "column 'country' is 'UK' in every row: dropped",
        r"WARNING: \S+: column 'answer' alone predicts the target \(AUROC 1.0000 on held-out rows\)",
        r"\d+ of 260 rows equal an earlier one in all features and the class",
        r"\d+ of 52 test rows equal a training row",
    ):
        assert re.search(words, said), words


def test_a_number_that_differs_in_every_row_may_be_an_identifier(tmp_path):
    rng = np.random.default_rng(0)
    noise().assign(case=rng.permutation(200) + 7000, age=rng.permutation(200) / 2).to_csv(
        tmp_path / "t.csv", index=False
    )
    code, said = check(tmp_path / "t.csv", "--target", "label")
    assert code == 0
    assert "'case' has another whole number in every row and is used as a feature; if it names the rows" in said
    assert "leave it out: --id 'case'" in said
    assert "'age'" not in said
    assert "no identifier" not in said
    assert "no identifier" in check(tmp_path / "t.csv", "--target", "label", "--id", "case")[1]


def test_a_table_without_faults_is_sound(tmp_path):
    noise().to_csv(tmp_path / "t.csv", index=False)
    code, said = check(tmp_path / "t.csv", "--target", "label")
    assert code == 0
    assert said.endswith("no identifier, constant, leak or copy found\n")
    code, said = check(tmp_path / "t.csv", "--target", "label", "--group", "town", "--drop", "y")
    assert (code, "--drop has 'y'" in said) == (1, True)
    noise().assign(town=None).to_csv(tmp_path / "t.csv", index=False)
    assert "town  left out; 200 missing" in check(tmp_path / "t.csv", "--target", "label", "--drop", "town")[1]
    code, said = check(tmp_path / "t.csv")
    assert code == 2
    assert "name the column to predict, with --target" in said


def test_training_warns_of_leaks_and_copies(csv):
    with pytest.warns(LeakWarning, match="column 'answer' alone predicts the target"):
        table_recipe(str(csv), "label")
    out = ["--out", str(csv / "runs"), "--epochs", "1", "--set", "warmup_epochs=0"]  # a file, so no run begins
    for command in (
        ["train", "--data", str(csv), "--set", "target=label", "--cpu", *out],
        ["compare", str(csv), "--target", "label", "--losses", "ce,focal", *out],
    ):
        said = CliRunner().invoke(app, command).stderr
        assert "WARNING: " in said
        assert said.count("column 'answer' alone predicts") == 1
        assert re.search(r"warning: \S+: \d+ of 52 test rows equal a training row", said)
