"""Promise: a sample is found again by its id, and data that have changed are refused."""

import numpy as np
import pytest
from PIL import Image

from cyclofocal.lab.data.config import FolderData, PublishedData, TableData, TimmData
from cyclofocal.lab.data.digits import all_digits
from cyclofocal.lab.data.load import load, table_digest
from cyclofocal.lab.data.lookup import LONGEST_VALUE, MAX_COLUMNS, SampleLookup
from cyclofocal.lab.messages import DamagedDataError, MissingDataError
from cyclofocal.lab.training.predictions import sample_ids


def table(path, **fields):
    rows = [f"{i / 3},{'north' if i % 2 else ''},P{i},{'yes' if i % 3 else 'no'}" for i in range(30)]
    path.write_text("\n".join(["size,town,person,label", *rows]) + "\n")
    return TableData(str(path), target="label", test_fraction=0.2, digest=table_digest(str(path)), **fields)


@pytest.fixture
def images(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(8):
            shade = 20 * i + (5 if name == "dog" else 0)
            Image.new("L", (6, 4), shade).save(tmp_path / "pets" / name / f"{i}.png")
    return FolderData(str(tmp_path / "pets"), test_fraction=0.25)


def test_rows_of_a_table_have_names_and_values(tmp_path):
    data = table(tmp_path / "people.csv", id_column="person")
    test = load(data, seed=3).test
    lookup = SampleLookup(data.flat(), tmp_path)
    lookup.check(sample_ids(test), test.labels)
    assert lookup.columns == ["size", "town"]
    assert lookup.values(4) == ["1.33333", ""]
    assert lookup.values(5) == ["1.66667", "north"]
    assert lookup.name(4) == "row P4"
    assert lookup.image(4) is None


def test_wide_rows_and_long_texts_are_cut(tmp_path):
    path, names = tmp_path / "wide.csv", [f"c{i}" for i in range(MAX_COLUMNS + 5)]
    rows = [[str((7 * i + j) % 11) for j in range(len(names))] for i in range(30)]
    text = ["x" * 200, "y" * 200]
    lines = [",".join([text[i % 2], *row, "ab"[i % 2 if i > 3 else 0]]) for i, row in enumerate(rows)]
    path.write_text("\n".join([",".join(["text", *names, "label"]), *lines]) + "\n")
    lookup = SampleLookup(TableData(str(path), target="label", test_fraction=0.2).flat(), tmp_path)
    assert len(lookup.columns) == len(lookup.values(0)) == MAX_COLUMNS
    assert lookup.n_hidden_columns == 6
    assert len(lookup.values(0)[0]) == LONGEST_VALUE


def test_images_are_found_by_path_or_position(images, tmp_path):
    test = load(images).test
    lookup = SampleLookup(images.flat(), tmp_path)
    for ids in (sample_ids(test), test.positions):  # a head on features knows positions
        lookup = SampleLookup(images.flat(), tmp_path)
        lookup.check(ids, test.labels)
        for index, sample in enumerate(ids.tolist()):
            assert lookup.image(sample).tobytes() == test.image(index).tobytes()
            assert lookup.name(sample) == test.name(index)
    assert lookup.values(ids[0].item()) == lookup.columns == []


def test_digits_of_every_seed_are_found(tmp_path):
    data = PublishedData("digits", test_per_class=5)
    lookup = SampleLookup(data.flat(), tmp_path)
    for seed in (0, 1):
        test = load(data, seed=seed).test
        lookup.check(sample_ids(test), test.labels)
        sample = int(test.positions[7])
        assert lookup.image(sample).tobytes() == test.image(7).tobytes() == all_digits().image(sample).tobytes()
    assert lookup.name(17) == "image 17"


def test_changed_data_are_refused(images, tmp_path):
    data = table(tmp_path / "people.csv")
    (tmp_path / "people.csv").write_text((tmp_path / "people.csv").read_text().replace("P7", "P77"))
    with pytest.raises(DamagedDataError, match="changed"):
        SampleLookup(data.flat(), tmp_path)
    test = load(images).test
    pinned = FolderData(images.source, test_fraction=0.25, digest=load(images).digest_with_test)
    (tmp_path / "pets" / "cat" / "0.png").unlink()
    with pytest.raises(DamagedDataError, match="changed"):
        SampleLookup(pinned.flat(), tmp_path)
    found = SampleLookup(images.flat(), tmp_path)
    with pytest.raises(DamagedDataError, match="changed: 1 of 4 samples"):
        found.check(np.append(found.source.positions[:3], 99), np.append(found.source.labels[:3], 0))
    assert len(test) == 4


def test_another_class_is_a_change(tmp_path):
    lookup = SampleLookup(PublishedData("digits", test_per_class=5).flat(), tmp_path)
    labels = all_digits().labels[:3]
    lookup.check(np.arange(3), labels)
    with pytest.raises(DamagedDataError, match="1 of 3"):
        lookup.check(np.arange(3), labels + np.array([0, 1, 0]))


def test_nothing_is_downloaded_and_missing_data_are_named(tmp_path):
    with pytest.raises(MissingDataError, match="another library"):
        SampleLookup(TimmData("hfds/cifar10").flat(), tmp_path)
    with pytest.raises(MissingDataError, match=r"gone\.csv"):
        SampleLookup(TableData(str(tmp_path / "gone.csv"), target="label", test_fraction=0.2).flat(), tmp_path)
