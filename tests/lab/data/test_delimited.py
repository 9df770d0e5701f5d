"""A CSV's names, separator, target and numbers are read as they were meant, or refused by name."""

import re

import numpy as np
import pytest

from cyclofocal.lab.data.tables import read_table


@pytest.fixture
def read(tmp_path):
    """Write a text as CSV and read the table."""

    def read(text, target="y"):
        (tmp_path / "t.csv").write_text(text, encoding="utf-8")
        return read_table(tmp_path / "t.csv", target)

    return read


def rows(*lines, times=4):
    return "".join(f"{line}\n" for line in lines) * times


def names_of(table):
    """The class of each of the first rows."""
    return [table.classes[label] for label in table.labels[: len(table.classes)]]


@pytest.mark.parametrize(
    "texts",
    [
        ["9007199254740992", "9007199254740993", "9007199254740994"],
        ["1000000000000000001", "1000000000000000002"],
        ["18446744073709551614", "18446744073709551615", "18446744073709551616"],
        ["007", "7", "07"],
        ["01", "1"],
        ["1e5", "100000"],
        ["1", "1.0"],
        ["+1", "-1"],
        ["NA", "None", "null", "nan", "?", "N/A"],
        ["True", "TRUE"],
        ["0,5", "0.5"],
    ],
)
def test_classes_are_the_texts_of_the_target(read, texts):
    quoted = [f'"{text}"' for text in texts]
    table = read("x,y\n" + rows(*(f"{i},{text}" for i, text in enumerate(quoted))))
    assert names_of(table) == texts
    assert set(table.classes) == set(texts)


def test_numbers_in_their_plain_form_keep_their_order(read):
    assert read("x,y\n" + rows("1,10", "1,2", "3,-1")).classes == ("-1", "2", "10")
    assert read("x,y\n" + rows("1,10.0", "1,2.0", "3,0.5")).classes == ("0.5", "2", "10")
    assert read("x,y\n" + rows("1,30000000000000000000", "2,4000000000000000000")).classes[0][0] == "4"
    assert read("x,y\n" + rows("1,010", "2,2")).classes == ("010", "2")


def test_only_an_empty_field_of_the_target_is_missing(read):
    for empty in ("", '""', " "):
        with pytest.raises(ValueError, match=re.escape("target 'y' has no value in 1 of its rows (number 2)")):
            read(f"x,y\n1,a\n2,{empty}\n3,b\n")


@pytest.mark.parametrize("form", ["{:.2f}", "{:.3f}"])
@pytest.mark.parametrize("mark", [".", ","])
def test_fractions_that_are_not_plain_are_a_regression(read, form, mark):
    text = "".join(f"{i % 7};{form.format(i / 8).replace('.', mark)}\n" for i in range(40))
    with pytest.raises(ValueError, match=r"different numbers in 40 rows, from 0 to 4\.8.*: a regression, it seems"):
        read("x;y\n" + text)


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (["0,5", "1,25", ""], [0.5, 1.25, np.nan]),
        (["1.250,5", "3", "NA"], [1250.5, 3, np.nan]),
        (["5 %", "12.5 %", "?"], [5, 12.5, np.nan]),
        (["$5", "$1,000.50", "-"], [5, 1000.5, np.nan]),
        (["3", "4.5", "-"], [3, 4.5, np.nan]),
    ],
)
def test_numbers_in_another_notation_are_numbers(read, values, numbers):
    table = read("x;y\n" + rows(*(f"{value};{'ab'[i % 2]}" for i, value in enumerate(values))))
    assert table.features["x"].dtype == np.float64
    np.testing.assert_array_equal(table.features["x"][:3], numbers)
    assert re.search(r"column 'x': numbers, '.*' as (missing|[\d.]+)", table.notes[0])


def test_a_comma_of_thousands_is_one_between_commas_only(read):
    table = read('x,y\n"1,000",a\n950,b\n')
    assert table.features["x"].tolist() == [1000, 950]
    assert "'1,000' as 1000" in table.notes[0]
    with pytest.raises(
        ValueError, match=re.escape("column 'x' holds numbers that can be read in two ways, such as '1,000'")
    ):
        read("x;y\n1,000;a\n950;b\n")
    with pytest.raises(ValueError, match=re.escape("column 'x' holds numbers in more than one notation or unit")):
        read("x;y\n5;a\n5 %;b\n")


def test_a_point_among_decimal_commas_may_be_of_thousands(read):
    with pytest.raises(
        ValueError, match=re.escape("column 'z' holds numbers that can be read in two ways, such as '1.234'")
    ):
        read("x;z;y\n0,5;1.234;a\n0,7;950;b\n")
    table = read("x;z;y\n0,5;1.25;a\n0,7;950;b\n")
    assert table.features.to_numpy().tolist() == [[0.5, 1.25], [0.7, 950]]
    assert read("x;z;y\n0.5;1.234;a\n0.7;950;b\n").features["z"].tolist() == [1.234, 950]


def test_words_among_numbers_stay_categories_and_are_said(read):
    table = read("doors,y\n" + rows("2,a", "3,b", "5more,a", "4,b"))
    assert table.features["doors"].tolist()[:4] == ["2", "3", "5more", "4"]
    assert "column 'doors': categories, not numbers, for '5more' is no number, in 4 of its rows" in table.notes[0]
    assert table.changes == ()
    assert read("town,y\n" + rows("York,a", "5,b", "Bath,a")).notes == ()


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ('"Weight, kg";y', "Weight, kg"),
        ("Weight, kg, net, all;y", "Weight, kg, net, all"),
        ('"Weight\nin kg, net";y', "Weight\nin kg, net"),
        ("sep=;\nWeight;y", "Weight"),
        ('\ufeff"sep=;"\r\nWeight;y', "Weight"),
        ("NA;y", "NA"),
    ],
)
def test_the_separator_is_that_of_the_parsed_header(read, header, name):
    table = read(header + "\n" + rows("1.5;a", "2;b"))
    assert list(table.features) == [name]
    assert table.features[name].tolist()[:2] == [1.5, 2]
    assert table.classes == ("a", "b")


def test_a_separator_that_excel_names_is_taken(read):
    assert read("sep=|\nx, or so|y\n1|a\n2|b\n").features["x, or so"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="it must be one of the columns x, y;z"):
        read("sep=,\nx,y;z\n1,a\n2,b\n")


@pytest.mark.parametrize(
    "texts",
    [
        ["-$5", "$3", "($2)"],
        ["7", "(5)", "(4)"],
        ["1,00,000", "2,00,000"],
        ["5 kg", "6 kg"],
        ["1k", "2k"],
        ["12:30", "1:45"],
        ["1/2", "3/4"],
        ["0x1F", "0x2A"],
        ["5-", "6-", "none"],
    ],
)
def test_digits_that_are_read_as_categories_are_said(read, texts):
    table = read("x;y\n" + rows(*(f"{text};{'ab'[i % 2]}" for i, text in enumerate(texts))))
    assert table.features["x"].tolist()[: len(texts)] == texts
    assert re.search(r"column 'x': texts with digits taken as categories, such as '[^']*\d[^']*'; if", table.notes[0])
    assert table.changes == ()


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_point_that_may_be_of_thousands_is_refused(read, separator):
    text = "x;y\n" + rows("38;a", "75;b", "1.037;a")
    with pytest.raises(ValueError, match=r"column 'x' holds numbers .* two ways, such as '1\.037', 1\.037 or 1037"):
        read(text.replace(";", separator))
    assert read(text.replace(";", ",")).features["x"].tolist()[2] == 1.037
    for clear in ("0.250", "1.5", "1037.125"):
        assert read(text.replace("75", clear).replace(";", separator)).features["x"].tolist()[1] == float(clear)


def test_whole_numbers_with_leading_zeros_are_texts(read):
    table = read("zip,x,y\n" + rows("01234,0.5,a", ",01.5,b", "90210,2,a"))
    assert table.features["zip"].tolist()[:3] == ["01234", np.nan, "90210"]
    assert table.features["x"].tolist()[:3] == [0.5, 1.5, 2]
    assert "column 'zip': texts, not numbers, for '01234' begins with a zero" in table.notes[0]
    assert table.changes == ("text zip",)
    counted = read("n,x,y\n" + "".join(f"{i:03d},{i % 3},{'ab'[i % 2]}\n" for i in range(20)))
    assert list(counted.features) == ["x"]


@pytest.mark.parametrize("before", ["\n", " \r\n\n", "\nsep=;\n"])
def test_blank_lines_before_the_names_are_skipped(read, before):
    table = read(before + "x;y\n" + rows("1;a", "2;b"))
    assert table.features["x"].tolist()[:2] == [1, 2]
    assert table.classes == ("a", "b")


def test_pipes_are_read_and_spaces_are_refused_by_name(read):
    assert read("x|w|y\n" + rows("1|2|a", "2|3|b")).features["w"].tolist()[:2] == [2, 3]
    with pytest.raises(ValueError, match="its columns are separated by spaces, it seems; separate them by commas"):
        read("x w y\n" + rows("1 2 a", "2 3 b"))
