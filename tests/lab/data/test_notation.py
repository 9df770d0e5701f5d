"""Numbers are read in the one notation that fits a whole column, and never in one of two that differ."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclofocal.lab.data.notation import read_numbers

NUMBERS = st.lists(st.integers(-(10**9), 10**9).map(lambda n: n / 100), min_size=1, max_size=20, unique=True)


def written(number, group, decimal, unit="{}"):
    """The number with two decimals, as in 1,234.50, in a notation."""
    text = f"{number:,.2f}".translate({ord(","): group, ord("."): decimal})
    return unit.format(text)


@given(
    NUMBERS,
    st.sampled_from([(",", "."), (".", ","), (" ", "."), ("\u202f", ","), ("'", "."), ("", ",")]),
    st.sampled_from(["{}", "{} %", "${}", "{} €"]),
    st.booleans(),
)
def test_two_decimals_are_read_in_every_notation(numbers, notation, unit, point_is_decimal):
    texts = {written(number, *notation, unit): number for number in numbers}
    found = read_numbers([*texts, "-"], point_is_decimal)
    assert math.isnan(found.numbers.pop("-"))
    assert found == (texts, notation[1])


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["0,125", "0,250"], [0.125, 0.25]),
        (["1,250", "0,5"], [1.25, 0.5]),
        (["1,250", "2.5"], [1250, 2.5]),
        (["1,234,567", "950"], [1234567, 950]),
        (["1.234.567", "950"], [1234567, 950]),
        (["-$5", "$-7", "+$8", "$ 9"], [-5, -7, 8, 9]),
        (["\N{MINUS SIGN}5", "7"], [-5, 7]),
        (["1,5e3", ",5"], [1500, 0.5]),
    ],
)
def test_what_is_unambiguous_is_read(texts, numbers):
    assert read_numbers(texts, point_is_decimal=False).numbers == dict(zip(texts, numbers, strict=True))


@pytest.mark.parametrize("texts", [["1,000", "950"], ["950 €", "1.250 €"], ["-1,000"]])
def test_two_meanings_are_refused_unless_the_point_is_known(texts):
    with pytest.raises(ValueError, match=r"in two ways, such as '.*1[.,]\d\d0.*', .* or .*; write them with a decimal"):
        read_numbers(texts, point_is_decimal=False)
    assert read_numbers(["1,000", "950"], point_is_decimal=True).numbers == {"1,000": 1000, "950": 950}


@pytest.mark.parametrize(
    ("texts", "pair"),
    [
        (["1", "0.5", "0,7"], "'0.5' and '0,7'"),
        (["5", "7 %"], "'5' and '7 %'"),
        (["$5", "€6"], "'$5' and '€6'"),
    ],
)
def test_two_notations_in_one_column_are_refused(texts, pair):
    with pytest.raises(ValueError, match="more than one notation or unit, such as " + pair.replace("$", r"\$")):
        read_numbers(texts, point_is_decimal=True)


@pytest.mark.parametrize(
    "texts",
    [
        ["York", "5"],
        ["12.05.2023", "13.05.2023"],
        ["2023-05-12"],
        ["1.2.3"],
        ["10-19", "20-29"],
        ["12:30"],
        ["3+", "1", "2"],
        ["12,34,56"],
        ["1,0000,000"],
        ["--5"],
        ["$5 %"],
        ["007", "12"],
        ["-1", "0"],
        ["-"],
        [],
    ],
)
def test_texts_and_codes_are_left_as_they_are(texts):
    assert read_numbers(texts, point_is_decimal=True) is None
