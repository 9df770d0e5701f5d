"""fashion-mnist is read from its four idx files, packed or plain, and a wrong file is named."""

import gzip

import numpy as np
import pytest
import torch

from cyclofocal.lab.data import fashion_mnist as idx
from cyclofocal.lab.messages import DamagedDataError, MissingDataError
from formats import idx_bytes, load, write_fashion_mnist


@pytest.mark.parametrize("packed", [True, False])
def test_pixels_and_labels_come_in_published_order(tmp_path, packed):
    write_fashion_mnist(tmp_path, packed=packed)
    data = load("fashion-mnist", root=tmp_path)
    rng = np.random.default_rng(2)
    assert np.array_equal(data.train.inputs[:, 0], rng.integers(0, 256, (40, 28, 28), dtype=np.uint8))
    assert np.array_equal(data.test.inputs[:, 0], rng.integers(0, 256, (20, 28, 28), dtype=np.uint8))
    assert data.train.labels.tolist() == [7 * i % 10 for i in range(40)]
    assert data.counts == (4,) * 10
    assert data.train.labels.dtype == np.int64
    assert data.test.name(3) == "image 3 of fashion-mnist test"


def test_the_published_files_where_debian_puts_them(tmp_path):
    if not idx.DEBIAN.is_dir():
        pytest.skip("needs `apt install dataset-fashion-mnist`")
    data = load("fashion-mnist", root=tmp_path)
    assert data.counts == (6000,) * 10
    assert data.test.inputs.shape == (10_000, 1, 28, 28)
    assert data.classes[data.train.labels[0]] == "ankle boot"
    assert torch.equal(load("fashion-mnist", root=tmp_path, subset="first-4000").train.inputs, data.train.inputs[:4000])


def test_missing_files_are_reported_with_folders_and_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "DEBIAN", tmp_path / "debian")
    with pytest.raises(MissingDataError) as error:
        load("fashion-mnist", root=tmp_path)
    for part in (tmp_path / "fashion-mnist", tmp_path / "debian", "apt install dataset-fashion-mnist", "download=True"):
        assert str(part) in str(error.value)
    (write_fashion_mnist(tmp_path) / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(MissingDataError, match=r"t10k-labels-idx1-ubyte .*no such file"):
        load("fashion-mnist", root=tmp_path)


IMAGES = idx_bytes(np.zeros((4, 28, 28), dtype=np.uint8))
SMALL, NONE = (idx_bytes(np.zeros(shape, np.uint8)) for shape in ((40, 14, 14), (0, 28, 28)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", gzip.compress(IMAGES)[:-9], "cut off or damaged"),
        ("train-images-idx3-ubyte", b"no gzip", "cut off or damaged"),
        ("train-images-idx3-ubyte", gzip.compress(IMAGES[:-1]), "3135 bytes of data; its header says 3136"),
        ("train-images-idx3-ubyte", gzip.compress(IMAGES + b"\0"), "3137 bytes"),
        ("train-images-idx3-ubyte", gzip.compress(IMAGES[:9]), "not an idx file of bytes in 3 dimensions"),
        ("train-images-idx3-ubyte", gzip.compress(SMALL), "images are 40 x 14 x 14; .* N x 28 x 28"),
        ("t10k-images-idx3-ubyte", gzip.compress(NONE), "images are 0 x 28 x 28"),
        ("train-labels-idx1-ubyte", gzip.compress(IMAGES), "not an idx file of bytes in 1 dim"),
        ("train-labels-idx1-ubyte", gzip.compress(idx_bytes(np.zeros(39, np.uint8))), "39 labels, .* 40 images"),
        ("train-labels-idx1-ubyte", gzip.compress(idx_bytes(np.full(40, 10, np.uint8))), "label 10; .* 0 to 9"),
    ],
    ids=[
        "cut off",
        "not packed",
        "short",
        "long",
        "no head",
        "small",
        "none",
        "images for labels",
        "too few labels",
        "no such class",
    ],
)
def test_a_wrong_file_is_named(tmp_path, name, content, message):
    path = write_fashion_mnist(tmp_path) / f"{name}.gz"
    path.write_bytes(content)
    with pytest.raises(DamagedDataError, match=f"^{path}: .*{message}"):
        load("fashion-mnist", root=tmp_path)
