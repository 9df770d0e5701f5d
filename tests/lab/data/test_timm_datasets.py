"""What timm reads for us comes whole and in one order, is never replaced by another image, and says what it lacks."""

import numpy as np
import pytest
import timm.data
from timm.data.dataset import IterableImageDataset

from cyclofocal.lab.messages import MissingDataError, UnreadableImageError
from formats import idx_bytes, load, picture, write_folder


def _mnist(root):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 30), ("t10k", 10)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(pixels))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes((np.arange(count) % 10).astype(np.uint8)))


def test_torchvisions_data_sets(tmp_path):
    _mnist(tmp_path)
    data = load("torch/mnist", root=tmp_path, subset="long-tailed", head_images=2, imbalance=2, validation_images=10)
    assert data.counts == (2, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    assert np.bincount(data.validation.labels).tolist() == [1] * 10
    assert data.test.labels.tolist() == list(range(10))
    rng = np.random.default_rng(0)
    expected = rng.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    index = 4
    assert np.array_equal(np.asarray(data.train.image(index)), expected[data.train.positions[index]])
    assert data.train.name(index) == f"image {data.train.positions[index]} of torch/mnist train"


def test_a_host_that_finds_nothing_says_where_and_how_to_get_it(tmp_path):
    with pytest.raises(MissingDataError, match=rf"torch/mnist train is not in {tmp_path} .*download=True"):
        load("torch/mnist", root=tmp_path)
    with pytest.raises(ValueError, match="source is 'torch/mnits': Unknown torchvision dataset"):
        load("torch/mnits", root=tmp_path)
    with pytest.raises(ValueError, match="give the folder itself, 'path:DIR'"):
        load("torch/image_folder", root=tmp_path)


def test_a_host_whose_library_is_not_installed_says_so(tmp_path, monkeypatch):
    def without_library(*arguments, **settings):
        raise ImportError("No module named 'tensorflow'")

    monkeypatch.setattr(timm.data, "create_dataset", without_library)
    with pytest.raises(MissingDataError, match=r"tfds/beans: its library is not installed .*tensorflow"):
        load("tfds/beans", root=tmp_path)


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (KeyError("`splits` is empty"), MissingDataError, r"tfds/beans train is not in .*download=True\)`$"),
        (
            ValueError("Dataset beans not found.\n\t- bees\n\t- bones"),
            ValueError,
            r"'label'}: Dataset beans not found\.$",
        ),
    ],
    ids=["not prepared", "unknown"],
)
def test_what_tensorflows_data_sets_lack_is_said_in_a_line(tmp_path, monkeypatch, raised, error, message):
    def refused(*arguments, **settings):
        raise raised

    monkeypatch.setattr(timm.data, "create_dataset", refused)
    with pytest.raises(error, match=message) as stop:
        load("tfds/beans", root=tmp_path)
    assert "\n" not in str(stop.value)


@pytest.fixture
def hugging_face(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets", reason="needs the datasets package")


@pytest.mark.usefixtures("hugging_face")
def test_hugging_faces_data_sets(tmp_path):
    write_folder(tmp_path / "tree" / "train", {"ant": 3, "bee": 2})
    write_folder(tmp_path / "tree" / "test", {"ant": 1, "bee": 1}, seed=5)
    source = f"hfds/{tmp_path / 'tree'}"
    data = load(source, root=tmp_path / "cache")
    assert data.classes == ("ant", "bee")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert np.array_equal(np.asarray(data.test.select([1]).image(0)), np.asarray(picture(5)))
    for keys in ({"image_key": "picture"}, {"label_key": "kind"}):
        with pytest.raises(ValueError, match=rf"{next(iter(keys.values()))}' .*is not among its fields, .*label"):
            load(source, root=tmp_path / "cache", **keys)


@pytest.mark.usefixtures("hugging_face")
def test_an_unreadable_hugging_face_image_is_not_replaced(tmp_path):
    write_folder(tmp_path / "tree" / "train", {"ant": 3, "bee": 3})
    broken = tmp_path / "tree" / "train" / "ant" / "1.png"
    broken.write_bytes(broken.read_bytes()[:50])
    data = load(f"hfds/{tmp_path / 'tree'}", root=tmp_path / "cache", test_fraction=0.3)
    images = {int(position): i for i, position in enumerate(data.train.positions)}
    where, index = (data.train, images[1]) if 1 in images else (data.test, data.test.positions.tolist().index(1))
    with pytest.raises(UnreadableImageError, match="image 1 of hfds/"):
        where.image(index)


class _Stream:
    """A host that can only be streamed, as timm's reader of TensorFlow's data sets is."""

    class _Builder:
        class info:  # noqa: N801
            splits = ("train", "validation", "unsupervised")

    builder = _Builder()

    def __init__(self, numbers):
        self.numbers, self.class_to_idx = numbers, {"bee": 1, "ant": 0}
        self.dist_rank, self.dist_num_replicas = 1, 2  # as if made by the second of two processes

    def __iter__(self):
        for i in self.numbers[self.dist_rank :: self.dist_num_replicas]:
            yield picture(i, size=(8 + i % 3, 7)), i % 2


def test_a_stream_is_read_once_and_whole_on_every_process(tmp_path, monkeypatch):
    asked = []

    def stream(source, root, split, is_training, input_key, target_key):
        asked.append((source, split, is_training))
        return IterableImageDataset(root, reader=_Stream(range(9) if split == "train" else range(4)))

    monkeypatch.setattr(timm.data, "create_dataset", stream)
    data = load("tfds/insects", root=tmp_path)
    assert asked == [("tfds/insects", "train", False), ("tfds/insects", "validation", False)]
    assert data.classes == ("ant", "bee")
    assert data.train.labels.tolist() == [i % 2 for i in range(9)]
    assert len(data.test) == 4
    for i in (7, 2):
        assert np.array_equal(np.asarray(data.train.image(i)), np.asarray(picture(i, size=(8 + i % 3, 7))))
