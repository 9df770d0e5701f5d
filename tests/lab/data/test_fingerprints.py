"""A published data set is known by the MD5 sums of its files, its labels in their order, and its pixels."""

import hashlib

import numpy as np
import pytest
from typer.testing import CliRunner

from cyclofocal.lab.commands import app
from cyclofocal.lab.data import cifar
from cyclofocal.lab.data.fingerprints import KNOWN, Fingerprint, compare_fingerprints, fingerprint
from formats import load, write_cifar10


def check(*arguments):
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)], env={"COLUMNS": "300"})


def _expected(images):
    places = hashlib.sha256(b"".join(int(n).to_bytes(8, "little") for n in (*images.labels, *images.positions)))
    pixels = hashlib.sha256(bytes(images.inputs.flatten().tolist()))
    return Fingerprint(len(images), places.hexdigest()[:16], pixels.hexdigest()[:16])


def test_a_fingerprint_hashes_labels_places_and_pixels(tmp_path):
    write_cifar10(tmp_path)
    images = load("cifar10", root=tmp_path).test
    found = fingerprint(images)
    assert found == _expected(images)
    assert fingerprint(images.select(range(20))) == found
    swapped = fingerprint(images.select([10, *range(1, 10), 0, *range(11, 20)]))  # of one class
    assert np.all(images.labels[[0, 10]] == 0)
    assert found.labels != swapped.labels
    assert found.pixels != swapped.pixels


def test_other_pixels_are_told_and_other_labels_refused():
    found = Fingerprint(20, "labels", "pixels")
    assert compare_fingerprints(found, found) == (True, "the known labels in their order, and the known pixels")
    assert compare_fingerprints(found, Fingerprint(20, "labels")) == (True, "the known labels in their order")
    agrees, said = compare_fingerprints(found, Fingerprint(20, "labels", "others"))
    assert agrees
    assert "but other pixels (SHA-256 pixels, known others)" in said
    for known in (Fingerprint(21, "labels"), Fingerprint(20, "others")):
        agrees, said = compare_fingerprints(found, known)
        assert not agrees
        assert said.startswith("not the known labels")


def test_check_compares_published_files_and_labels(tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path)
    found = check("cifar10", "--root", tmp_path)
    assert found.exit_code == 1
    assert "7 of 7 files are not the published ones: data_batch_1 (MD5 " in found.output
    assert "cifar10 test: 20 images of 10 classes, 2 to 2 each" in found.output
    assert "not the known labels in their order: 10000 images" in found.output
    md5 = {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in cifar.CIFAR_MD5["cifar10"]}
    monkeypatch.setitem(cifar.CIFAR_MD5, "cifar10", md5)
    assert check("cifar10", "--root", tmp_path).exit_code == 1  # for its labels
    splits = load("cifar10", root=tmp_path).splits
    monkeypatch.setitem(KNOWN, "cifar10", {split: _expected(splits[split]) for split in ("training", "test")})
    found = check("cifar10", "--root", tmp_path)
    assert found.exit_code == 0
    assert "all 7 files are the published ones (MD5)" in found.output
    assert found.output.count("the known labels in their order, and the known pixels") == 2


@pytest.mark.parametrize("option", ["--lists", "--images", "--against"])
def test_published_sets_have_no_lists_to_check(tmp_path, option):
    found = check("gtsrb", option, tmp_path)
    assert found.exit_code == 2
    assert "gtsrb has no list files" in found.output


def test_a_set_that_is_not_there_is_reported(tmp_path):
    found = check("plankton", "--root", tmp_path)
    assert found.exit_code == 2
    assert "plankton not found" in found.output
