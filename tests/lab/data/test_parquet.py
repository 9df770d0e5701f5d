"""A Parquet file keeps an index that has a name, and exact numbers; values of parts are refused by name."""

import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from cyclofocal.lab.data.tables import read_table

pytest.importorskip("pyarrow")


def rows(**columns):
    """400 good rows of two classes, with columns replaced or added."""
    return pd.DataFrame({"x": np.arange(400) % 5, "y": ["a", "b"] * 200} | columns)


@pytest.fixture
def read(tmp_path):
    """Write a frame as Parquet and read the table."""

    def read(frame, target="y"):
        frame.to_parquet(tmp_path / "t.parquet")
        return read_table(tmp_path / "t.parquet", target)

    return read


def test_an_index_with_a_name_is_a_column(read):
    table = read(rows(age=np.arange(400) % 60, town=["York", "Bath"] * 200).set_index(["age", "town"]))
    assert table.features["age"].tolist() == [i % 60 for i in range(400)]
    assert table.features["town"].tolist()[:2] == ["York", "Bath"]
    assert [note.partition(": ")[2] for note in table.notes] == [
        "its index 'age' is read as a column",
        "its index 'town' is read as a column",
    ]
    assert read(rows().set_index("y")).classes == ("a", "b")
    with pytest.raises(ValueError, match="more than one column is called 'x'"):
        read(rows().set_index("x", drop=False))


def test_an_index_of_row_numbers_is_dropped(read):
    for frame in (rows().sample(frac=1, random_state=0), rows().rename_axis("id")):
        table = read(frame)
        assert list(table.features) == ["x"]
        assert "dropped" in table.notes[0]
        assert table.changes == ()  # as pandas reads it
    assert read(rows()).notes == ()
    assert list(read(rows(**{"Unnamed: 0": 3, "__index_level_0__": 4})).features) == ["x"]


@pytest.mark.parametrize("different", [7, 70])
def test_decimals_are_numbers(read, different):
    decimals = [Decimal(i % different) / 4 for i in range(399)]
    table = read(rows(d=[*decimals, None]))
    np.testing.assert_array_equal(table.features["d"], [*(i % different / 4 for i in range(399)), np.nan])
    assert "column 'd': decimals are read as numbers" in table.notes[0]
    classes = read(rows(y=[Decimal(c) for c in ("10.00", "2.00", "2.50", "-1.00")] * 100)).classes
    assert classes == ("-1", "2", "2.50", "10")


def test_whole_numbers_in_text_are_categories_or_vectorized(read):
    codes = read(rows(zip=[f"{i % 35:05d}" for i in range(400)], few=["1", "2"] * 200))
    assert codes.features["zip"].tolist()[:2] == ["00000", "00001"]
    assert codes.features["few"].dtype == object
    assert codes.notes == ()
    assert codes.vectorized == ()
    assert read(rows(zip=[f"{i * 7 % 400:05d}" for i in range(400)])).vectorized == ("zip",)


def test_fractions_in_text_are_numbers(read):
    table = read(rows(p=["0,5", "1,25"] * 200, q=["0.5", "1.25"] * 200))
    assert table.features[["p", "q"]].iloc[:2].to_numpy().tolist() == [[0.5, 0.5], [1.25, 1.25]]
    assert [note.partition(": ")[2] for note in table.notes] == [
        "column 'p': numbers, '0,5' as 0.5",
        "column 'q': numbers, '0.5' as 0.5",
    ]


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_text_of_the_target_is_missing(read, empty):
    with pytest.raises(ValueError, match=re.escape("target 'y' has no value in 200 of its rows (number 2, 4")):
        read(rows(y=["a", empty] * 200))


@pytest.mark.parametrize("kind", ["float32", "Float32", "float64"])
def test_fractional_classes_are_named_by_their_digits(read, kind):
    assert read(rows(y=pd.Series([0.1, 2, 0.7, 1.5] * 100, dtype=kind))).classes == ("0.1", "0.7", "1.5", "2")


@pytest.mark.parametrize(
    "values", [[[1, 2]] * 400, [{"a": 1}] * 400, [None, [3]] * 200], ids=["list", "struct", "some missing"]
)
def test_values_of_parts_are_refused_by_name(read, values):
    with pytest.raises(ValueError, match="column 'parts' holds values of several parts, such as"):
        read(rows(parts=values))
    with pytest.raises(ValueError, match="target 'parts' holds values of several parts, such as"):
        read(rows(parts=values), "parts")


def test_whole_classes_are_exact(read):
    table = read(rows(y=np.array([2**63 + 1, 2**63 + 2, 5, 2**53 + 1] * 100, dtype="uint64")))
    assert table.classes == tuple(map(str, (5, 2**53 + 1, 2**63 + 1, 2**63 + 2)))
    assert table.labels.tolist()[:4] == [2, 3, 0, 1]
    assert table.changes == ("digits y",)
    with pytest.raises(ValueError, match=re.escape("target 'y' has 400 different numbers in 400 rows")):
        read(rows(y=np.arange(400) + 2**60))
