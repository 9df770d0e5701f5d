"""Row numbers are no features: they are dropped, by name or by what they are, and each is said."""

import numpy as np
import pandas as pd
import pytest

from cyclofocal.lab.data.tables import read_table


def sorted_rows(rows=40):
    """Noise and a class, sorted by class, so that a row's number tells its class."""
    return pd.DataFrame(
        {"noise": np.random.default_rng(0).normal(size=rows), "label": np.repeat(["a", "b"], rows // 2)}
    )


@pytest.fixture
def read(tmp_path):
    """Write a frame as CSV and read the table."""

    def read(frame, target="label", **how):
        frame.to_csv(tmp_path / "t.csv", **how)
        return read_table(tmp_path / "t.csv", target)

    return read


def shuffled(frame):
    return frame.sample(frac=1, random_state=0)


@pytest.mark.parametrize("change", [lambda frame: frame, shuffled, lambda frame: frame[::-1], lambda frame: frame[::2]])
def test_a_saved_index_is_no_feature(read, tmp_path, change):
    table = read(change(sorted_rows()))
    assert list(table.features) == ["noise"]
    assert table.notes == (
        f"{tmp_path / 't.csv'}: column '' was saved without a name, as row numbers are: dropped; name it if it is a"
        " feature",
    )
    twice = read(change(sorted_rows()).reset_index(names="Unnamed: 0"))
    assert list(twice.features) == ["noise"]
    assert len(twice.notes) == 2


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (np.arange(40), "counts the rows, from 0 to 39: dropped"),
        (np.arange(101, 141.0), "counts the rows, from 101 to 140: dropped"),
        (np.arange(40)[::-1], "counts the rows, from 39 to 0: dropped"),
        (
            np.arange(40, dtype="uint64") + np.uint64(2**63 - 5),
            "counts the rows, from 9223372036854775803 to 9223372036854775842: dropped",
        ),
        (
            np.arange(40) * 10,
            "rises from row to row, from 0 to 390, as row numbers do (shuffle the rows if it is a feature): dropped",
        ),
        (
            -np.random.default_rng(1).integers(1, 4, 40).cumsum(),
            "falls from row to row, from -2 to -78, as row numbers do (shuffle the rows if it is a feature): dropped",
        ),
        ([None, *range(1, 40)], "counts the rows, from 1 to 39: dropped"),
    ],
)
def test_a_column_that_counts_up_is_no_feature(read, tmp_path, numbers, words):
    table = read(sorted_rows().assign(n=numbers), index=False)
    assert list(table.features) == ["noise"]
    assert table.notes == (f"{tmp_path / 't.csv'}: column 'n' {words}",)


@pytest.mark.parametrize(
    "name",
    [
        "id",
        "ID",
        "index",
        "customer_id",
        "PassengerId",
        "Sample ID",
        "rowid",
        "row_number",
        "nr",
        "no",
        "#",
        "record",
        "No.",
        "key",
        "seq",
        "case_number",
        "id_number",
        "uuid",
        "session_uuid",
        "CaseNo",
        "S.No",
    ],
)
def test_an_identifier_in_any_order_is_no_feature(read, name):
    numbers = np.random.default_rng(1).permutation(400)[:40]
    table = read(sorted_rows().assign(**{name: numbers}), index=False)
    assert list(table.features) == ["noise"]
    assert "has another whole number in every row" in table.notes[0]


def test_an_identifier_may_lack_some_values_or_be_text(read):
    numbers = np.random.default_rng(1).permutation(400)[:40]
    lacking = read(sorted_rows().assign(id=[None, *numbers[1:]]), index=False)
    assert list(lacking.features) == ["noise"]
    assert "has another whole number in every row that has one, as an identifier has: dropped" in lacking.notes[0]
    hexes = read(sorted_rows().assign(uuid=[f"{n * 7919:x}-e" for n in numbers]), index=False)
    assert list(hexes.features) == ["noise"]
    assert "column 'uuid' has another text in every row, as an identifier has: dropped" in hexes.notes[0]
    texts = read(sorted_rows(30).assign(sample=[f"S{n:04d}" for n in numbers[:30]]), index=False)
    assert list(texts.features) == ["noise"]
    assert "column 'sample' has another number after 'S' in every row, as an identifier has" in texts.notes[0]


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("rank", np.random.default_rng(1).permutation(40)),
        ("paid", np.random.default_rng(1).permutation(40)),
        ("town_id", np.arange(40) % 39),
        ("id", np.arange(40) + 0.5),
        ("year", np.arange(40) // 2),
        ("dose", np.arange(40) * 2 % 78),
        ("length", np.arange(40) * 1.7 + 0.3),
        ("id", [*[np.nan] * 5, *np.random.default_rng(1).permutation(35)]),
        ("number", np.random.default_rng(1).permutation(40)),
        ("casino", np.random.default_rng(1).permutation(40)),
        ("town", [f"T{i % 35}" for i in range(40)]),
        ("key", [f"{'AB'[i % 2]} in {i}" for i in range(40)]),
    ],
)
def test_columns_that_only_resemble_row_numbers_remain(read, name, numbers):
    table = read(sorted_rows().assign(**{name: numbers}), index=False)
    assert list(table.features) == ["noise", name]
    assert (table.notes, table.changes) == ((), ())


def test_a_text_that_differs_in_every_row_is_an_identifier(read):
    numbers = np.random.default_rng(1).permutation(4000)[:40]
    for texts in ([f"u{n}@x.org" for n in numbers], [f"{n:x}-{n % 7}" for n in numbers]):
        table = read(sorted_rows().assign(contact=texts), index=False)
        assert list(table.features) == ["noise"]
        assert "column 'contact' has another text without spaces in every row, as an identifier has" in table.notes[-1]
        assert table.changes == ("dropped contact",)


def test_dates_and_sentences_are_no_identifiers(read):
    days = pd.date_range("1990-01-05", periods=40, freq="9D")
    for texts in (days.strftime("%Y-%m-%d"), days.strftime("%d/%m/%Y"), [f"{i * 7 % 41} words" for i in range(40)]):
        table = read(sorted_rows().assign(said=texts), index=False)
        assert list(table.features) == ["noise", "said"]


@pytest.mark.parametrize(
    ("value", "words"),
    [("UK", "is 'UK' in every row"), (1.5, "is '1.5' in every row"), (None, "has no value in any row")],
)
def test_a_constant_column_is_no_feature(read, tmp_path, value, words):
    table = read(sorted_rows().assign(c=value), index=False)
    assert list(table.features) == ["noise"]
    assert table.notes == (f"{tmp_path / 't.csv'}: column 'c' {words}: dropped",)
    assert list(read(sorted_rows().assign(c=["UK"] * 39 + [None]), index=False).features) == ["noise", "c"]


def test_few_rows_may_count_by_chance(read):
    assert list(read(sorted_rows(8).assign(n=np.arange(8)), index=False).features) == ["noise", "n"]


def test_the_target_may_be_anything_and_nothing_left_is_said(read):
    index = read(
        sorted_rows().rename_axis("Unnamed: 0").reset_index().assign(**{"Unnamed: 0": [1, 2] * 20}), "Unnamed: 0"
    )
    assert index.classes == ("1", "2")
    with pytest.raises(ValueError, match="nothing is left to predict 'label' from; column '' was saved without a name"):
        read(sorted_rows()[["label"]])
