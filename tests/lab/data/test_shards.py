"""Shards are read in random access, in an order that never changes; a shard that is cut off is named."""

import gzip
import io
import pickle
import tarfile

import numpy as np
import pytest

from cyclofocal.lab.messages import DamagedDataError, MissingDataError, UnreadableImageError
from formats import load, picture, write_shard


def _shards(folder):
    for shard, numbers in enumerate(((0, 1, 2), (3, 4))):
        write_shard(folder / f"set-train-{shard:04}.tar", {f"d/{i:03}": (picture(i), i % 2) for i in numbers})
    write_shard(folder / "set-validation-0000.tar", {f"{i:03}": (picture(i), i % 2) for i in (5, 6)})
    return folder


def test_every_sample_can_be_read_alone_in_any_order(tmp_path):
    data = load(str(_shards(tmp_path)))
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0]
    assert data.test.labels.tolist() == [1, 0]
    assert data.train.name(3) == f"{tmp_path}/set-train-0001.tar:d/003"
    chosen = pickle.loads(pickle.dumps(data.train.select([4, 0, 3])))
    for i, number in enumerate((4, 0, 3)):
        assert np.array_equal(np.asarray(chosen.image(i)), np.asarray(picture(number)))


def test_wds_is_the_same_folder_below_root(tmp_path):
    _shards(tmp_path / "mine")
    assert load("wds/mine", root=tmp_path).train.labels.tolist() == load(str(tmp_path / "mine")).train.labels.tolist()
    with pytest.raises(MissingDataError, match="theirs: no such folder"):
        load("wds/theirs", root=tmp_path)


def test_splits_may_be_folders(tmp_path):
    for split in ("Training", "valid", "test"):
        write_shard(tmp_path / split / "0.tar", {"a": (picture(0), 0), "b": (picture(1), 1)}, extension="jpg")
    data = load(str(tmp_path))
    assert len(data.validation) == len(data.test) == 2
    assert data.test.image(0).size == (9, 7)


def test_training_shards_alone_can_be_split(tmp_path):
    write_shard(tmp_path / "train.tar", {f"{i}": (picture(i), i % 2) for i in range(8)})
    assert load(str(tmp_path), test_fraction=0.25).counts == (3, 3)


def test_a_shard_that_is_cut_off_anywhere_is_named(tmp_path):
    path = _shards(tmp_path) / "set-train-0001.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        second = tar.getmember("d/004.png").offset
    end = -(-len(whole.rstrip(b"\0")) // 512) * 512
    for length in (0, 300, 900, end // 2, second, end - 512, end, end + 512):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedDataError, match=f"^{path}: cut off"):
            load(str(tmp_path))


def test_a_file_that_is_no_tar_is_named(tmp_path):
    (_shards(tmp_path) / "set-train-0001.tar").write_bytes(b"no tar file " * 200)
    with pytest.raises(DamagedDataError, match=r"set-train-0001\.tar: cut off or not an uncompressed tar"):
        load(str(tmp_path))


def _shard_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b""), ("b.cls", b"0")], "2 samples lack their image or their class: a, b"),
        ([("a.png", b""), ("a.jpg", b""), ("a.cls", b"0")], "sample a has more than one image"),
        ([("a.png", b""), ("a.cls", b"0"), ("a.cls", b"0")], "sample a has more than one class"),
        ([("a.png", b""), ("a.cls", b"cat")], "class of sample a is b'cat'; it must be a number"),
        ([("a.png", b""), ("a.cls", b"-1")], "class of sample a is b'-1'"),
        ([("a.png", b""), ("a.cls", b"5" * 20)], "class of sample a is b'5"),
    ],
)
def test_a_sample_that_is_not_whole_is_named(tmp_path, members, message):
    _shard_of(tmp_path / "train.tar", members)
    with pytest.raises(DamagedDataError, match=rf"train\.tar: {message}"):
        load(str(tmp_path), test_fraction=0.5)


def test_an_unreadable_image_is_named_by_shard_and_key(tmp_path):
    members = [
        (f"{key}.{kind}", content) for key in "abcd" for kind, content in (("png", b"no image"), ("cls", b"0\n"))
    ]
    members[5:8:2] = [("c.cls", b"1"), ("d.cls", b"1")]
    _shard_of(tmp_path / "train.tar", members)
    with pytest.raises(UnreadableImageError, match=rf"{tmp_path}/train\.tar:[a-d]: not a readable image \(no format"):
        load(str(tmp_path), test_fraction=0.5).train.image(0)


def test_labels_and_names_that_do_not_fit_are_refused(tmp_path):
    _shards(tmp_path)
    write_shard(tmp_path / "test.tar", {"z": (picture(0), 2)})
    with pytest.raises(ValueError, match=r"1 labels are not in 0 to 1: .*test\.tar:z \(label 2\)"):
        load(str(tmp_path))
    (tmp_path / "test.tar").rename(tmp_path / "more.tar")
    with pytest.raises(ValueError, match=r"more\.tar: its name must have exactly one of the words train, val"):
        load(str(tmp_path))


def test_a_packed_shard_is_not_passed_over(tmp_path):
    packed = _shards(tmp_path) / "set-train-0002.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "set-train-0001.tar").read_bytes()))
    with pytest.raises(ValueError, match=rf"1 shards are packed: {packed}; unpack"):
        load(str(tmp_path))


def test_shards_without_any_for_training_are_refused(tmp_path):
    write_shard(tmp_path / "test.tar", {"a": (picture(0), 0)})
    with pytest.raises(MissingDataError, match="no shards for training"):
        load(str(tmp_path))
