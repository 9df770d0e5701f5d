"""CIFAR is read as it was published, and a pickle that is cut off, mislabelled or harmful is refused by name."""

import pickle

import numpy as np
import pytest

from cyclofocal.lab.messages import DamagedDataError, MissingDataError
from formats import load, python2_pickle, write_cifar10, write_cifar100

GOOD = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}


def test_cifar10_comes_in_published_order(tmp_path):
    write_cifar10(tmp_path)
    data = load("cifar10", root=tmp_path)
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8) for _ in range(6)]
    assert np.array_equal(data.train.inputs, np.concatenate(batches[:5]))
    assert np.array_equal(data.test.inputs, batches[5])
    assert data.train.labels.tolist() == [7 * i % 10 for i in range(20)] * 5
    assert data.classes[3] == "cat"
    assert np.asarray(data.train.image(21))[4, 5].tolist() == batches[1][1, :, 4, 5].tolist()


def test_cifar100_has_its_fine_labels(tmp_path):
    write_cifar100(tmp_path / "cifar100")
    data = load("cifar100", root=tmp_path)
    assert data.train.labels.tolist() == [7 * i % 100 for i in range(300)]
    assert data.classes == tuple(f"fine_{c}" for c in range(100))
    assert len(data.test) == 100


def test_pickles_that_python_3_wrote_are_read_too(tmp_path):
    folder = write_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps({**GOOD, "labels": np.array([3, 9])}, protocol=2))
    assert load("cifar10", root=tmp_path).test.labels.tolist() == [3, 9]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_data_is_reported_with_folders_and_remedy(tmp_path, name):
    with pytest.raises(MissingDataError, match=rf"{name} not found: .*{tmp_path}.*torchvision\..*download=True"):
        load(name, root=tmp_path)


def test_a_missing_batch_is_named(tmp_path):
    (write_cifar10(tmp_path) / "data_batch_4").unlink()
    with pytest.raises(MissingDataError, match="data_batch_4: no such file"):
        load("cifar10", root=tmp_path)


class _Harm:
    def __reduce__(self):
        return print, ("harm done",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (python2_pickle(GOOD)[:-700], "cut off or not a pickle"),
        (b"", "cut off or not a pickle"),
        (python2_pickle([1, 2]), "it has list"),
        (python2_pickle({"data": GOOD["data"]}), r"no \['labels'\]; it has \['data'\]"),
        (python2_pickle({**GOOD, "data": np.zeros((2, 3000), np.uint8)}), r"'data' is uint8 \(2, 3000\)"),
        (python2_pickle({**GOOD, "data": np.zeros((2, 3072))}), "'data' is float64"),
        (python2_pickle({**GOOD, "data": [1]}), "'data' is list"),
        (python2_pickle({**GOOD, "labels": [0]}), "must be 2 integers"),
        (python2_pickle({**GOOD, "labels": [0.5, 1.0]}), "must be 2 integers"),
        (python2_pickle({**GOOD, "labels": [[0, 1], [1]]}), "must be 2 integers"),
        (python2_pickle({"data": GOOD["data"][:0], "labels": []}), r"'data' is uint8 \(0, 3072\)"),
        (python2_pickle({**GOOD, "labels": [0, 10]}), "label 10 of image 1 is not in 0 to 9"),
        (python2_pickle({**GOOD, "labels": [-1, 0]}), "label -1 of image 0 is not in 0 to 9"),
    ],
)
def test_a_wrong_batch_is_named(tmp_path, content, message):
    path = write_cifar10(tmp_path) / "data_batch_2"
    path.write_bytes(content)
    with pytest.raises(DamagedDataError, match=f"^{path}: .*{message}"):
        load("cifar10", root=tmp_path)


def test_a_pickle_cannot_run_code(tmp_path, capsys):
    path = write_cifar10(tmp_path) / "data_batch_2"
    path.write_bytes(pickle.dumps({**GOOD, "extra": _Harm()}, protocol=2))
    with pytest.raises(DamagedDataError, match="print, which CIFAR does not use"):
        load("cifar10", root=tmp_path)
    assert "harm done" not in capsys.readouterr().out


def test_class_names_that_do_not_fit_are_refused(tmp_path):
    path = write_cifar10(tmp_path) / "batches.meta"
    path.write_bytes(python2_pickle({"label_names": ["cat"]}))
    with pytest.raises(DamagedDataError, match=f"^{path}: 'label_names' must be a list of 10"):
        load("cifar10", root=tmp_path)
